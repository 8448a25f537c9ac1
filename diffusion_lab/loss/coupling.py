"""Couplings: which noise of a batch is paired with which data."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Coupling = Literal["independent", "optimal_transport"]


def optimal_transport(x0: Tensor, eps: Tensor, label: Tensor | None = None) -> Tensor:
    """The rows of eps (B, ...) in the order that minimises sum_i |x0_i - eps_i|^2, within each class of `label` (B,).

    The exact assignment of minibatch optimal transport (Tong et al. 2024, arXiv:2302.00482; Pooladian et al. 2023,
    arXiv:2304.14772).  As the norms do not depend on the order, it maximises sum_i x0_i . eps_i, for any scale of the
    noise.  Within a class, because noise chosen across classes would depend on the class (torchcfm, issue 117).
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    label = torch.zeros(len(x0), dtype=torch.int64) if label is None else label.cpu()
    gain = x0.detach().flatten(1).cpu().double() @ eps.flatten(1).cpu().double().T
    order = torch.empty(len(x0), dtype=torch.int64)
    for one in label.unique():
        items = (label == one).nonzero().flatten()
        rows, columns = linear_sum_assignment(gain[items][:, items].numpy(), maximize=True)
        order[items[torch.as_tensor(rows)]] = items[torch.as_tensor(columns)]
    return eps[order.to(eps.device)]
