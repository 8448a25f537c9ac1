"""Group normalisation followed by silu: equal to the two in turn, with derivatives of every order, and keeps less."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, jvp, vmap

from diffusion_lab.network import UNet, norm_silu
from diffusion_lab.network.norm_silu import GroupNormSilu, NormSilu

CHANNELS, GROUPS, EPSILON = 4, 2, 1e-6


@pytest.fixture(autouse=True)
def large(monkeypatch):
    """Take every array for a large one."""
    monkeypatch.setattr(norm_silu, "SMALL", 0)


def layer(dtype: torch.dtype = torch.float64) -> GroupNormSilu:
    norm = GroupNormSilu(GROUPS, CHANNELS, EPSILON)
    with torch.no_grad():
        for p in norm.parameters():
            p.normal_(generator=torch.Generator().manual_seed(p.numel()))
    return norm.to(dtype)


def in_turn(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, GROUPS, norm.weight, norm.bias, EPSILON))


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", [(3, CHANNELS, 5, 6), (3, CHANNELS), (2, CHANNELS, 7), (2, CHANNELS, 2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_value_and_gradients_equal_those_of_the_two_in_turn(shape, dtype):
    norm, x = layer(dtype), images(*shape, dtype=dtype).requires_grad_()
    inputs, direction = (x, *norm.parameters()), images(*shape, seed=1, dtype=dtype)
    found, expected = norm(x), in_turn(norm, x)
    assert torch.equal(found, expected)
    pairs = zip(*(torch.autograd.grad(y, inputs, direction) for y in (found, expected)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with torch.no_grad():
        assert torch.equal(norm(x), expected)


def test_small_arrays_are_left_to_torch(monkeypatch):
    norm, x = layer(), images(2, CHANNELS, 3, 3)
    assert type(norm(x).grad_fn).__name__ == "NormSiluBackward"
    monkeypatch.setattr(norm_silu, "SMALL", x.numel() + 1)
    assert type(norm(x).grad_fn).__name__ == "SiluBackward0"


@pytest.mark.parametrize("layout", ["channels_last", "every second pixel", "gradient in another layout"])
def test_every_layout_is_taken(layout):
    norm, x, direction = layer(), images(3, CHANNELS, 6, 8), images(3, CHANNELS, 6, 8, seed=1)
    if layout == "every second pixel":
        x, direction = x[..., ::2], direction[..., ::2]
    else:
        x = x.to(memory_format=torch.channels_last)
    if layout == "channels_last":
        direction = direction.to(memory_format=torch.channels_last)
        assert norm(x.requires_grad_()).is_contiguous(memory_format=torch.channels_last)
    x = x.detach().requires_grad_()
    found, expected = (torch.autograd.grad(y, (x, norm.weight), direction) for y in (norm(x), in_turn(norm, x)))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_derivatives_of_every_order_and_mode():
    norm, x = layer(), images(2, CHANNELS, 3, 2).requires_grad_()

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    assert gradcheck(run, (x, norm.weight, norm.bias), check_forward_ad=True)
    assert gradgradcheck(run, (x, norm.weight, norm.bias))


def test_gradients_of_each_image_by_vmap():
    norm, x = layer(), images(3, CHANNELS, 4, 4)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(norm, parameters, (x[None],)).square().sum()

    parameters = dict(norm.named_parameters())
    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x.to(memory_format=torch.channels_last))
    for name, values in found.items():
        expected = torch.stack([grad(loss)(parameters, one)[name] for one in x])
        torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)


def test_forward_mode_through_the_gradient():
    norm, x, direction = layer(), images(2, CHANNELS, 4, 4), images(2, CHANNELS, 4, 4, seed=1)
    found, expected = (
        jvp(grad(lambda x, f=f: f(x).square().sum()), (x,), (direction,))[1] for f in (norm, lambda x: in_turn(norm, x))
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_it_normalises_bfloat16_in_float32_as_autocast_on_a_gpu():
    norm, x = layer(torch.float32), images(2, CHANNELS, 4, 4, dtype=torch.bfloat16).requires_grad_()
    y = NormSilu.apply(x, norm.weight, norm.bias, GROUPS, EPSILON, torch.float32)
    expected = in_turn(norm, x.float())
    assert y.dtype == torch.float32 and torch.equal(y, expected)
    found, expected = (torch.autograd.grad(z.sum(), (x, norm.weight, norm.bias)) for z in (y, expected))
    assert found[0].dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def kept(network: nn.Module, x: Tensor) -> int:
    """Bytes that a network keeps for its gradient, without its parameters."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    found: dict[int, Tensor] = {}  # holds the tensors, so that no address is used twice
    with saved_tensors_hooks(lambda t: found.setdefault(t.untyped_storage().data_ptr(), t) is None or t, lambda t: t):
        network(x, torch.zeros(len(x)))
    return sum(t.untyped_storage().nbytes() for address, t in found.items() if address not in own)


def test_a_network_keeps_less_for_its_gradient(monkeypatch):
    network, x = UNet(3, 16, channels=32, multipliers=(1, 2), attention=(), dropout=0.1), torch.zeros(2, 3, 16, 16)
    ours = kept(network, x)
    monkeypatch.setattr(GroupNormSilu, "forward", lambda self, x: F.silu(nn.GroupNorm.forward(self, x)))
    assert ours < 0.8 * kept(network, x)
