"""Losses and the R1 penalty against closed forms, and their direction."""

import math

import pytest
import torch

from gan import sagan
from gan.losses import LOSSES, hinge_d, hinge_g, non_saturating_d, non_saturating_g, r1_penalty

REAL, FAKE = torch.tensor([2.0, -0.5, 0.0]), torch.tensor([-3.0, 0.5, 1.5])


def test_non_saturating_is_the_logarithm_of_probabilities():
    real, fake = REAL.sigmoid(), FAKE.sigmoid()
    torch.testing.assert_close(non_saturating_d(REAL, FAKE), -(real.log().mean() + (1 - fake).log().mean()))
    torch.testing.assert_close(non_saturating_g(FAKE), -fake.log().mean())


def test_hinge_by_hand():
    # real: max(0, -1), max(0, 1.5), max(0, 1); fake: max(0, -2), max(0, 1.5), max(0, 2.5)
    assert hinge_d(REAL, FAKE).item() == pytest.approx((0 + 1.5 + 1) / 3 + (0 + 1.5 + 2.5) / 3)
    assert hinge_g(FAKE).item() == pytest.approx((3 - 0.5 - 1.5) / 3)


def test_values_where_d_cannot_tell():
    zero = torch.zeros(4)
    assert non_saturating_d(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert non_saturating_g(zero).item() == pytest.approx(math.log(2))
    assert hinge_d(zero, zero).item() == 2
    assert hinge_g(zero).item() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_directions(name):
    d_loss, g_loss = LOSSES[name]
    # Logits between the aims of every loss, 0 and 1 of least squares among them.
    real, fake = (torch.full((3,), 0.5, requires_grad=True) for _ in range(2))
    d_loss(real, fake).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()  # descent raises real logits, lowers fake ones
    fake.grad = None
    g_loss(fake).backward()
    assert (fake.grad < 0).all()  # G raises them


def test_no_overflow_at_large_logits():
    large = torch.tensor([200.0], requires_grad=True)
    non_saturating_g(-large).backward()
    assert non_saturating_d(-large, large).item() == pytest.approx(400)
    assert large.grad.item() == pytest.approx(1)  # log(1 - D(G(z))) would have none


def test_r1_is_half_the_squared_gradient_at_real_images():
    weight = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    x = torch.randn(5, 3, 4, 4)
    penalty = r1_penalty(lambda x: (weight[:, None, None] * x**3).sum((1, 2, 3)), x)
    expected = (weight.detach()[:, None, None] * 3 * x**2).square().sum((1, 2, 3)).mean() / 2
    torch.testing.assert_close(penalty.detach(), expected)
    penalty.backward()  # of w^2 9 x^4 / 2
    torch.testing.assert_close(weight.grad, weight.detach() * (9 * x**4).sum((2, 3)).mean(0))
    assert not x.requires_grad and x.grad is None


def test_r1_goes_through_spectral_norm_and_attention():
    torch.manual_seed(0)
    discriminator, x = sagan.Discriminator(width=8).double().eval(), torch.rand(2, 3, 64, 64).double() * 2 - 1
    x = x.contiguous(memory_format=torch.channels_last)  # as in training; the fused kernels want it
    for layer in (discriminator.attn1, discriminator.attn2):
        torch.nn.init.constant_(layer.gamma, 0.7)
    weights = [discriminator.attn1.query_conv.weight, discriminator.attn2.gamma,
               discriminator.l2[0].parametrizations.weight.original]
    gradients = torch.autograd.grad(r1_penalty(discriminator, x), weights)
    for weight, gradient in zip(weights, gradients, strict=True):
        step = 1e-4 * gradient / gradient.norm()
        with torch.no_grad():
            weight.add_(step)
        more = r1_penalty(discriminator, x).item()
        with torch.no_grad():
            weight.sub_(2 * step)
        less = r1_penalty(discriminator, x).item()
        assert (more - less) / 2e-4 == pytest.approx(gradient.norm().item(), rel=1e-4)
        with torch.no_grad():
            weight.add_(step)
