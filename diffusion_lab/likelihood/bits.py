"""Conversion to bits per dimension; all other code computes in nats."""

from __future__ import annotations

import math

from torch import Tensor


def bits_per_dim(nats: Tensor, dimensions: int) -> Tensor:
    """-log2 p(x) / D, of the shape of `nats`, from log p(x) of grey levels in nats."""
    return -nats / (dimensions * math.log(2))
