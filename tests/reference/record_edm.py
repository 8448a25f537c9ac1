"""Record outputs of NVlabs' EDM program: networks with weights that follow from their names, losses and samplers.

Usage: python tests/reference/record_edm.py CLONE_OF_EDM
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest import mock

from diffusion_lab.verification import mixture
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


DHARIWAL = {"model_channels": 128, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [8]}
"""Arguments of DhariwalUNet."""


def record_networks() -> dict[str, np.ndarray]:
    from training.networks import DhariwalUNet, SongUNet

    rng = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 3, 16, 16, generator=rng), torch.tensor([-1.3, 0.9])
    label, augmentation = torch.tensor([4, 5]), torch.randn(2, 9, generator=rng)  # 5: dropped
    inputs = {"label": torch.nn.functional.one_hot(label, 6)[:, :5].float(), "augmentation": augmentation}
    store = {"x": x.numpy(), "t": t.numpy(), "label": label.numpy(), "augmentation": augmentation.numpy()}
    sizes = {"model_channels": 32, "channel_mult": [2, 1, 2], "num_blocks": 1, "attn_resolutions": [8]}
    dhariwal = ({"label_dim": 5, "augment_dim": 9}, ("label", "augmentation"))
    for name, (options, used) in {**CASES, "dhariwal": dhariwal}.items():
        made, size = (DhariwalUNet, DHARIWAL) if name == "dhariwal" else (SongUNet, sizes)
        network = made(16, 3, 3, **size, **options).eval()
        shapes = {k: list(v.shape) for k, v in network.state_dict().items() if not k.endswith("resample_filter")}
        network.load_state_dict(weights_of(shapes), strict=False)
        with torch.no_grad():
            more = [inputs[key] if key in used else None for key in ("label", "augmentation")]
            store[f"{name}_out"] = network(x, t, *more).numpy()
        store[f"{name}_shapes"] = np.array(json.dumps(shapes))
    return store


def closed_form(x: torch.Tensor, c_noise: torch.Tensor, **labels: object) -> torch.Tensor:
    """A network that depends on all its inputs."""
    return torch.tanh(1.3 * x) + 0.4 * torch.cos(c_noise.reshape(-1, 1, 1, 1) / 3)


def twice(x: torch.Tensor, c_noise: torch.Tensor, **labels: object) -> torch.Tensor:
    """With iDDPM's channels of the variance."""
    return torch.cat([closed_form(x, c_noise), x], dim=1)


def preconditioned() -> dict[str, torch.nn.Module]:
    """Their denoisers, with a network in closed form."""
    from training import networks

    made = {}
    for name in ("VP", "VE", "iDDPM", "EDM"):
        with mock.patch.object(networks, "SongUNet", lambda **_: torch.nn.Identity()):
            made[name] = getattr(networks, f"{name}Precond")(4, 3, model_type="SongUNet")
        made[name].model.forward = twice if name == "iDDPM" else closed_form
    return made


def record_losses() -> dict[str, np.ndarray]:
    from training import loss

    y = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    sigma = torch.tensor([0.03, 0.2, 0.5, 1.7, 9.0, 70.0])
    store = {"y": y.numpy(), "noise": noise.numpy(), "sigma": sigma.numpy()}
    networks = preconditioned()
    for name, network in networks.items():
        store[f"{name}_D"] = network(y + sigma.reshape(-1, 1, 1, 1) * noise, sigma).numpy()
    store["iDDPM_u"] = networks["iDDPM"].u.numpy()
    for name in ("VP", "VE", "EDM"):
        torch.manual_seed(3)
        store[f"{name}_loss"] = getattr(loss, f"{name}Loss")()(networks[name], y, None).numpy()
        torch.manual_seed(3)  # what it has drawn
        store[f"{name}_u"] = (torch.randn if name == "EDM" else torch.rand)(6, 1, 1, 1).flatten().numpy()
        store[f"{name}_noise"] = torch.randn_like(y).numpy()
    return store


class Exact:
    """The exact denoiser of `mixture.gmm2d`, for any noise level."""

    sigma_min, sigma_max = 0.0, float("inf")

    def __init__(self) -> None:
        self.sigmas: list[float] = []

    def round_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(sigma)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, labels: None) -> torch.Tensor:
        self.sigmas.append(float(sigma))
        sigma = torch.as_tensor(sigma).expand(len(x))
        return mixture.gmm2d().denoise(x, torch.ones_like(sigma), sigma)


CHURN = {"S_churn": 2.0, "S_min": 0.05, "S_max": 15.0, "S_noise": 1.003}
ABLATIONS = {
    f"{discretization}.{solver}": {"discretization": discretization, "solver": solver}
    for discretization in ("vp", "ve", "iddpm", "edm")
    for solver in ("euler", "heun")
}
STEPS = 9


def record_samplers() -> dict[str, np.ndarray]:
    import generate

    shape = (3, 2, 1, 1)
    start, store = torch.as_tensor(np.random.RandomState(91).randn(*shape)), {}
    for name, sampler, options in (
        ("heun", generate.edm_sampler, {}),
        ("churn", generate.edm_sampler, CHURN),
        *((name, generate.ablation_sampler, options) for name, options in ABLATIONS.items()),
        ("edm.heun.churn", generate.ablation_sampler, CHURN),
    ):
        noise, exact = iter(torch.as_tensor(np.random.RandomState(92).randn(40, *shape))), Exact()
        # Their loop draws noise at every step, and multiplies it by 0 where it adds none.
        kept = lambda x, noise=noise: next(noise)  # noqa: E731
        store[name] = sampler(exact, start, num_steps=STEPS, randn_like=kept, **options).numpy()
        store[f"{name}.sigmas"] = np.array(exact.sigmas)
    return store


def main() -> None:
    sys.path[:0] = sys.argv[1:]
    for module in ("click", "tqdm", "PIL", "PIL.Image"):
        sys.modules.setdefault(module, mock.MagicMock())
    folder = Path(__file__).parent
    np.savez_compressed(folder / "edm_networks.npz", **record_networks())
    np.savez_compressed(folder / "edm.npz", **record_losses(), **record_samplers())


if __name__ == "__main__":
    main()
