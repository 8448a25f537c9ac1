"""Record outputs of improved-diffusion's and guided-diffusion's networks, with weights that follow from their names.

Usage: python tests/reference/record_adm.py CLONE_OF_IMPROVED_DIFFUSION CLONE_OF_GUIDED_DIFFUSION
"""

from __future__ import annotations

import json
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import torch


def weights_of(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights by name and shape, the same on every machine."""
    found = {}
    for name, shape in shapes.items():
        scale = 0.2 if len(shape) == 1 else 1 / np.sqrt(max(np.prod(shape[1:]), 1))
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape) * scale
        found[name] = torch.from_numpy(values).float()
    return found


def main() -> None:
    improved, guided = sys.argv[1:]
    for module in ("blobfile", "mpi4py"):
        sys.modules.setdefault(module, types.ModuleType(module))
    sys.path[:0] = [improved, guided]
    from guided_diffusion.unet import EncoderUNetModel
    from guided_diffusion.unet import UNetModel as Guided
    from improved_diffusion.unet import UNetModel as Improved

    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    t, label = torch.tensor([3.25, 611.75]), torch.tensor([4, 0])
    norm = {"use_scale_shift_norm": True}
    adm = {**norm, "channel_mult": (1, 2, 3), "num_head_channels": 16, "resblock_updown": True}
    networks = {
        "iddpm": (Improved(3, 32, 6, 2, (2, 4), channel_mult=(1, 2, 2), num_heads=4, **norm), x, t),
        "adm": (Guided(16, 3, 32, 6, 1, (2, 4), **adm, use_new_attention_order=True, num_classes=5), x, t, label),
        "plain": (Guided(16, 3, 32, 3, 1, (2,), channel_mult=(1, 2), num_heads=2), x, t),
        "classifier": (EncoderUNetModel(16, 3, 32, 10, 1, (2, 4), **adm, pool="attention"), x, t),
    }
    store = {"x": x.numpy(), "t": t.numpy(), "label": label.numpy()}
    for name, (network, *inputs) in networks.items():
        shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
        network.load_state_dict(weights_of(shapes))
        with torch.no_grad():
            store[f"{name}_out"] = network.eval()(*inputs).numpy()
        store[f"{name}_shapes"] = np.array(json.dumps(shapes))
    np.savez_compressed(Path(__file__).parent / "adm_networks.npz", **store)


if __name__ == "__main__":
    main()
