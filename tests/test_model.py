"""The model: image ranges, learning-rate schedule, gradients, validation noise, sampling and inversion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_lab.callback import RankSeed
from diffusion_lab.denoiser import Denoiser
from diffusion_lab.loss import DenoisingLoss, ImplicitScoreMatching, Importance, SlicedScoreMatching
from diffusion_lab.model import DDPM, NCSN, NCSNv2, ScoreMatching, ScoreSDE
from diffusion_lab.network import MLP, UNet
from diffusion_lab.noise import draw, image_generators
from diffusion_lab.parameterization import Parameterization
from diffusion_lab.process import VP, DiscreteProcess, Geometric, Linear
from diffusion_lab.sampler import DDIM, Sampler


def images_model(**changes) -> DDPM:
    network = UNet(1, 8, channels=8, multipliers=(1, 1), blocks=1, attention=(4,), groups=2, dropout=0.5)
    return DDPM(network, Linear(), DenoisingLoss(), Sampler(DDIM(), steps=2), shape=(1, 8, 8), **changes)


def test_encode_and_decode_are_inverse_on_the_grey_levels():
    model = images_model(grey_levels=17)
    levels = torch.arange(17).float().reshape(1, 1, 1, 17) / 16
    x = model.encode(levels)
    assert x.min() == -1 and x.max() == 1
    torch.testing.assert_close(model.decode(x), levels, rtol=0, atol=1e-7)
    for off in (-0.06, 0.06):  # less than half a level, 1/16: rounded to the nearest, neither up nor down
        torch.testing.assert_close(model.decode(x + off), levels, rtol=0, atol=1e-7)
    assert torch.equal(model.decode(torch.tensor([[[[-3.0, 3.0]]]])), torch.tensor([[[[0.0, 1.0]]]]))


def test_points_keep_their_coordinates():
    model = DDPM(MLP(), Linear(), DenoisingLoss(), Sampler(DDIM(), steps=2), shape=(2,), grey_levels=None)
    points = torch.tensor([[-3.0, 7.5]])
    assert torch.equal(model.encode(points), points) and torch.equal(model.decode(points), points)


@pytest.mark.parametrize("warmup, decay, want", [
    (4, None, [0, 0.25, 0.5, 0.75, 1, 1]),
    (0, None, [1, 1, 1, 1, 1, 1]),
    (0, 4, [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0, 0]),
])  # fmt: skip
def test_learning_rate_warms_up_from_zero_as_published(warmup, decay, want):
    model = images_model(optimizer=lambda p: torch.optim.Adam(p, lr=2e-4), warmup_steps=warmup, decay_steps=decay)
    configured = model.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in want:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([2e-4 * w for w in want])


def test_training_step_is_the_loss_of_the_encoded_batch():
    model = images_model(grey_levels=17).eval()
    batch = (torch.rand(6, 1, 8, 8), torch.zeros(6))
    torch.manual_seed(5)
    loss = model.training_step(batch, 0)
    torch.manual_seed(5)
    torch.testing.assert_close(loss, model.loss(model.denoiser, 2 * batch[0] - 1).mean())
    loss.backward()
    assert all(p.grad is not None for p in model.network.parameters())


def test_dequantised_images_fill_their_bins_and_validation_repeats_its_noise():
    seen = []

    def loss(denoiser, x0, generator=None):
        seen.append((x0, None if generator is None else draw((len(x0), 3), generator, x0.dtype)))
        return x0.flatten(1).mean(1)

    model = images_model(grey_levels=17, dequantize=True)
    model.loss = loss
    black, white = torch.zeros(50, 1, 8, 8), torch.ones(50, 1, 8, 8)
    for level, data in ((0, black), (16, white)):
        model.training_step((data, None), 0)
        x = (seen.pop()[0] + 1) / 2 * 17  # (k + u) / 17 of level k
        assert level <= x.min() < level + 0.01 and level + 0.99 < x.max() <= level + 1 + 1e-5
    for part in (white, white[:20], white[20:]):
        model.validation_step((part, None), 0)
        if part is white:
            model.on_validation_epoch_start()
    (first, noise), (_, early), (_, late) = seen
    assert torch.equal(first, white) and torch.equal(noise, torch.cat([early, late])), "the batches do not matter"
    assert len(noise.unique()) == noise.numel()


@pytest.mark.parametrize("loss", [
    DenoisingLoss(), DenoisingLoss("likelihood", time_law=Importance()), ImplicitScoreMatching(), SlicedScoreMatching(2),
])  # fmt: skip
@pytest.mark.parametrize("process", [VP(Linear()), DiscreteProcess(Linear(), 10)], ids=["continuous", "levels"])
def test_a_loss_draws_the_noise_of_each_item_from_its_generator(loss, process):
    torch.manual_seed(0)
    network, x0 = MLP(width=8, depth=1), torch.randn(5, 2)
    torch.nn.init.normal_(network.linear_out.weight)
    denoiser = Denoiser(network, process, Parameterization("eps", "time_999", -1.0, 1.0))
    whole = loss(denoiser, x0, image_generators(3, range(5)))
    parts = [loss(denoiser, x0[i : i + 1], image_generators(3, [i])) for i in range(5)]
    torch.testing.assert_close(whole, torch.cat(parts))
    assert not torch.allclose(whole, loss(denoiser, x0, image_generators(4, range(5))))


def test_image_i_of_a_series_is_the_same_in_any_batch():
    model = DDPM(MLP(), Linear(), DenoisingLoss(), Sampler(DDIM(1.0), steps=3), shape=(2,), grey_levels=None)
    whole = model.sample(5, seed=3, batch_size=5)
    torch.testing.assert_close(model.sample(5, seed=3, batch_size=2), whole)
    torch.testing.assert_close(model.sample(2, seed=3, first=3), whole[3:])
    assert not torch.allclose(model.sample(5, seed=4), whole)


def test_no_two_series_share_an_image():
    """Image i of seed s is not an image of another seed, as it would be with generators seeded by seed + i."""
    seeds = [generator.initial_seed() for seed in range(30) for generator in image_generators(seed, range(30))]
    assert len(set(seeds)) == 900
    model = DDPM(MLP(), Linear(), DenoisingLoss(), Sampler(DDIM(), steps=2), shape=(2,), grey_levels=None)
    drawn = torch.cat([model.sample(8, seed=seed) for seed in range(4)])
    assert len(drawn.unique(dim=0)) == 32


def test_every_method_has_the_parameterization_of_its_paper():
    parts = {"network": MLP(), "loss": DenoisingLoss(), "sampler": Sampler(DDIM(), steps=2), "shape": (2,)}
    linear, sigmas = Linear(), Geometric(0.01, 1.0)
    rows = {
        DDPM(schedule=linear, **parts): Parameterization("eps", "level", -1.0, 1.0, True),
        NCSN(schedule=sigmas, **parts): Parameterization("score", "level_from_top", 0.0, 1.0),
        NCSNv2(schedule=sigmas, **parts): Parameterization("scaled_score", "nothing", 0.0, 1.0),
        ScoreMatching(**parts): Parameterization("scaled_score", "nothing", 0.0, 1.0),
        ScoreSDE(process=VP(linear), unit_input=True, **parts): Parameterization("eps", "time_999", -1.0, 1.0, True),
    }
    for model, row in rows.items():
        assert model.denoiser.parameterization == row, type(model).__name__
    single = ScoreMatching(sigma=0.3, prior_std=4.0, **parts).denoiser.process
    assert single.prior_std == 4 and single.sigma(torch.ones(())).item() == pytest.approx(0.3)
    # NCSN counts its levels from the largest sigma, t = 1.
    c_noise = NCSN(schedule=sigmas, **parts).denoiser.parameterization.conditioning(
        DiscreteProcess(sigmas, 10), torch.tensor([1.0, 0.1])
    )
    assert c_noise.tolist() == [0, 9]


def test_the_global_gradient_norm_is_logged_and_clipped():
    model = images_model()
    for p in model.network.parameters():
        p.grad = torch.ones_like(p)
    count = sum(p.numel() for p in model.network.parameters())
    model.configure_gradient_clipping(torch.optim.SGD(model.network.parameters()), gradient_clip_val=1.0)
    assert model.grad_norm.item() == pytest.approx(count**0.5, rel=1e-5)
    clipped = torch.stack([p.grad.norm() for p in model.network.parameters()]).norm()
    assert clipped.item() == pytest.approx(1, rel=1e-4)
    model.configure_gradient_clipping(torch.optim.SGD(model.network.parameters()))  # no bound: the norm alone
    assert model.grad_norm.item() == pytest.approx(1, rel=1e-4)
    assert all(torch.equal(p.grad, torch.full_like(p, p.grad.flatten()[0])) for p in model.network.parameters())


def test_sampling_switches_dropout_off():
    model = images_model().train()
    torch.nn.init.normal_(model.network.conv_out[-1].weight, std=0.1)
    first, again = (next(iter(model.trajectory(2, seed=1))).x for _ in range(2))
    assert torch.equal(first, again) and model.training
    noisy = [model.denoiser(first, torch.tensor(0.5)).eps for _ in range(2)]
    assert not torch.allclose(*noisy)  # dropout does show where it is on


class Rank:
    def __init__(self, rank, step):
        self.global_rank, self.global_step, self.world_size = rank, step, 2


def test_every_rank_and_every_resumed_run_has_different_noise():
    drawn = []
    for rank, step in ((0, 0), (1, 0), (0, 10), (0, 0)):
        RankSeed(3).on_train_start(Rank(rank, step), None)
        drawn.append(torch.randn(4))
    assert torch.equal(drawn[0], drawn[3])
    assert not torch.allclose(drawn[0], drawn[1]) and not torch.allclose(drawn[0], drawn[2])


def test_samples_of_a_dequantized_model_are_rounded_to_the_level_of_their_bin():
    levels = torch.arange(17) / 16
    for u in (0.001, 0.5, 0.999):
        dequantized = ((levels * 16 + u) / 17).reshape(1, 1, 1, 17)
        plain, taught = images_model(grey_levels=17), images_model(grey_levels=17, dequantize=True)
        torch.testing.assert_close(taught.decode(taught.encode(dequantized)).flatten(), levels)
    assert not torch.allclose(plain.decode(plain.encode(dequantized)).flatten(), levels)


def test_data_without_grey_levels_are_not_rescaled_or_clipped():
    """Latents with mean 3 and standard deviation 2: the exact denoiser of that Gaussian samples them, unclipped."""

    class Gaussian(torch.nn.Module):
        def forward(self, x, t):  # eps_hat = sigma (x - alpha m) / (alpha^2 s^2 + sigma^2)
            level = t.long().clamp(max=99)
            alpha, sigma = (scale[level].float().reshape(-1, 1, 1, 1) for scale in self.scales)
            return sigma * (x - 3 * alpha) / (4 * alpha**2 + sigma**2)

    network = Gaussian()
    sampler = Sampler(DDIM(), steps=100, clip=True)
    model = DDPM(network, Linear(), DenoisingLoss(), sampler, shape=(4, 8, 8), grey_levels=None, levels=100)
    process = model.denoiser.process
    levels = torch.arange(1, 101).double() / 100
    network.scales = process.alpha(levels), process.sigma(levels)
    data = 3 + 2 * torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.encode(data), data) and torch.equal(model.decode(data), data)
    drawn = model.sample(40)
    assert abs(drawn.mean() - 3) < 0.1 and abs(drawn.std() - 2) < 0.2 and drawn.max() > 5 and drawn.min() < 0
    images = DDPM(network, Linear(), DenoisingLoss(), sampler, shape=(4, 8, 8), grey_levels=256, levels=100)
    assert images.sample(4).max() <= 1 and images.denoiser.parameterization.bounded


def test_images_are_inverted_to_noise_that_is_sampled_back_to_them():
    model = DDPM(MLP(), Linear(), DenoisingLoss(), Sampler(DDIM(), steps=2), shape=(2,), grey_levels=None)
    points = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    noise = model.invert(points)
    *_, state = Sampler(DDIM()).trajectory(model.denoiser, noise)
    assert noise.shape == points.shape and (state.x - points).abs().max() < 0.05
    with pytest.raises(ValueError, match="draws noise"):
        model.invert(points, sampler=Sampler(DDIM(1.0)), steps=5)


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.full((2, 1, 8, 8), 255.0), r"images from 255 to 255 must lie in \[0, 1\]"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "finite real numbers"),
        (torch.full((2, 1, 8, 8), torch.nan), "finite real numbers"),
        (torch.zeros(1, 8, 8), r"images=\(1, 8, 8\) must be a tensor \(B, 1, 8, 8\)"),
        (np.zeros((2, 1, 8, 8)), "images=ndarray must be a tensor"),
    ],
)
def test_images_to_invert_must_be_like_sampled_ones(images, message):
    model = DDPM(MLP(), Linear(), DenoisingLoss(), Sampler(DDIM(), steps=2), shape=(1, 8, 8))
    with pytest.raises(ValueError, match=message):
        model.invert(images)
