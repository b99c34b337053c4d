"""Widening keeps the function, and lets copies of a channel learn different things."""

import pytest
import torch

from diffusion.unet import ConditionalUNet
from diffusion.widen import widen


def randomised(width: int) -> ConditionalUNet:
    """Return a network in which no parameter is at its neutral start (norm weights 1, biases 0)."""
    torch.manual_seed(0)
    model = ConditionalUNet(width).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(1)
    return torch.randn(2, 3, 28, 28), torch.tensor([3, 900]), torch.tensor([0, 7])


@pytest.mark.parametrize("factor", [2, 3])
@torch.no_grad()
def test_widened_network_computes_the_same(factor, inputs):
    narrow, wide = randomised(4), ConditionalUNet(4 * factor).eval()
    wide.load_state_dict(widen(narrow.state_dict(), factor, seed=0))
    expected = narrow(*inputs)
    torch.testing.assert_close(wide(*inputs), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_copies_of_a_channel_get_different_gradients(inputs):
    wide = ConditionalUNet(8)
    wide.load_state_dict(widen(randomised(4).state_dict(), 2, seed=0))
    wide(*inputs).square().mean().backward()
    gradient = wide.bot2.double_conv[0].weight.grad.flatten(1)
    apart = (gradient[0::2] - gradient[1::2]).norm(dim=1) / gradient[0::2].norm(dim=1)
    assert (apart > 0.05).all()


def test_factor_1_changes_nothing():
    weights = randomised(4).state_dict()
    for name, value in widen(weights, 1, seed=0).items():
        assert torch.equal(value, weights[name]), name
