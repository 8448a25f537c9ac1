"""Benchmarks are run fairly and told truly: turns, units, ratios, programs that are absent."""

from __future__ import annotations

import pytest
import torch

from diffusion_lab.bench.__main__ import main
from diffusion_lab.bench.benchmark import Benchmark, Setting, Unavailable, run

SECONDS = {"ours": [9.0, 1.0, 2.0, 4.0], "other": [9.0, 3.0, 4.0, 4.0]}  # the first turn is the warm-up's


def implementations(log):
    def make(name):
        turns = iter(SECONDS[name])
        return lambda: log.append(name) or next(turns)

    def absent():
        raise Unavailable("no clone of it: give --official")

    def uninstalled():
        import a_package_that_is_not_there  # noqa: F401

    return {
        "ours": lambda: make("ours"),
        "other": lambda: make("other"),
        "lost": absent,
        "old": uninstalled,
    }


def message(work, device):
    return (seconds := work()), seconds


def result(unit, per=1, log=None):
    benchmark = Benchmark(
        "work", implementations([] if log is None else log), unit, per, message, lambda last: f"last {sorted(last)}"
    )
    return run(benchmark, Setting(rounds=3))


def test_turns_alternate_after_a_warm_up():
    log = []
    result("s", log=log)
    assert log == ["ours", "other", "ours", "other", "other", "ours", "ours", "other"]


@pytest.mark.parametrize(
    ("unit", "per", "ours", "ratios"),
    [
        ("s", 1, [1, 2, 4], [3, 2, 1]),
        ("us a step", 4, [0.25e6, 0.5e6, 1e6], [3, 2, 1]),
        ("images/s", 8, [8, 4, 2], [3, 2, 1]),
    ],
)
def test_units_and_ratios(unit, per, ours, ratios):
    found = result(unit, per)
    assert found.measured["ours"] == pytest.approx(ours)
    assert found.ratios("other") == pytest.approx(ratios)


def test_report():
    lines = str(result("s")).splitlines()
    assert lines == [
        "work",
        "  ours         2 s",
        "  other        4 s   2.00 (1.00 to 3.00) x ours",
        "  lost  skipped: no clone of it: give --official",
        "  old   skipped: No module named 'a_package_that_is_not_there'",
        "  last ['other', 'ours']",
    ]
    assert result("s").row == "| work | 2 s | other 2.00 (1.00 to 3.00) |"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["speed"], "invalid choice: 'speed'"),
        (["--device", "cuda"], "omit it to use the CPU"),
        (["--rounds", "0"], "at least 1, got 0 and 4"),
    ],
)
def test_the_command_refuses_in_a_line(words, said, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(words)
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_the_command_races_and_keeps_a_table(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        words = ["--small", "--rounds", "1", "--threads", "1", "--markdown", str(path := tmp_path / "table.md")]
        main(["frechet", "convolution", *words])
    finally:
        torch.set_num_threads(threads)
    head, _, titles, _, *rows = path.read_text().splitlines()
    assert head in capsys.readouterr().out and titles.startswith("| work | ours |")
    assert len(rows) == 5 and all(row.count(" to ") >= 1 for row in rows)
