"""Winograd's convolution: equal to the direct sum, with derivatives of every order, and as accurate in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap

from diffusion_lab.network import UNet, tiles, winograd
from diffusion_lab.network.layers import Conv3x3
from diffusion_lab.network.winograd import Convolution, conv3x3


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def always(monkeypatch):
    """Use the algorithm for every size and precision."""
    monkeypatch.setattr(winograd, "pays", lambda *_: True)


def test_its_matrices_compute_four_correlations():
    a, d, g = winograd.matrices(torch.float64)
    data, weight = normal(6), normal(3, seed=1)
    expected = torch.stack([data[i : i + 3] @ weight for i in range(4)])
    torch.testing.assert_close(a @ ((g @ weight) * (d @ data)), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("count", [1, 32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_it_equals_the_direct_sum(always, monkeypatch, layout, dilation, count):
    monkeypatch.setattr(tiles, "TILES", count)
    x = normal(5, 3, 32, 16).to(memory_format=layout)
    weight, bias = normal(4, 3, 3, 3, seed=1).to(memory_format=layout), normal(4, seed=2)
    expected = F.conv2d(x, weight, bias, padding=dilation, dilation=dilation)
    torch.testing.assert_close(conv3x3(x, weight, bias, dilation), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("batch", "threads", "parts"), [(6, 3, (0, 3)), (6, 4, (1, 4)), (3, 2, (1, 2)), (5, 3, (0, 1))]
)
def test_parts_for_threads_give_the_same_result_and_gradients(always, monkeypatch, batch, threads, parts):
    """The images are divided by number, or each by rows, or not at all."""
    monkeypatch.setattr(tiles, "TILES", 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x, weight = normal(batch, 3, 32, 8).requires_grad_(), normal(4, 3, 3, 3, seed=1).requires_grad_()
    assert tiles.Parts.of(x.permute(0, 2, 3, 1)) == parts
    y, expected = conv3x3(x, weight, None), F.conv2d(x, weight, padding=1)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    direction = normal(*y.shape, seed=2)
    gradients = (torch.autograd.grad(one, (x, weight), direction) for one in (y, expected))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


def test_a_part_has_enough_tiles_to_pay_for_its_filters(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert tiles.Parts.of(torch.empty(4, 16, 16, 1)) == (0, 1)
    assert tiles.Parts.of(torch.empty(16, 16, 16, 1)) == (0, 4)
    assert tiles.Parts.of(torch.empty(128, 32, 32, 1)) == (0, tiles.PARTS)
    assert tiles.Parts.of(torch.empty(1, 64, 64, 1)) == (1, 4)


@pytest.mark.parametrize("transposed", [False, True])
def test_its_derivatives_are_those_of_finite_differences(monkeypatch, transposed):
    monkeypatch.setattr(tiles, "TILES", 1)  # at once, that is a few rows of an image
    x, weight = normal(2, 2, 8, 4).requires_grad_(), normal(2, 2, 3, 3, seed=1).requires_grad_()

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return Convolution.apply(x, weight, transposed)

    assert torch.autograd.gradcheck(run, (x, weight), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, (x, weight))


def test_its_transpose_is_that_of_the_convolution():
    x, y, weight = normal(2, 3, 8, 8), normal(2, 5, 8, 8, seed=1), normal(5, 3, 3, 3, seed=2)
    forward, backward = Convolution.apply(x, weight, False), Convolution.apply(y, weight, True)
    torch.testing.assert_close((forward * y).sum(), (backward * x).sum(), rtol=1e-12, atol=0)


def test_forward_mode_goes_through_a_dilated_layer(always):
    layer = Conv3x3(2, 3, dilation=2).double()
    x, direction = normal(1, 2, 8, 8), normal(1, 2, 8, 8, seed=1)
    _, along = jvp(layer, (x,), (direction,))
    expected = F.conv2d(direction, layer.weight, padding=2, dilation=2)
    torch.testing.assert_close(along, expected, rtol=0, atol=1e-12)


def test_gradients_of_each_image_by_vmap(always):
    layer = Conv3x3(2, 3).double()
    x, parameters = normal(4, 2, 8, 8), dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, parameters, (x[None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)["weight"]
    expected = torch.stack([grad(loss)(parameters, one)["weight"] for one in x])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_its_error_in_float32_is_small():
    x, weight = normal(8, 256, 16, 16), normal(256, 256, 3, 3, seed=1) / 48
    exact = F.conv2d(x, weight, padding=1)
    x, weight = x.float(), weight.float()
    assert winograd.pays(x, weight, 1)
    # The outputs have variance 1. With the usual points, 0, +-1, +-2, the error is 2.3e-6.
    assert (conv3x3(x, weight, None) - exact).square().mean().sqrt() < 1.5e-6


def test_it_is_used_by_wide_layers_in_float32_alone():
    x, weight = torch.zeros(4, 128, 16, 16), torch.zeros(128, 128, 3, 3)
    assert winograd.pays(x, weight, 1) and winograd.pays(x, weight, 4)
    assert not winograd.pays(x, weight, 3), "16 pixels are no multiple of 12"
    assert not winograd.pays(x.double(), weight.double(), 1)
    assert not winograd.pays(x[:3], weight, 1)
    assert not winograd.pays(x[:, :64], weight[:, :64], 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.pays(x, weight, 1)


def test_a_network_of_wide_layers_equals_itself_without(monkeypatch):
    torch.manual_seed(0)
    network = UNet(3, 16, channels=128, multipliers=(1, 2), blocks=1, attention=(), dropout=0.0)
    for p in network.parameters():
        p.data.copy_(torch.randn_like(p) * p[0].numel() ** -0.5 if p.dim() > 1 else p)
    x, t = normal(4, 3, 16, 16, dtype=torch.float32), torch.arange(4)

    def gradients() -> list[Tensor]:
        y = network(x, t)
        return [y, *torch.autograd.grad(y.square().sum(), list(network.parameters()))]

    used, plain = [], winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *args: used.append(1) or plain(*args))
    ours = gradients()
    assert len(used) >= 8
    monkeypatch.setattr(winograd, "pays", lambda *_: False)
    for a, b in zip(ours, gradients(), strict=True):
        assert (a - b).norm() <= 2e-5 * b.norm()
