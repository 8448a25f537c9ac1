"""Record outputs of NVlabs' EDM program: networks with weights that follow from their names, losses and samplers.

Usage: python tests/reference/record_edm.py CLONE_OF_EDM
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from record_adm import weights_of

CASES = {  # arguments of SongUNet, inputs beside x and the noise level
    "ddpmpp": ({}, ()),
    "ddpmpp_labels": ({"label_dim": 5, "augment_dim": 9}, ("label", "augmentation")),
    "ncsnpp_labels": (
        {
            "label_dim": 5, "augment_dim": 9, "embedding_type": "fourier", "channel_mult_noise": 2,
            "encoder_type": "residual", "resample_filter": [1, 3, 3, 1],
        },
        ("label", "augmentation"),
    ),
    "ncsnpp": (
        {
            "embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual",
            "resample_filter": [1, 3, 3, 1],
        },
        (),
    ),
}  # fmt: skip


def record_networks() -> dict[str, np.ndarray]:
    from training.networks import SongUNet

    rng = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 3, 16, 16, generator=rng), torch.tensor([-1.3, 0.9])
    label, augmentation = torch.tensor([4, 5]), torch.randn(2, 9, generator=rng)  # 5: dropped
    inputs = {"label": torch.nn.functional.one_hot(label, 6)[:, :5].float(), "augmentation": augmentation}
    store = {"x": x.numpy(), "t": t.numpy(), "label": label.numpy(), "augmentation": augmentation.numpy()}
    sizes = {"model_channels": 32, "channel_mult": [2, 1, 2], "num_blocks": 1, "attn_resolutions": [8]}
    for name, (options, used) in CASES.items():
        network = SongUNet(16, 3, 3, **sizes, **options).eval()
        shapes = {k: list(v.shape) for k, v in network.state_dict().items() if not k.endswith("resample_filter")}
        network.load_state_dict(weights_of(shapes), strict=False)
        with torch.no_grad():
            more = [inputs[key] if key in used else None for key in ("label", "augmentation")]
            store[f"{name}_out"] = network(x, t, *more).numpy()
        store[f"{name}_shapes"] = np.array(json.dumps(shapes))
    return store


def main() -> None:
    sys.path[:0] = sys.argv[1:]
    np.savez_compressed(Path(__file__).parent / "edm_networks.npz", **record_networks())


if __name__ == "__main__":
    main()
