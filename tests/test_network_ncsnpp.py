"""NCSN++ and DDPM++ against the official network with all options, and their layers against closed forms."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic import recipe_weights
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_network import assert_checkpointing_saves_memory_alone
from torch import Tensor, nn

from diffusion_lab.interop import score_sde
from diffusion_lab.network import NCSNpp
from diffusion_lab.network.embedding import FourierWaves, TimeEmbedding
from diffusion_lab.network.fir import FirDouble, FirDownsample, FirHalve, FirUpsample

REFERENCE = Path(__file__).parent / "reference"
COUNTS = json.loads((REFERENCE / "param_counts.json").read_text())
CONF = Path(__file__).parents[1] / "conf" / "network"
DDPMPP = {"fir": False, "progressive_input": "none", "embedding": "positional"}
SMALL = {"channels": 8, "multipliers": (1, 2, 2), "blocks": 1, "attention": (4,), "dropout": 0.0}
with np.load(REFERENCE / "net_ncsnpp_options.npz") as arrays:
    CASES = json.loads(bytes(arrays["_meta"]).decode())["cases"]


def words(case: dict) -> str:
    return "-".join(str(value) for value in case["options"].values())


def error(value: Tensor, truth: Tensor) -> float:
    return ((value - truth).abs().max() / truth.abs().max()).item()


def official_weights(meta: dict) -> dict[str, Tensor]:
    return {k: torch.from_numpy(v) for k, v in recipe_weights(meta["layout"], kinds=meta["kinds"]).items()}


def small(case: dict | None = None, **form: object) -> NCSNpp:
    """A small network in evaluation mode, with weights of normal size or those of a recorded case."""
    torch.manual_seed(0)
    net = NCSNpp(3, 8, **{**SMALL, **(case["options"] if case else {}), **form}).eval()
    if case:
        net.load_state_dict(score_sde.ncsnpp(net, official_weights(case)))
        return net
    for parameter in filter(lambda p: p.requires_grad, net.parameters()):
        nn.init.normal_(parameter, std=(parameter[0].numel() if parameter.dim() > 1 else 10) ** -0.5)
    return net


# --------------------------------------------------------------------------- the official network


@pytest.mark.parametrize("name, form, bound", [("ncsnpp", {}, 2e-5), ("ddpmpp", DDPMPP, 5e-6)])
def test_same_weights_give_the_official_output(recorded, name, form, bound):
    record = recorded(f"net_{name}_small")
    net = NCSNpp(3, 16, channels=32, multipliers=(1, 2), blocks=1, attention=(8,), **form).eval()
    net.load_state_dict(score_sde.ncsnpp(net, {**official_weights(record.meta), "sigmas": torch.ones(1000)}))

    def output(dtype: torch.dtype) -> Tensor:
        x, cond = record["x"].to(dtype), record["cond"].to(dtype)
        if name == "ddpmpp":
            return net.to(dtype)(x, cond)
        # What the official network does by itself is our parameterisation's: the range, the logarithm, the division.
        return net.to(dtype)(2 * x - 1, cond.log()) / cond[:, None, None, None]

    with torch.no_grad():
        assert error(output(torch.float32), record["y_f32"]) < bound
        assert error(output(torch.float64), record["y_f64"]) < 1e-12
    assert score_sde.trainable_order(net) == record.meta["trainable_order"]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[words(case) for case in CASES])
def test_every_form_gives_the_official_output_and_trains_every_weight(recorded, number):
    """Each way of building the blocks, the input and the output; other options vary along with them."""
    record, case = recorded("net_ncsnpp_options"), CASES[number]
    net = small(case).double()
    output = net(record["x"], record["cond"].log() if case["options"]["embedding"] == "fourier" else record["cond"])
    assert error(output, record[f"y{number}"]) < 1e-12
    assert score_sde.trainable_order(net) == case["trainable_order"]
    output.square().sum().backward()
    trained = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    assert [name for name, p in trained if p.grad is None or p.grad.abs().max() < 1e-9] == []


@pytest.mark.parametrize(
    "name, form, count",
    [
        ("ncsnpp", {}, COUNTS["score_sde.ve.cifar10_ncsnpp_continuous"]),
        ("ncsnpp", {"blocks": 8}, COUNTS["score_sde.ve.cifar10_ncsnpp_deep_continuous"]),
        ("ncsnpp", {"embedding": "positional"}, COUNTS["score_sde.ve.cifar10_ncsnpp"]),
        ("ncsnpp", {"embedding": "positional", "blocks": 8}, [107521411, 107521411]),
        ("ddpmpp", {}, COUNTS["score_sde.vp.cifar10_ddpmpp_continuous"]),
        ("ddpmpp", {"blocks": 8}, COUNTS["score_sde.vp.cifar10_ddpmpp_deep_continuous"]),
    ],
)
def test_parameter_counts_of_the_paper(name, form, count):
    config = OmegaConf.create({"data": {"shape": [3, 32, 32]}, "network": OmegaConf.load(CONF / f"{name}.yaml")})
    with torch.device("meta"):
        net = instantiate(config.network, **form)
    sizes = [(p.numel(), p.requires_grad) for p in net.parameters()]
    assert [sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)] == count


# --------------------------------------------------------------------------- the filter


def filtered(x: np.ndarray, up: int, down: int, before: int, after: int, gain: float) -> np.ndarray:
    """Zeros between the rows and around them, the filter, and every `down`-th row; then the same for the columns."""
    for axis in (2, 3):
        x = np.moveaxis(x, axis, 0)
        spread = np.zeros((before + up * len(x) + after, *x.shape[1:]))
        for i in range(len(x)):
            spread[before + up * i] = x[i]
        taps = [gain * weight / 8 for weight in (1, 3, 3, 1)]
        rows = range(0, len(spread) - 3, down)
        x = np.moveaxis(np.stack([sum(tap * spread[i + k] for k, tap in enumerate(taps)) for i in rows]), 0, axis)
    return x


def test_filters_are_zero_insertion_filtering_and_decimation():
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 4))
    halved, doubled = filtered(x, 1, 2, 1, 1, gain=1), filtered(x, 2, 1, 2, 1, gain=2)
    np.testing.assert_allclose(FirHalve().double()(torch.from_numpy(x)).numpy(), halved, atol=1e-14)
    np.testing.assert_allclose(FirDouble().double()(torch.from_numpy(x)).numpy(), doubled, atol=1e-14)


def test_filters_keep_constants_and_slopes_inside():
    slope = torch.arange(16.0, dtype=torch.float64).expand(1, 1, 16, 16)
    for image, level in ((torch.ones_like(slope), torch.tensor(1.0)), (slope, torch.arange(16.0)), (slope.mT, None)):
        small, large = FirHalve().double()(image)[..., 1:-1, 1:-1], FirDouble().double()(image)[..., 1:-1, 1:-1]
        # No phase is moved: a small pixel lies in the middle of two, and large ones a quarter beside their own.
        centres, quarters = 2 * torch.arange(8.0)[1:-1] + 0.5, torch.arange(32.0)[1:-1] / 2 - 0.25
        truth = [torch.ones(6), torch.ones(30)] if level is not None and level.dim() == 0 else [centres, quarters]
        for value, line in zip((small, large), truth, strict=True):
            value = value.mT if level is None else value
            torch.testing.assert_close(value, line.double().expand_as(value), rtol=0, atol=1e-12)


def test_filter_and_convolution_equal_their_composition():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 6).double()
    down, up = FirDownsample(3, 5).double(), FirUpsample(3, 5).double()
    for layer in (down, up):
        nn.init.normal_(layer.conv.bias)
    smooth = torch.from_numpy(filtered(x.numpy(), 1, 1, 2, 2, gain=1))
    torch.testing.assert_close(down(x), down.conv(smooth), rtol=0, atol=1e-12)
    spread = torch.zeros(2, 5, 9, 13).double()  # each pixel lays a 3x3 patch; patches of neighbours overlap
    for i in range(4):
        for j in range(6):
            patch = torch.einsum("bc,cokl->bokl", x[:, :, i, j], up.conv.weight)
            spread[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += patch
    truth = torch.from_numpy(filtered(spread.detach().numpy(), 1, 1, 1, 1, gain=2)) + up.conv.bias[:, None, None]
    torch.testing.assert_close(up(x), truth, rtol=0, atol=1e-12)


# --------------------------------------------------------------------------- the Fourier embedding


def test_fourier_features_are_sines_then_cosines():
    waves, t = FourierWaves(8, scale=2.0).double(), torch.tensor([0.0, -4.6, 3.9], dtype=torch.float64)
    frequencies = waves.frequencies.tolist()
    truth = [[f(2 * math.pi * w * value) for f in (math.sin, math.cos) for w in frequencies] for value in t.tolist()]
    torch.testing.assert_close(waves(t), torch.tensor(truth, dtype=torch.float64), rtol=0, atol=1e-12)


def test_frequencies_are_random_saved_and_not_trained():
    torch.manual_seed(0)
    frequencies = FourierWaves(8192, scale=5.0).frequencies
    assert frequencies.std().item() == pytest.approx(5, rel=0.05)
    assert abs(frequencies.mean().item()) < 0.3
    single, triple = (small(fourier_scale=scale).time.waves.frequencies for scale in (1.0, 3.0))
    torch.testing.assert_close(triple, 3 * single)
    net = small()
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["time.waves.frequencies"]
    assert "time.waves.frequencies" in net.state_dict()


def test_a_bfloat16_network_keeps_its_frequencies():
    single = TimeEmbedding(32, 64, FourierWaves(32, 16.0))
    frequencies, levels = single.waves.frequencies.clone(), torch.linspace(-4.6, 3.9, 8)
    with torch.no_grad():
        truth = single(levels)
        half = single.bfloat16()
        assert half(levels).dtype == torch.bfloat16
        assert error(half(levels).float(), truth) < 0.05
    assert half.waves.frequencies.equal(frequencies)


# --------------------------------------------------------------------------- behaviour


@pytest.mark.parametrize("progressive", ["none", "output_skip", "residual"])
def test_the_initial_output_is_almost_zero(progressive):
    torch.manual_seed(0)
    net = NCSNpp(3, 8, **SMALL, progressive=progressive)
    assert 0 < net(torch.randn(2, 3, 8, 8), torch.zeros(2)).abs().max() < 1e-3


@pytest.mark.parametrize("block, shortcut", [("biggan", 1.0), ("ddpm", 0.1)])
def test_initial_variance_of_the_layers(block, shortcut):
    torch.manual_seed(0)
    form = {"channels": 128, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}
    net = NCSNpp(3, 8, **form, resblock_type=block, init_scale=0.5, progressive="residual")
    stage = net.down[1][0]
    expected = {
        stage.residual.conv2.weight: 0.5 / (9 * 256),
        stage.residual.shortcut.weight: shortcut / 192,
        stage.attention.qkv.weight: 0.1 / 256,
        stage.attention.out.weight: 0.5 / 256,
        net.input_pyramid[0].resample.conv.weight: 2 / (9 * (3 + 128)),
        net.output_pyramid[0].head[2].weight: 1 / (9 * 256),
        net.output_pyramid[1].resample.conv.weight: 2 / (9 * (256 + 128)),
        net.conv_out[2].weight: 0.5 * 2 / (9 * (128 + 3)),
    }
    for weight, variance in expected.items():
        assert weight.var().item() == pytest.approx(variance, rel=0.06)
        assert weight.abs().max().item() == pytest.approx(math.sqrt(3 * variance), rel=0.01)


def test_each_sample_is_conditioned_on_its_own_level_unless_unconditional():
    net, x = small(), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        batch = net(x.repeat_interleave(2, dim=0), torch.tensor([-1.0, 2.0]))
        alone = torch.cat([net(x, torch.tensor([level])) for level in (-1.0, 2.0)])
        assert error(batch, alone) < 1e-5
        assert error(batch[:1], batch[1:]) > 0.01
        deaf = small(conditional=False)
        assert deaf(x, torch.tensor([-1.0])).equal(deaf(x, torch.tensor([2.0])))


def test_rotating_kernels_and_image_rotates_the_output():
    net, t = small(progressive="residual"), torch.zeros(4)
    wide = torch.randn(4, 3, 8, 12)
    with torch.no_grad():
        truth = net(wide, t)
        for parameter in net.parameters():
            if parameter.dim() == 4:
                parameter.copy_(parameter.mT.clone())
        assert error(net(wide.mT, t).mT, truth) < 1e-5


def test_out_channels_may_be_more():
    for progressive in ("none", "output_skip", "residual"):
        assert small(progressive=progressive, out_channels=6)(torch.randn(2, 3, 8, 8), torch.zeros(2)).shape == (
            2,
            6,
            8,
            8,
        )


def test_dropout_only_in_training():
    net, x, t = small(dropout=0.5), torch.randn(4, 3, 8, 8), torch.zeros(4)
    with torch.no_grad():
        kept = small().train()(x, t)
        assert net(x, t).equal(kept)
        assert error(net.train()(x, t), kept) > 0.05


def test_channels_last_changes_the_memory_but_not_the_output():
    x, t = torch.randn(4, 3, 8, 8), torch.zeros(4)
    for form in ({}, DDPMPP, {"progressive": "output_skip", "progressive_input": "input_skip"}):
        net = small(**form)
        with torch.no_grad():
            rows = net(x, t)
            pixels = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), t)
        assert pixels.is_contiguous(memory_format=torch.channels_last)
        assert error(pixels, rows) < 1e-5


def test_checkpointing_gives_the_same_gradients_with_less_memory():
    made = lambda checkpoint: (small(checkpoint=checkpoint, dropout=0.5), torch.randn(4, 3, 8, 8), torch.zeros(4))  # noqa: E731
    assert_checkpointing_saves_memory_alone(made, share=0.6)


def test_compiles_into_one_graph_under_the_same_names():
    net, x, t = small(multipliers=(1, 2)), torch.randn(4, 3, 8, 8), torch.zeros(4)
    names, truth = list(net.state_dict()), net(x, t)
    net.compile(backend="aot_eager", fullgraph=True)
    output = net(x, t)
    output.sum().backward()
    assert error(output, truth) < 1e-5
    assert list(net.state_dict()) == names


def test_bfloat16_stays_near_float32():
    net, x, t = small(), torch.randn(4, 3, 8, 8), torch.linspace(-4, 4, 4)
    with torch.no_grad():
        single = net(x, t)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert 0 < error(net(x, t).float(), single) < 0.05
        assert 0 < error(net.bfloat16()(x.bfloat16(), t).float(), single) < 0.1


# --------------------------------------------------------------------------- configuration and refusals


@pytest.mark.parametrize(
    "form, message",
    [
        ({"image_size": 30}, "image_size=30 cannot be halved 3 times.*multiple of 8"),
        ({"attention": [12, 16]}, r"attention=\[12\].*choose from \[32, 16, 8, 4\]"),
        ({"channels": 22}, "22 channels do not divide into groups=5.*such as 1$"),
        ({"channels": 3, "embedding": "fourier"}, "channels=3.*at least 4"),
        ({"blocks": 0}, "blocks=0.*at least 1"),
        ({"multipliers": []}, r"multipliers=\[\] must be of length 1 or more"),
        ({"multipliers": [1], "attention": [], "progressive": "residual"}, "at least two multipliers"),
        ({"resblock_type": "x"}, "resblock_type='x' must be one of biggan, ddpm"),
        ({"progressive": "x"}, "progressive='x' must be one of none, output_skip, residual"),
        ({"progressive_input": "x"}, "progressive_input='x' must be one of none, input_skip, residual"),
        ({"progressive_combine": "x"}, "progressive_combine='x' must be one of sum, cat"),
        ({"embedding": "x"}, "embedding='x' must be one of fourier, positional"),
    ],
)
def test_sizes_and_options_that_do_not_fit_are_refused(form, message):
    with pytest.raises(ValueError, match=message) as refused, torch.device("meta"):
        NCSNpp(**{"in_channels": 3, "image_size": 32, **form})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 8, 6), (3, 8, 8)])
def test_inputs_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"the network needs \(batch, 3, height, width\), .* divisible by 4"):
        small()(torch.zeros(shape), torch.zeros(2))


def test_weights_that_do_not_fit_are_refused_in_one_line():
    net, weights = small(CASES[0]), official_weights(CASES[0])
    first, last = "all_modules.0.W", CASES[0]["layout"][-1][0]
    without = {name: w for name, w in weights.items() if name != first}
    broken = [
        (without, f"missing '{first}'$"),
        ({**weights, "extra": torch.ones(1)}, "unexpected 'extra'$"),
        ({}, r"missing 'all_modules.0.W', '.*', '.*' and \d+ more$"),
        ({**weights, last: torch.ones(4)}, rf"'{last}' has shape \(4,\).*'conv_out.2.bias', \(3,\)"),
    ]
    for state, message in broken:
        with pytest.raises(ValueError, match=message) as refused:
            score_sde.ncsnpp(net, state)
        assert "\n" not in str(refused.value)
