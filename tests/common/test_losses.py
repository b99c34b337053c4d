"""The hinge loss by hand."""

import pytest
import torch

from common.losses import hinge_d, hinge_g

REAL, FAKE = torch.tensor([2.0, -0.5, 0.0]), torch.tensor([-3.0, 0.5, 1.5])


def test_hinge_by_hand():
    # real: max(0, -1), max(0, 1.5), max(0, 1); fake: max(0, -2), max(0, 1.5), max(0, 2.5)
    assert hinge_d(REAL, FAKE).item() == pytest.approx((0 + 1.5 + 1) / 3 + (0 + 1.5 + 2.5) / 3)
    assert hinge_g(FAKE).item() == pytest.approx((3 - 0.5 - 1.5) / 3)
