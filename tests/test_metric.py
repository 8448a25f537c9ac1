"""The bytes that are scored, and the names of scores."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion_lab.metric import sample_count, to_uint8


class TestImages:
    def test_every_byte_survives(self):
        byte = torch.arange(256)
        assert torch.equal(to_uint8(byte / 255), byte.to(torch.uint8))
        assert torch.equal(to_uint8((byte / 255).double()), byte.to(torch.uint8))

    def test_edges_round_to_nearest_and_never_wrap(self):
        images = torch.tensor([-5.0, -0.01, 0.0, 0.49 / 255, 0.51 / 255, 254.49 / 255, 254.51 / 255, 1.0, 1.01, 9.0])
        assert to_uint8(images).tolist() == [0, 0, 0, 0, 1, 254, 255, 255, 255, 255]

    def test_is_the_rule_of_edm(self):
        images = torch.linspace(-0.1, 1.1, 10007, dtype=torch.float64)
        edm = ((2 * images - 1) * 127.5 + 128).clip(0, 255).to(torch.uint8)
        assert torch.equal(to_uint8(images), edm)

    def test_refusals(self):
        with pytest.raises(ValueError, match="floats"):
            to_uint8(torch.zeros(2, dtype=torch.uint8))
        with pytest.raises(ValueError, match="NaN"):
            to_uint8(torch.tensor([0.5, math.nan]))

    def test_counts_in_names(self):
        assert [sample_count(n) for n in (1000, 397, 1500, 50000)] == ["1k", "397", "1500", "50k"]
