"""The command `python -m diffusion_lab.bench`: our parts against other programs', side by side."""

from __future__ import annotations

import argparse
import importlib
import platform
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from diffusion_lab.bench.race import Race, Setting, run
from diffusion_lab.output import tolerant

RACES = ("training", "networks", "optimizer", "sampling", "likelihood", "inception", "frechet", "data", "trainer")
"""Modules of this package, each with a function `races(setting)` that yields its races."""


def races(name: str, setting: Setting) -> Iterator[Race]:
    """The races of one module, made as they are run: few of them would fit in memory together."""
    return importlib.import_module(f"diffusion_lab.bench.{name}").races(setting)


def machine(setting: Setting) -> str:
    """Date, machine and versions, in a line."""
    kind = torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else platform.machine()
    return f"{date.today()}, {kind}, {setting.threads} threads, {setting.rounds} rounds, torch {torch.__version__}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Race our parts against other programs' and print medians, and ratios with their range."""
    parser = argparse.ArgumentParser(prog="python -m diffusion_lab.bench", description=main.__doc__)
    parser.add_argument("race", nargs="*", choices=[*RACES, []], help=f"all, or of {', '.join(RACES)}")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each contestant")
    parser.add_argument("--threads", type=int, default=4, help="threads of every program")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--official", type=Path, help="folder with clones of score_sde_pytorch, ncsn, ncsnv2, edm")
    parser.add_argument("--markdown", type=Path, help="file for the results as a table")
    parser.add_argument("--small", action="store_true", help="sizes that only show that everything runs")
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has none that torch can use; leave it out for the CPU")
    if min(chosen.rounds, chosen.threads) < 1:
        parser.error(f"--rounds and --threads are at least 1, got {chosen.rounds} and {chosen.threads}")
    setting = Setting(torch.device(chosen.device), chosen.threads, chosen.rounds, chosen.official, chosen.small)
    rows = [f"{machine(setting)}\n", "| work | ours | others, times ours |", "|---|--:|---|"]
    torch.set_num_threads(setting.threads)
    with threadpool_limits(setting.threads):
        print(machine(setting), flush=True)
        for name in chosen.race or RACES:
            for race in races(name, setting):
                print(f"\n{(result := run(race, setting))}", flush=True)
                rows.append(result.row)
                if chosen.markdown is not None:  # after each race: a later one may take long
                    chosen.markdown.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    tolerant()
    main()
