"""Printing ends no run, whatever the output is; tables fit it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_lab.run.report import table

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "diffusion_lab"
SAY = """
import sys
from diffusion_lab.output import tolerant
tolerant()
print("3.06 ± 0.07, Fréchet ↓ 数", flush=True)
print("error: é ±", file=sys.stderr, flush=True)
open({done!r}, "w").write("done")
"""
RESULTS = {
    "step": 2800,
    "weights": "ema",
    "sampler": "ancestral (variance=fixed_small, steps=100, spacing=uniform, rho=7.0, denoise=True, clip=True)",
    "metrics": {
        "inception_score_fashion_mnist_held_out_10k": {"value": 1.4631e-12, "standard_error": 1.2e-13, "real": -0.0027},
        "fd_digits_held_out_1k": {
            "value": 1.4631e4,
            "real": 3.3,
            "classes": {str(k): 1000 for k in range(10)},
            "protocol": {"reference": "digits held_out"},
        },
        "bound_bits_per_dim": {"value": 3.06, "standard_error": 0.07, "terms": {"prior": 2e-5, "steps": 3.0}},
    },
}


def say(done, stdout=subprocess.PIPE, **environment):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    words = [sys.executable, "-c", SAY.format(done=str(done))]
    return subprocess.run(words, env=environment, stdout=stdout, stderr=subprocess.PIPE, timeout=60)


@pytest.mark.parametrize(
    "encoding, out, err",
    [
        ("ascii", "3.06 +/- 0.07, Frechet (lower) ?", "error: e +/-"),
        ("latin-1", "3.06 ± 0.07, Fréchet (lower) ?", "error: é ±"),
        ("utf-8", "3.06 ± 0.07, Fréchet ↓ 数", "error: é ±"),
    ],
)
def test_what_the_output_cannot_show_is_said_plainly(tmp_path, encoding, out, err):
    done = say(tmp_path / "done", PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and (tmp_path / "done").exists()
    assert (done.stdout.decode(encoding), done.stderr.decode(encoding)) == (out + "\n", err + "\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_or_that_has_no_room_ends_nothing(tmp_path, monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reader, writer = os.pipe()
    os.close(reader)
    assert say(tmp_path / "closed", stdout=writer).returncode == 0 and (tmp_path / "closed").exists()
    os.close(writer)
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            assert say(tmp_path / "full", stdout=full).returncode == 0 and (tmp_path / "full").exists()


def test_every_command_prints_so():
    commands = [path for path in PACKAGE.rglob("*.py") if 'if __name__ == "__main__"' in path.read_text()]
    decorator = (PACKAGE / "cli.py").read_text().partition("def command(")[2]
    assert len(commands) >= 7 and "    tolerant()\n" in decorator
    ways = ("    tolerant()\n", "from diffusion_lab.launch import main\n", "\n@command(")
    for path in [*commands, PACKAGE / "launch" / "__init__.py"]:
        text = path.read_text()
        made = re.search(r"from diffusion_lab\.([\w.]+) import main\n", text)
        text = (PACKAGE / f"{made[1].replace('.', '/')}.py").read_text() if made and made[1] != "launch" else text
        assert any(way in text for way in ways), path


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
@pytest.mark.parametrize("columns", ["40", "80", "130"])
def test_the_table_of_results_fits_the_terminal(tmp_path, monkeypatch, columns, encoding):
    monkeypatch.setenv("COLUMNS", columns)
    with (tmp_path / "out").open("w", encoding=encoding) as file:
        monkeypatch.setattr(sys, "stdout", file)
        table(RESULTS)
    text = (tmp_path / "out").read_text(encoding)
    grid = [line for line in text.splitlines() if line[0] in "┏┃┡│└+|"]
    assert {len(line) for line in grid} and len({len(line) for line in grid}) == 1
    assert len(grid[0]) <= max(80, int(columns))
    assert "1.463e-12" in text and "against digits held_out" in text and "classes drawn: 10 (0:1000 1:1000" in text
    assert re.search(r"3\.06 \+/- 0\.07" if encoding == "ascii" else "3.06 ± 0.07", text)
    if encoding == "ascii":
        assert text.isascii() and "?" not in text and "+--" in text
