"""Losses against closed forms, and their direction."""

import pytest
import torch

from gan.losses import LOSSES, non_saturating_d, non_saturating_g

REAL, FAKE = torch.tensor([2.0, -0.5, 0.0]), torch.tensor([-3.0, 0.5, 1.5])


def test_non_saturating_is_the_logarithm_of_probabilities():
    real, fake = REAL.sigmoid(), FAKE.sigmoid()
    torch.testing.assert_close(non_saturating_d(REAL, FAKE), -(real.log().mean() + (1 - fake).log().mean()))
    torch.testing.assert_close(non_saturating_g(FAKE), -fake.log().mean())


@pytest.mark.parametrize("name", LOSSES)
def test_directions(name):
    d_loss, g_loss = LOSSES[name]
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
