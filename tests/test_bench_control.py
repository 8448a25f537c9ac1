"""The ranking of controls against the exact posterior."""

from __future__ import annotations

import torch

from diffusion_lab.bench import control
from diffusion_lab.verification.linear_gaussian import draw, errors


def test_the_command_ranks_every_method_that_suits_a_problem_and_draws_the_errors(capsys, tmp_path):
    control.main(["--nfe", "30", "--samples", "40", "--out", str(tmp_path / "control.png")])
    printed = capsys.readouterr().out
    assert [printed.count(f"\n  {name:<14}") for name in (*control.METHODS, "exact")] == [3, 3, 4, 4, 4]
    assert (tmp_path / "control.png").stat().st_size > 5000


def test_repaint_gets_as_many_evaluations_as_the_others():
    steps = {
        name: control.steps_for(make(control.PROBLEMS["inpainting"], torch.zeros(1, 3, 4, 4)), 250)
        for name, (make, _) in control.METHODS.items()
    }
    assert steps["replacement"] == steps["DPS"] == steps["pseudoinverse"] == 250 and 45 < steps["RePaint"] < 75


def test_errors_are_those_of_the_moments():
    mean, root = (
        torch.tensor([1.0, -2.0], dtype=torch.float64),
        torch.tensor([[1.0, 0.0], [0.5, 0.2]], dtype=torch.float64),
    )
    x = draw(mean, root @ root.T, 20_000, (1, 1, 2), torch.Generator().manual_seed(0))
    assert max(errors(x, mean, root @ root.T)) < 0.02
    assert errors(x + 1, mean, root @ root.T)[0] > 0.5
