"""The U-Net and MLP against the equations and claims of their docstrings."""

from __future__ import annotations

import inspect
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from diffusion_lab.network import MLP, UNet
from diffusion_lab.network.blocks import AttentionBlock, ResidualBlock
from diffusion_lab.network.embedding import TimeEmbedding, sinusoidal
from diffusion_lab.network.layers import Dropout
from diffusion_lab.network.resample import Downsample, Upsample

CONF = Path(__file__).parents[1] / "conf" / "network"

FRESH = {
    "unet": lambda **form: UNet(
        3, 8, **{"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "groups": 4, **form}
    ),
    "mlp": lambda: MLP(3, width=32),
}
SHAPES = {"unet": (3, 8, 8), "mlp": (3,)}
both = pytest.mark.parametrize("kind", FRESH)


def case(kind: str, batch: int = 4, **form: object) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in evaluation mode with weights of normal size in every layer, and an input."""
    torch.manual_seed(0)
    net = randomise(FRESH[kind](**form)).eval()
    return net, torch.randn(batch, *SHAPES[kind]), torch.linspace(0, 999, batch)


def randomise(net: nn.Module) -> nn.Module:
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=(parameter[0].numel() if parameter.dim() > 1 else 10) ** -0.5)
    return net


def error(value: Tensor, truth: Tensor) -> float:
    return ((value - truth).abs().max() / truth.abs().max()).item()


# --------------------------------------------------------------------------- parts


def test_sinusoidal_frequencies_are_from_1_to_1e_4():
    t = torch.tensor([0.0, 1.0, 999.0], dtype=torch.float64)
    frequencies = [1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3), 1e-4]
    truth = [[wave(value * w) for wave in (math.sin, math.cos) for w in frequencies] for value in t.tolist()]
    torch.testing.assert_close(sinusoidal(t, 8), torch.tensor(truth, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_a_bfloat16_network_distinguishes_neighbouring_levels():
    embedding = TimeEmbedding(32, 64).bfloat16()
    levels = torch.tensor([998, 999])
    assert levels.bfloat16().unique().numel() == 1
    with torch.no_grad():
        low, high = embedding(levels).float()
    assert (low - high).abs().max() > 0.05 * low.abs().max()


def test_downsampling_pads_below_and_right_only():
    layer, x = Downsample(1), torch.arange(1.0, 17).reshape(1, 1, 4, 4)
    nn.init.zeros_(layer.conv.weight)
    with torch.no_grad():
        layer.conv.weight[0, 0, 0, 0] = 1
        assert layer(x).equal(torch.tensor([[[[1.0, 3], [9, 11]]]]))
        layer.conv.weight[0, 0, 2, 2] = 1
        assert layer(x).equal(torch.tensor([[[[1.0 + 11, 3], [9, 11]]]]))


def test_upsampling_repeats_pixels():
    layer, x = Upsample(1), torch.tensor([[[[1.0, 2], [3, 4]]]])
    nn.init.dirac_(layer.conv.weight)
    with torch.no_grad():
        assert layer(x).equal(x.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_is_softmax_attention_head_by_head(heads):
    torch.manual_seed(0)
    block, x = randomise(AttentionBlock(16, groups=4, heads=heads)).double(), torch.randn(2, 16, 3, 5).double()
    h = F.group_norm(x, 4, block.norm.weight, block.norm.bias, eps=1e-6)
    q, k, v = (
        torch.einsum("oc,bchw->bohw", weight, h).flatten(2) + bias[:, None]
        for weight, bias in zip(block.qkv.weight.chunk(3), block.qkv.bias.chunk(3), strict=True)
    )
    mixed = []
    for rows in torch.arange(16).chunk(heads):
        weights = torch.einsum("bcn,bcm->bnm", q[:, rows], k[:, rows]) / math.sqrt(len(rows))
        mixed.append(torch.einsum("bnm,bcm->bcn", weights.softmax(dim=2), v[:, rows]))
    truth = torch.einsum("oc,bcn->bon", block.out.weight, torch.cat(mixed, 1)) + block.out.bias[:, None]
    torch.testing.assert_close(block(x), x + truth.reshape(x.shape), rtol=1e-10, atol=1e-10)


def test_mlp_is_its_equation():
    torch.manual_seed(0)
    net, x, t = randomise(MLP(2, width=8, depth=2, embedding=6)).double(), torch.randn(5, 2).double(), torch.arange(5.0)
    e = net.time(t)
    h = x @ net.linear_in.weight.T + net.linear_in.bias
    modulation = (e @ net.modulation.weight.T + net.modulation.bias).reshape(5, 2, 2, 8)
    for i, layer in enumerate(net.hidden):
        z = (1 + modulation[:, 0, i]) * (h @ layer.weight.T + layer.bias) + modulation[:, 1, i]
        h = h + z / (1 + torch.exp(-z))
    torch.testing.assert_close(net(x, t), h @ net.linear_out.weight.T + net.linear_out.bias, rtol=1e-10, atol=1e-10)


# --------------------------------------------------------------------------- the start of training


@pytest.mark.parametrize("pointwise", [1.0, 0.1])
def test_initial_variance_of_every_layer(pointwise):
    torch.manual_seed(0)
    residual, attention = ResidualBlock(128, 192, 256, pointwise_scale=pointwise), AttentionBlock(128, 32, 1, pointwise)
    expected = {  # scale / fan average, of a uniform distribution: its bound is sqrt(3) standard deviations
        residual.conv1.weight: 1 / (9 * 160),
        residual.shift.weight: 1 / 224,
        residual.conv2.weight: 1e-10 / (9 * 192),
        residual.shortcut.weight: pointwise / 160,
        attention.qkv.weight: pointwise / 128,
        attention.out.weight: 1e-10 / 128,
    }
    for weight, variance in expected.items():
        assert weight.var().item() == pytest.approx(variance, rel=0.03)
        assert weight.abs().max().item() == pytest.approx(math.sqrt(3 * variance), rel=0.01)
    biases = [p for block in (residual, attention) for name, p in block.named_parameters() if name.endswith("bias")]
    assert all(bias.count_nonzero() == 0 for bias in biases)


@both
def test_the_initial_output_is_almost_zero(kind):
    torch.manual_seed(0)
    output = FRESH[kind]()(torch.randn(4, *SHAPES[kind]), torch.linspace(0, 999, 4))
    assert 0 < output.abs().max() < 1e-3


@both
def test_gradients_reach_every_parameter(kind):
    net, x, t = case(kind)
    net.train().double()(x.double(), t).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-6] == []


# --------------------------------------------------------------------------- behaviour


@both
def test_each_sample_is_conditioned_on_its_own_level(kind):
    net, x, _ = case(kind, batch=1)
    with torch.no_grad():
        batch = net(x.repeat_interleave(2, dim=0), torch.tensor([998, 999]))
        alone = torch.cat([net(x, torch.tensor([level])) for level in (998.0, 999.0)])
    assert error(batch, alone) < 1e-5
    assert error(batch[:1], batch[1:]) > 0.01


def test_dropout_only_in_training():
    net, x, t = case("unet", dropout=0.5)
    with torch.no_grad():
        kept = case("unet", dropout=0.0)[0].train()(x, t)
        assert net(x, t).equal(kept)
        first, second = net.train()(x, t), net(x, t)
    assert error(first, kept) > 0.05
    assert error(first, second) > 0.05


def test_dropout_is_applied_before_the_second_convolution():
    """conv2(dropout(silu(norm2(h)))), as in DDPM and score_sde: behind it, the same images come out of other noise."""
    block = ResidualBlock(8, 8, None, groups=2, dropout=0.5, init_scale=1.0).train()
    seen = {}
    for name in ("norm2", "conv2"):
        getattr(block, name).register_forward_hook(
            lambda _, given, out, name=name: seen.update({name: (given[0], out)})
        )
    x = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = block(x, None)
    before, after = seen["conv2"]
    whole = seen["norm2"][1]  # silu included
    kept = before != 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(before, torch.where(kept, 2 * whole, 0))
    torch.testing.assert_close(y, x + after)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.875])
def test_dropout_keeps_the_mean_and_is_independent(p):
    torch.manual_seed(0)
    x = torch.ones(64, 32, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
    y = Dropout(p)(x)
    kept = (y != 0).double()
    torch.testing.assert_close(y, (kept / (1 - p)).float())
    assert y.is_contiguous(memory_format=torch.channels_last)
    deviation = (p * (1 - p)) ** 0.5
    assert abs(kept.mean() - (1 - p)).item() < 4 * deviation / kept.numel() ** 0.5
    for dim in range(4):  # the mean over all but one index has the spread of independent draws
        spread = kept.mean([d for d in range(4) if d != dim]).std() * (kept.numel() / kept.shape[dim]) ** 0.5
        assert 0.4 * deviation < spread < 1.6 * deviation
        apart, length = kept - (1 - p), kept.shape[dim] - 1
        neighbours = apart.narrow(dim, 1, length) * apart.narrow(dim, 0, length)
        assert abs(neighbours.mean()) < 4 * deviation**2 / neighbours.numel() ** 0.5
    y.sum().backward()
    assert x.grad.equal(y)


@pytest.mark.parametrize("p, factor", [(0.0, 1.0), (1.0, 0.0)])
def test_dropout_with_probability_0_and_1(p, factor):
    x = torch.randn(2, 3)
    assert Dropout(p)(x).equal(factor * x)
    assert Dropout(0.5).eval()(x).equal(x)
    assert Dropout(1e-17)(x).equal(x) and not Dropout(1 - 1e-12)(x).any(), "next to nothing, next to all"
    assert Dropout(0.5)(x.bfloat16()).dtype == torch.bfloat16


def test_channels_last_changes_the_memory_but_not_the_output():
    net, x, t = case("unet")
    with torch.no_grad():
        rows = net(x, t)
        pixels = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), t)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert error(pixels, rows) < 1e-5


def test_rotating_kernels_and_image_rotates_the_output():
    net, _, t = case("unet")
    wide = torch.randn(4, 3, 8, 12)
    with torch.no_grad():
        truth = net(wide, t)
        for parameter in net.parameters():
            if parameter.dim() == 4:
                parameter.copy_(parameter.mT.clone())
        assert error(net(wide.mT, t).mT, truth) < 1e-5


@both
def test_bfloat16_autocast_stays_near_float32(kind):
    net, x, t = case(kind)
    with torch.no_grad():
        single = net(x, t)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = net(x, t)
    assert mixed.dtype == torch.bfloat16
    assert 0 < error(mixed.float(), single) < 0.05


def assert_checkpointing_saves_memory_alone(made, share=0.5):
    """Check for equal gradients with less than this share of memory; made(checkpoint=...) is (network, x, t)."""

    def gradients(checkpoint: bool) -> tuple[list[Tensor], int]:
        (net, x, t), kept = made(checkpoint=checkpoint), []
        with torch.autograd.graph.saved_tensors_hooks(lambda s: kept.append(s.numel()) or s, lambda s: s):
            torch.manual_seed(1)
            loss = net.train()(x, t).square().sum()
        loss.backward()
        return [parameter.grad for parameter in net.parameters() if parameter.requires_grad], sum(kept)

    (plain, all_kept), (again, few_kept) = gradients(False), gradients(True)
    for gradient, truth in zip(again, plain, strict=True):
        torch.testing.assert_close(gradient, truth)
    assert few_kept < share * all_kept


def test_checkpointing_gives_the_same_gradients_with_less_memory():
    assert_checkpointing_saves_memory_alone(partial(case, "unet", dropout=0.5))


@both
def test_compiles_into_one_graph_under_the_same_names(kind):
    net, x, t = case(kind)
    names = list(net.state_dict())
    truth = net(x, t)
    net.compile(backend="aot_eager", fullgraph=True)
    output = net(x, t)
    output.sum().backward()
    assert error(output, truth) < 1e-5
    assert list(net.state_dict()) == names


# --------------------------------------------------------------------------- configuration and refusals


@pytest.mark.parametrize(
    "name, shape",
    [
        ("unet", [3, 32, 32]),
        ("unet_small", [1, 8, 8]),
        ("mlp", [2]),
        ("ncsnpp", [3, 32, 32]),
        ("ddpmpp", [3, 32, 32]),
        ("ddpm_score_sde", [3, 32, 32]),
    ],
)
def test_a_configuration_has_every_argument_with_a_comment(name, shape):
    text = (CONF / f"{name}.yaml").read_text()
    config = OmegaConf.create({"data": {"shape": shape}, "network": OmegaConf.create(text)}).network
    with torch.device("meta"):
        net = instantiate(config)
        assert net(torch.empty(2, *shape), torch.empty(2)).shape == (2, *shape)
    assert set(config) - {"_target_"} == set(inspect.signature(type(net)).parameters)
    silent = [line for line in text.splitlines() if "#" not in line and "${" not in line and "_target_" not in line]
    assert silent == []


@pytest.mark.parametrize(
    "form, message",
    [
        ({"image_size": 30}, "image_size=30 cannot be halved 3 times.*multiple of 8"),
        ({"attention": [12, 16]}, r"attention=\[12\].*choose from \[32, 16, 8, 4\]"),
        ({"channels": 48}, "48 channels do not divide into groups=32.*such as 16"),
        ({"heads": 3}, "256 channels: heads=3 does not divide"),
        ({"channels": 2, "groups": 2}, "TimeEmbedding: dimension=2 must be at least 4 and a multiple of 2"),
        ({"blocks": 0}, "blocks=0.*at least 1"),
        ({"multipliers": []}, r"multipliers=\[\] must be of length 1 or more"),
        ({"up_attention": "first"}, "up_attention='first' must be one of every, last"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(form, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        UNet(**{"in_channels": 3, "image_size": 32, **form})


@pytest.mark.parametrize("form", [{"width": 0}, {"depth": 0}, {"dimensions": 0}])
def test_an_empty_mlp_is_refused(form):
    with pytest.raises(ValueError, match=f"{next(iter(form))}=0.*at least 1"):
        MLP(**form)


@pytest.mark.parametrize(
    "net, shape, message",
    [
        (FRESH["unet"], (2, 1, 8, 8), r"\(2, 1, 8, 8\): the network needs \(batch, 3, height, width\)"),
        (FRESH["unet"], (2, 3, 8, 7), "divisible by 2"),
        (FRESH["unet"], (3, 8, 8), r"\(3, 8, 8\)"),
        (FRESH["mlp"], (2, 2), r"\(2, 2\).*\(batch, 3\)"),
    ],
)
def test_inputs_of_another_shape_are_refused(net, shape, message):
    with pytest.raises(ValueError, match=message):
        net()(torch.zeros(shape), torch.zeros(2))
