"""What sphinx-gallery does before each example."""

from __future__ import annotations

import warnings


def quiet(gallery_conf: dict, script: str) -> None:
    """Silence the warnings of dependencies, use one thread, and set the look of figures."""
    import matplotlib
    import torch

    warnings.filterwarnings("ignore", module="(pytorch_)?lightning.*")
    torch.set_num_threads(1)
    matplotlib.rcParams.update(
        {"figure.dpi": 100, "figure.constrained_layout.use": True, "axes.titlesize": 11, "legend.fontsize": 9}
    )
