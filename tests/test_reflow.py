"""Reflow: noise written beside the samples, training on such pairs, and straighter paths (Liu et al. 2023)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zygote

from diffusion_lab.data import Toy2D
from diffusion_lab.data.pairs import read_pairs
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss import Constant, DenoisingLoss
from diffusion_lab.model import ScoreSDE
from diffusion_lab.network import MLP
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import ProbabilityPath, Rectified
from diffusion_lab.sampler import DDIM, Ancestral, ProbabilityFlow, Sampler
from diffusion_lab.verification import mixture
from diffusion_lab.verification.mixture import exact_denoiser

TRAIN, SAMPLE = (zygote.ROOT / name for name in ("train.py", "sample.py"))
PATH = ProbabilityPath(Rectified())


def euler(steps):
    return Sampler(DDIM(), steps=steps, spacing="trailing")


def straightness(denoiser, z):
    """int E |(x_1 - x_0) - u(x_t, t)|^2 dt along the paths from z (B, ...), 0 if all are straight."""
    times = torch.linspace(1, 0.02, 25, dtype=torch.float64)
    states = [z, *ProbabilityFlow(1e-4, 1e-4).solve(denoiser, z, times.tolist())]
    mean_velocity = (states[0] - states[-1]) / (1 - 0.02)
    estimates = [denoiser(x, t) for x, t in zip(states, times, strict=True)]
    return torch.stack([(mean_velocity - (e.eps - e.x0)).square().flatten(1).sum(1).mean() for e in estimates]).mean()


def energy_distance(x, y):
    """2 E|x - y| - E|x - x'| - E|y - y'|."""
    x, y = x.flatten(1).double(), y.flatten(1).double()
    return (2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()).item()


def trained(x0, noise, steps, **options):
    """A small network trained on pairs."""
    torch.manual_seed(0)
    network = MLP(2, width=48)
    denoiser = Denoiser(network, PATH, Parameterization("u", "time_999", bounded=False))
    loss, optimizer = DenoisingLoss("output", **options), torch.optim.Adam(network.parameters(), 2e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        chosen = torch.randint(len(x0), (256,))
        optimizer.zero_grad()
        loss(denoiser, x0[chosen], None, noise[chosen]).mean().backward()
        optimizer.step()
    return denoiser.eval()


@torch.no_grad()
def test_reflow_straightens_the_paths_and_improves_samples_of_few_steps():
    """The first flow is the exact one of a mixture; the second is trained on its pairs, and so is a single step."""
    target, generator = mixture.gmm2d(), torch.Generator().manual_seed(0)
    first = exact_denoiser(target, PATH)
    z = torch.randn(2000, 2, 1, 1, generator=generator)
    (x0,) = ProbabilityFlow(1e-3, 1e-3).solve(first, z, [1.0, 0.01])
    pairs, fresh = (x0.float().flatten(1), z.flatten(1)), torch.randn(300, 2, generator=generator)
    with torch.enable_grad():
        second, one_step = trained(*pairs, 400), trained(*pairs, 400, time_law=Constant(1.0))
    data = target.sample(800, 1)[0]
    before, after = straightness(first, fresh.reshape(-1, 2, 1, 1)).item(), straightness(second, fresh).item()
    assert after < 0.2 * before
    distance = {}
    for name, denoiser, shape in (("first", first, (2, 1, 1)), ("second", second, (2,)), ("one", one_step, (2,))):
        for steps in (1, 2):
            samples = euler(steps)(denoiser, (800, *shape), torch.Generator().manual_seed(2))
            distance[name, steps] = energy_distance(samples, data)
    assert distance["second", 1] < 0.1 * distance["first", 1] and distance["second", 2] < 0.3 * distance["first", 2]
    assert distance["one", 1] < 0.1 * distance["first", 1]


def model(sampler, **options):
    torch.manual_seed(0)
    network = MLP(2, width=16)
    torch.nn.init.normal_(network.linear_out.weight)
    return ScoreSDE(
        network, PATH, DenoisingLoss("output"), sampler, shape=(2,), grey_levels=None, output="u", **options
    )


@pytest.mark.parametrize("sampler", [euler(3), Sampler(DDIM(), steps=4, spacing="karras"), ProbabilityFlow(frames=1)])
@torch.no_grad()
def test_samples_start_from_their_noise_bit_for_bit(sampler):
    one = model(sampler)
    z, samples = one.starting_noise(range(2, 7), seed=3), one.sample(5, seed=3, first=2, batch_size=5)
    again = sampler.prior_std(PATH) * z
    *_, last = sampler.trajectory(one.denoiser.eval(), again)
    assert torch.equal(last.x, samples)


def test_a_sampler_that_adds_noise_has_no_pairs():
    with pytest.raises(ValueError, match="depend on more noise: use sampler=ode"):
        model(euler(3)).starting_noise(range(2), sampler=Sampler(Ancestral(), steps=4))


def written(folder, x, labels=None, noise=None):
    arrays = {"arr_0": x} | ({} if labels is None else {"arr_1": labels})
    np.savez(folder / "samples.npz", **arrays)
    np.save(folder / "noise.npy", noise)
    return str(folder)


def test_pairs_keep_rows_together_and_images_their_grey_levels(tmp_path):
    rows = np.arange(20)
    level = (rows % 17)[:, None, None, None] * np.ones((1, 2, 3, 1))
    noise = rows[:, None, None, None] * np.ones((1, 1, 2, 3), np.float32)
    folder = written(tmp_path, np.round(level * 255 / 16).astype(np.uint8), rows % 10, noise.astype(np.float32))
    train, held_out = read_pairs(folder, (1, 2, 3), 17)
    assert (len(train), len(held_out)) == (18, 2)
    x, label, z = train.__getitems__([4, 17])
    assert x[:, 0, 0, 0].tolist() == [4, 0] and label.tolist() == [4, 7] and z[:, 0, 1, 2].tolist() == [4, 17]
    assert x.shape == z.shape == (2, 1, 2, 3)
    for shape, message in (((1, 3, 3), "holds items of shape"), ((2,), "holds items of shape")):
        with pytest.raises(ValueError, match=message):
            read_pairs(folder, shape, 17)
    with pytest.raises(ValueError, match=r"holds no samples.npz: write both by sample.py with noise=true"):
        read_pairs(str(tmp_path / "none"), (2,), None)


def test_batches_are_those_of_the_pairs_and_the_data_remain_the_data(tmp_path):
    noise = np.arange(80, dtype=np.float32).reshape(40, 2)
    data = Toy2D(pairs=written(tmp_path, 100 + noise, noise=noise), batch_size=5, shape=(2,), train_size=50)
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        x, _, _, z = data.on_after_batch_transfer(next(iter(loader)), 0)
        assert torch.equal(x, 100 + z)
    assert len(data.test_dataloader().dataset) == data.size("held_out") > 40 and data.images("train").max() < 50


FAST = ["debug=fast", "trainer.accelerator=cpu", "logger=csv"]


def test_reflow_by_commands(tmp_path):
    """Train, write pairs, train on them, distil to one step; refusals come first."""
    done = zygote.run(TRAIN, "model=flow", "data=toy2d", *FAST, "hydra.run.dir=one", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    sampling = ["ckpt_path=one", "num_samples=40", "trainer.accelerator=cpu", "noise=true"]
    done = zygote.run(SAMPLE, *sampling, "sampler=ancestral", "sampler_steps=5", cwd=tmp_path)
    assert done.returncode == 2 and "samples of this sampler depend on more noise" in done.stderr
    done = zygote.run(SAMPLE, *sampling, "out=pairs", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert np.load(tmp_path / "pairs/noise.npy").shape == (40, 2)
    again = ["model=flow", "data=toy2d", "data.batch_size=8", *FAST]
    done = zygote.run(TRAIN, *again, "data.pairs=nowhere", cwd=tmp_path)
    assert done.returncode == 2 and "data.pairs=nowhere holds no noise.npy: write it with sample.py" in done.stderr
    done = zygote.run(TRAIN, *again, "data.pairs=pairs", "loss=sliced", cwd=tmp_path)
    assert done.returncode == 2 and "data.pairs pairs noise with data, which this loss does not" in done.stderr
    words = [*again, "data.pairs=pairs", "init_from=one", "time_law=constant", "hydra.run.dir=two"]
    done = zygote.run(TRAIN, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
