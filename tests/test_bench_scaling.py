"""The exponents and bends of the scaling benchmark, on curves where both are known."""

from __future__ import annotations

import pytest

from diffusion_lab.bench.scaling import Curve, main

SIZES = [2**k for k in range(8)]


def test_a_power_law_has_its_exponent_and_no_bend():
    curve = Curve("cubic", SIZES, [0.1 * size**3 for size in SIZES])
    assert curve.exponent == pytest.approx(3) and curve.bend is None
    assert curve.row == "| cubic | 1 to 128 | 3.00 | no |"


def test_a_curve_of_two_power_laws_bends_between_them():
    size, below, above = Curve("bent", SIZES, [max(16, size) ** 2 * size**0.5 for size in SIZES]).bend
    assert size == 16 and below == pytest.approx(0.5) and above == pytest.approx(2.5)


def test_the_command_prints_every_curve_and_draws_them(tmp_path, capsys):
    main(["--small", "--rounds", "1", "--threads", "1", "--out", str(tmp_path / "scaling.png")])
    assert capsys.readouterr().out.count("\n| ") == 7 and (tmp_path / "scaling.png").stat().st_size > 10_000
