"""The command `python -m diffusion_lab.bench`: our components compared with other programs."""

from __future__ import annotations

import argparse
import importlib
import platform
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from diffusion_lab.bench.benchmark import Benchmark, Setting, run
from diffusion_lab.output import tolerant

BENCHMARKS = (
    *("training", "convolution", "networks", "optimizer", "sampling", "pipeline"),
    *("likelihood", "inception", "frechet", "data", "trainer"),
)
"""Modules of this package, each with a function `benchmarks(setting)`."""


def benchmarks(name: str, setting: Setting) -> Iterator[Benchmark]:
    """Yield the benchmarks of one module, each created just before it is run, to save memory."""
    return importlib.import_module(f"diffusion_lab.bench.{name}").benchmarks(setting)


def machine(setting: Setting) -> str:
    """Return date, machine and versions in one line."""
    kind = torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else platform.machine()
    return f"{date.today()}, {kind}, {setting.threads} threads, {setting.rounds} rounds, torch {torch.__version__}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the speed of our components with other programs; print medians, and ratios with their range."""
    parser = argparse.ArgumentParser(prog="python -m diffusion_lab.bench", description=main.__doc__)
    parser.add_argument("benchmark", nargs="*", choices=[*BENCHMARKS, []], help=f"all, or of {', '.join(BENCHMARKS)}")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each implementation")
    parser.add_argument("--threads", type=int, default=4, help="threads of every program")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--official", type=Path, help="folder with clones of score_sde_pytorch, ncsn, ncsnv2, edm")
    parser.add_argument("--markdown", type=Path, help="file for the results as a table")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to test that everything runs")
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device; omit it to use the CPU")
    if min(chosen.rounds, chosen.threads) < 1:
        parser.error(f"--rounds and --threads must be at least 1, got {chosen.rounds} and {chosen.threads}")
    setting = Setting(torch.device(chosen.device), chosen.threads, chosen.rounds, chosen.official, chosen.small)
    rows = [f"{machine(setting)}\n", "| work | ours | others, times ours |", "|---|--:|---|"]
    torch.set_num_threads(setting.threads)
    with threadpool_limits(setting.threads):
        print(machine(setting), flush=True)
        for name in chosen.benchmark or BENCHMARKS:
            for benchmark in benchmarks(name, setting):
                print(f"\n{(result := run(benchmark, setting))}", flush=True)
                rows.append(result.row)
                if chosen.markdown is not None:  # after each benchmark: a later one may take long
                    chosen.markdown.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    tolerant()
    main()
