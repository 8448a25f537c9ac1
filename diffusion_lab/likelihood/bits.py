"""Nats to bits per dimension: the only place that leaves nats."""

from __future__ import annotations

import math

from torch import Tensor


def bits_per_dim(nats: Tensor, dimensions: int) -> Tensor:
    """-log2 p(x) / D for a log-likelihood of grey levels in nats, of the shape of `nats`."""
    return -nats / (dimensions * math.log(2))
