"""The RefineNets against the official ones with the same weights, and against their formulas."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic import recipe_weights
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_network import assert_checkpointing_saves_memory_alone
from torch import Tensor, nn

from diffusion_lab.interop.ncsn import refinenet, trainable_order
from diffusion_lab.network import RefineNet
from diffusion_lab.network.normalization import ConditionalInstanceNormPlus, InstanceNormPlus, Position
from diffusion_lab.network.refine import ChainedPooling, DilatedBlock, Fusion

COUNTS = json.loads((Path(__file__).parent / "reference" / "param_counts.json").read_text())
CONF = Path(__file__).parents[1] / "conf" / "network"
NCSN = {"levels": 10, "pool": "average"}
DEEPER = {"multipliers": (1, 2, 2, 4, 4), "dilations": (1, 1, 1, 2, 4)}
DEEPEST = {"multipliers": (1, 2, 2, 2, 4, 4), "dilations": (1, 1, 1, 1, 2, 4)}


def error(value: Tensor, truth: Tensor) -> float:
    return ((value - truth).abs().max() / truth.abs().max()).item()


def official(layout: list, kinds: dict[str, str]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(weight) for name, weight in recipe_weights(layout, kinds=kinds).items()}


def small(**form: object) -> RefineNet:
    """A network of two stages with weights of normal size."""
    torch.manual_seed(0)
    form = {"channels": 8, "multipliers": (1, 2), "dilations": (1, 1), **form}
    net = RefineNet(3, 8, **form)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=(parameter[0].numel() if parameter.dim() == 4 else 4) ** -0.5)
    return net


def inputs(batch: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3, 8, 8), torch.linspace(0, 9, batch)


# --------------------------------------------------------------------------- the official networks


@pytest.mark.parametrize("name, form", [("net_ncsn_small", NCSN), ("net_ncsnv2_small", {})])
def test_same_weights_give_the_official_output(recorded, name, form):
    record = recorded(name)
    weights = official(record.meta["layout"], record.meta["kinds"])
    net = RefineNet(3, 16, channels=16, **form).eval()
    net.load_state_dict(refinenet(net, weights))
    assert trainable_order(net) == record.meta["trainable_order"]
    x, level = record["x"], record["cond"]
    # The official networks move x to [-1, 1] themselves, and NCSNv2's divides by its sigma.
    sigmas = torch.exp(torch.linspace(np.log(50), np.log(0.01), 232, dtype=torch.float64)).float()
    sigma = 1 if form else sigmas[level][:, None, None, None].double()
    with torch.no_grad():
        assert error(net(2 * x - 1, level) / sigma, record["y_f32"]) < 5e-6
        assert error(net.double()(2 * x.double() - 1, level) / sigma, record["y_f64"]) < 1e-12


@pytest.mark.parametrize("name, form", [("ncsn_28", NCSN), ("ncsnv2_deeper", DEEPER), ("ncsnv2_deepest", DEEPEST)])
def test_other_sizes_give_the_official_output(recorded, name, form):
    record = recorded("net_refinenet_variants")
    x, level = record[f"{name}.x"].double(), record[f"{name}.cond"]
    net = RefineNet(3, x.shape[-1], channels=16, **form).eval()
    net.load_state_dict(refinenet(net, official(record.meta["layout"][name], record.meta["kinds"])))
    assert trainable_order(net) == record.meta["trainable_order"][name]
    with torch.no_grad():
        assert error(net.double()(2 * x - 1, level), record[f"{name}.y_f64"]) < 1e-12


@pytest.mark.parametrize(
    "name, shape, form, count",
    [
        ("ncsn", (3, 32, 32), {}, COUNTS["ncsn.cifar10(ngf=128)"]),
        ("ncsn", (1, 28, 28), {"channels": 64}, COUNTS["ncsn.mnist(ngf=64,28)"]),
        ("ncsnv2", (3, 32, 32), {}, COUNTS["ncsnv2.cifar10"]),
        # The official classes, built for LSUN at 128 pixels and for FFHQ at 256.
        ("ncsnv2", (3, 128, 128), DEEPER, 83_445_379),
        ("ncsnv2", (3, 256, 256), DEEPEST, 94_132_611),
    ],
)
def test_parameter_counts_of_the_papers(name, shape, form, count):
    with torch.device("meta"):
        net = instantiate(config(name, shape), **form)
    assert sum(parameter.numel() for parameter in net.parameters()) == count


def test_weights_of_another_network_are_refused_by_name(recorded):
    record = recorded("net_ncsn_small")
    weights, net = official(record.meta["layout"], {}), RefineNet(3, 16, channels=16, **NCSN)
    with pytest.raises(ValueError, match="^these weights are not of this RefineNet: missing 'begin_conv.bias'$"):
        refinenet(net, {name: w for name, w in weights.items() if name != "begin_conv.bias"})
    with pytest.raises(ValueError, match="unexpected 'refine5.crp.convs.0.weight'$"):
        refinenet(net, weights | {"refine5.crp.convs.0.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"'normalizer.embed.weight' has shape \(10, 48\).*'norm.table', \(12, 48\)"):
        refinenet(RefineNet(3, 16, channels=16, levels=12, pool="average"), weights)


# --------------------------------------------------------------------------- normalisation


def truth_of_norm(x: np.ndarray, gamma: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """The formula, for each image and channel in a loop."""
    y = np.empty_like(x)
    for image, (gains, mixes, shifts) in enumerate(zip(gamma, alpha, beta, strict=True)):
        means = [plane.mean() for plane in x[image]]
        middle = sum(means) / len(means)
        spread = sum((mean - middle) ** 2 for mean in means) / (len(means) - 1)
        for k, plane in enumerate(x[image]):
            own = (plane - means[k]) / np.sqrt(plane.var() + 1e-5)
            y[image, k] = gains[k] * (own + mixes[k] * (means[k] - middle) / np.sqrt(spread + 1e-5)) + shifts[k]
    return y


def test_instance_norm_plus_is_its_formula():
    random = np.random.RandomState(0)
    x, rows = 0.01 * random.randn(4, 5, 3, 6) + random.randn(4, 5, 1, 1) * 0.01, random.randn(3, 15)
    gamma, alpha, beta = np.split(rows, 3, axis=1)
    single, conditional = InstanceNormPlus(5).double(), ConditionalInstanceNormPlus(5, levels=3).double()
    with torch.no_grad():
        conditional.table.copy_(torch.from_numpy(rows))
        for name, row in (("gamma", gamma), ("alpha", alpha), ("beta", beta)):
            getattr(single, name).copy_(torch.from_numpy(row[1]))
        levels, same = [2, 0, 1, 1], [1, 1, 1, 1]
        output = conditional(torch.from_numpy(x), Position.of(torch.tensor(levels), 3))
        np.testing.assert_allclose(output, truth_of_norm(x, gamma[levels], alpha[levels], beta[levels]), rtol=1e-10)
        output = single(torch.from_numpy(x))
        np.testing.assert_allclose(output, truth_of_norm(x, gamma[same], alpha[same], beta[same]), rtol=1e-10)


def test_a_norm_is_interpolated_between_levels_and_constant_beyond_the_last():
    torch.manual_seed(0)
    norm = ConditionalInstanceNormPlus(4, levels=10)
    nn.init.normal_(norm.table)
    wide = norm.table.detach().double()
    t = torch.tensor([0.0, 3.0, 9.0, 3.25, 8.5, -2.0, 11.0])
    rows = torch.stack([wide[0], wide[3], wide[9], 0.75 * wide[3] + 0.25 * wide[4], wide[8:].mean(0), wide[0], wide[9]])
    x = torch.randn(1, 4, 5, 5).repeat(len(t), 1, 1, 1)
    with torch.no_grad():
        output = norm(x, Position.of(t, 10))
        np.testing.assert_allclose(
            output, truth_of_norm(x.double().numpy(), *rows.numpy().reshape(7, 3, 4).transpose(1, 0, 2)), atol=1e-5
        )
        # At whole numbers nothing of the neighbour is left, of whatever type the number is.
        norm.table[4] = 1e30
        assert norm(x[1:2], Position.of(t[1:2], 10)).equal(norm(x[1:2], Position.of(torch.tensor([3]), 10)))
        assert error(norm(x[1:2], Position.of(t[1:2], 10)), output[1:2]) == 0


def test_a_norm_with_float32_weights_computes_in_float32():
    norm, x = InstanceNormPlus(4), (5 + 0.1 * torch.randn(2, 4, 6, 6)).bfloat16()
    with torch.no_grad():
        assert norm(x).equal(norm(x.float()))


def test_a_bfloat16_network_uses_the_exact_level():
    position = Position.of(torch.tensor([7, 501]), 502)
    assert position.below.tolist() == position.above.tolist() == [7, 501]
    net = small(**NCSN).bfloat16()
    x, _ = inputs(2)
    with torch.no_grad():
        assert not net(x.bfloat16(), torch.tensor([3.0, 3.0])).equal(net(x.bfloat16(), torch.tensor([3.0, 3.5])))


# --------------------------------------------------------------------------- parts


def test_the_first_block_of_a_stage_halves_or_dilates():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    halving, dilating = DilatedBlock(4, 6, first=True), DilatedBlock(4, 6, dilation=2, first=True)
    for block in (halving, dilating):
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
    means = x.unflatten(3, (3, 2)).unflatten(2, (3, 2)).mean((3, 5))
    with torch.no_grad():
        truth = torch.einsum("oc,bchw->bohw", halving.shortcut.weight[:, :, 0, 0], means)
        assert error(halving(x, None), truth + halving.shortcut.bias[:, None, None]) < 1e-6
        nn.init.zeros_(dilating.shortcut.weight)
        dilating.shortcut.weight[:4, :, 0, 2] = torch.eye(4)
        output = dilating(x, None) - dilating.shortcut.bias[:, None, None]
        assert error(output[:, :4, 2:, :4], x[:, :, :4, 2:]) < 1e-6
        assert output[:, :4, :2].abs().max() < 1e-6


@pytest.mark.parametrize("pool", ["average", "max"])
def test_chained_pooling_adds_each_link(pool):
    layer, x = ChainedPooling(2, None, pool), torch.randn(1, 2, 7, 7)
    for conv in layer.convs:
        nn.init.dirac_(conv.weight)
    h = torch.where(x > 0, x, torch.expm1(x))
    edge, gather = (0.0, lambda w: w.mean((4, 5))) if pool == "average" else (-torch.inf, lambda w: w.amax((4, 5)))

    def link(h: Tensor) -> Tensor:
        return gather(nn.functional.pad(h, (2, 2, 2, 2), value=edge).unfold(2, 5, 1).unfold(3, 5, 1))

    with torch.no_grad():
        assert error(layer(x, None), h + link(h) + link(link(h))) < 1e-6


def test_fusion_resamples_the_smaller_input_with_aligned_corners():
    layer = Fusion([1, 1], 1, None)
    for conv in layer.convs:
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    coarse = torch.tensor([[0.0, 3.0], [6.0, 9.0]])[None, None]
    ramp = torch.arange(4.0)
    with torch.no_grad():
        output = layer([torch.ones(1, 1, 4, 4), coarse], None)
    torch.testing.assert_close(output[0, 0], 1 + ramp + 2 * ramp[:, None])


# --------------------------------------------------------------------------- the start of training


def test_weights_are_initialised_as_in_the_official_code():
    torch.manual_seed(0)
    net = RefineNet(3, 8, channels=64, multipliers=(1, 2), dilations=(1, 1), **NCSN)
    table = net.norm.table
    assert table[:, :128].mean().item() == pytest.approx(1, abs=0.003)
    assert table[:, :128].std().item() == pytest.approx(0.02, rel=0.08)
    assert table[:, 128:].count_nonzero() == 0
    norm = InstanceNormPlus(1000)
    assert norm.gamma.std().item() == pytest.approx(0.02, rel=0.1)
    assert norm.alpha.mean().item() == pytest.approx(1, abs=0.005)
    assert norm.beta.count_nonzero() == 0
    # torch's own start of a convolution: uniform, within 1 / sqrt(fan_in).
    weight = net.up[0].units.units[0][0].conv.weight
    assert weight.abs().max().item() == pytest.approx(1 / np.sqrt(9 * 128), rel=0.01)
    assert weight.var().item() == pytest.approx(1 / (3 * 9 * 128), rel=0.03)


@pytest.mark.parametrize("form", [NCSN, {}])
def test_gradients_reach_every_parameter(form):
    net, (x, t) = small(dilations=(1, 2), **form).double(), inputs()
    net(x.double(), t).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-6] == []


def test_a_level_between_two_trains_both_in_proportion():
    net, (x, _) = small(**NCSN).double(), inputs(1)
    net(x.double(), torch.tensor([3.25], dtype=torch.float64)).square().sum().backward()
    gradient = net.norm.table.grad
    torch.testing.assert_close(gradient[3] / 3, gradient[4], rtol=1e-12, atol=0)
    assert gradient.abs().sum(1).nonzero().flatten().tolist() == [3, 4]


# --------------------------------------------------------------------------- behaviour


def test_each_sample_is_conditioned_on_its_own_level():
    net, (x, _) = small(**NCSN), inputs(1)
    with torch.no_grad():
        batch = net(x.repeat(2, 1, 1, 1), torch.tensor([2.5, 7]))
        alone = torch.cat([net(x, torch.tensor([level])) for level in (2.5, 7.0)])
    assert error(batch, alone) < 1e-5
    assert error(batch[:1], batch[1:]) > 0.05


def test_a_network_without_levels_ignores_t():
    net, (x, t) = small(), inputs()
    with torch.no_grad():
        assert net(x, t).equal(net(x, torch.full_like(t, torch.nan)))


@pytest.mark.parametrize("form", [NCSN, {}])
def test_channels_last_changes_the_memory_but_not_the_output(form):
    net, (x, t) = small(**form), inputs()
    with torch.no_grad():
        rows = net(x, t)
        pixels = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), t)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert error(pixels, rows) < 1e-5


@pytest.mark.parametrize("form", [NCSN, {}])
def test_bfloat16_autocast_stays_near_float32(form):
    net, (x, t) = small(**form), inputs()
    with torch.no_grad():
        single = net(x, t)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = net(x, t)
    assert mixed.dtype == torch.bfloat16
    assert 0 < error(mixed.float(), single) < 0.05


@pytest.mark.parametrize("form", [NCSN, {}])
def test_checkpointing_gives_the_same_gradients_with_less_memory(form):
    assert_checkpointing_saves_memory_alone(lambda checkpoint: (small(checkpoint=checkpoint, **form), *inputs()))


def test_second_derivatives_exist():
    net, (x, _) = small(**NCSN).double(), inputs(1)
    x = x.double().requires_grad_()
    torch.autograd.gradgradcheck(lambda z: net(z, torch.tensor([3.0]))[:, :, 0, 0].sum(), x, fast_mode=True)


def test_compiles_into_one_graph_under_the_same_names():
    net, (x, t) = small(blocks=1, **NCSN), inputs()
    names, truth = list(net.state_dict()), net(x, t)
    net.compile(backend="eager", fullgraph=True)
    output = net(x, t)
    output.sum().backward()
    assert error(output, truth) < 1e-5
    assert list(net.state_dict()) == names


# --------------------------------------------------------------------------- configuration and refusals


def config(name: str, shape: tuple[int, ...]) -> object:
    text = (CONF / f"{name}.yaml").read_text()
    whole = {"data": {"shape": list(shape)}, "model": {"levels": 10}, "network": OmegaConf.create(text)}
    return OmegaConf.create(whole).network


@pytest.mark.parametrize(
    "name, shape",
    [("ncsn", (3, 32, 32)), ("ncsnv2", (3, 32, 32)), ("ncsn_small", (1, 8, 8)), ("ncsnv2_small", (1, 8, 8))],
)
def test_a_configuration_has_every_argument_with_a_comment(name, shape):
    text, node = (CONF / f"{name}.yaml").read_text(), config(name, shape)
    with torch.device("meta"):
        net = instantiate(node)
        assert net(torch.empty(2, *shape), torch.empty(2)).shape == (2, *shape)
    assert set(node) - {"_target_"} == set(inspect.signature(RefineNet).parameters)
    assert [line for line in text.splitlines() if "#" not in line and "${" not in line and "_target_" not in line] == []
    written = text.splitlines()[0].replace(",", "").split()
    assert str(sum(p.numel() for p in net.parameters())) in written


@pytest.mark.parametrize(
    "form, message",
    [
        ({"image_size": 31}, "image_size=31 cannot be halved 1 times.*multiple of 2"),
        ({"image_size": 34, **DEEPER}, "image_size=34 cannot be halved 2 times.*multiple of 4"),
        ({"dilations": (1, 1, 2)}, r"dilations=\[1, 1, 2\].*one number per stage"),
        ({"dilations": (1, 1, 0, 4)}, "a list whose elements are at least 1"),
        ({"multipliers": ()}, "of length 1 or more"),
        ({"blocks": 0}, "blocks=0"),
        ({"levels": 0}, "levels=0 must be at least 1"),
        ({"pool": "sum"}, "pool='sum' must be one of average, max"),
        ({"channels": 1}, "channels=1 must be at least 2"),
        ({"channels": 1, **NCSN}, "channels=1 must be at least 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(form, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        RefineNet(**{"in_channels": 3, "image_size": 32, **form})


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 8, 7), (3, 8, 8)])
def test_inputs_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"needs \(batch, 3, height, width\), height and width divisible by 2"):
        small()(torch.zeros(shape), torch.zeros(2))
