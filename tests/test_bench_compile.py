"""The benchmark of compiled training steps says what was gained, and when the compilation is paid for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusion_lab.bench import compile


@pytest.fixture
def timed(monkeypatch):
    """Replace the compiler and the clock; every step, plain, compiled and bf16 in turn, takes given seconds."""
    monkeypatch.setattr(nn.Module, "compile", lambda self: None)

    def of(plain, compiled, bf16, first):
        turns = iter([plain, first, bf16] + [plain, compiled, bf16] * 3)
        monkeypatch.setattr(compile, "clock", lambda step, device: (next(turns), step()))
        return compile.row("U-Net for digits", 2, torch.device("cpu"))

    return of


def test_a_compilation_pays_for_itself_after_some_steps(timed):
    row = timed(plain=2.0, compiled=1.0, bf16=4.0, first=102.0)
    assert row == "| U-Net for digits, batch 64 | 2.00 | 102 s, paid for after 100 steps | 0.50 |"


def test_one_that_does_not_make_steps_faster_never_does(timed):
    assert "| 1.00 | 50 s, never paid for |" in timed(plain=1.0, compiled=1.0, bf16=1.0, first=50.0)
