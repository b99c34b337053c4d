"""Adversarial losses on logits, in float32, and a penalty that keeps D from memorising a small training set.

Non-saturating: Goodfellow et al. 2014, arXiv:1406.2661. Hinge: Miyato et al. 2018, arXiv:1802.05957. R1: Mescheder et
al. 2018, arXiv:1801.04406. D and G each minimise their own loss, so signs differ from papers that maximise.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import relu, softplus


def non_saturating_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return -E[log D(x)] - E[log(1 - D(G(z)))], where D = sigmoid(logits) (Goodfellow et al. 2014, eq. 1).

    From (B,) float32 logits, 0-d float32. It is 2 log 2 while D cannot tell real from fake.
    """
    return softplus(-real_logits).mean() + softplus(fake_logits).mean()


def non_saturating_g(fake_logits: Tensor) -> Tensor:
    """Return -E[log D(G(z))] of (B,) logits, 0-d (Goodfellow et al. 2014, sec. 3).

    Unlike E[log(1 - D(G(z)))], its gradient does not vanish while D wins.
    """
    return softplus(-fake_logits).mean()


def hinge_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))], where D is the logit (Miyato et al. 2018, eq. 16).

    From (B,) float32 logits, 0-d float32. It is 2 while D cannot tell real from fake.
    """
    return relu(1 - real_logits).mean() + relu(1 + fake_logits).mean()


def hinge_g(fake_logits: Tensor) -> Tensor:
    """Return -E[D(G(z))] of (B,) logits, 0-d (Miyato et al. 2018, eq. 17)."""
    return -fake_logits.mean()


LOSSES = {"non-saturating": (non_saturating_d, non_saturating_g), "hinge": (hinge_d, hinge_g)}


def r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """Return E[|gradient of D at x|^2] / 2 over real x, where D is the logit (Mescheder et al. 2018, eq. 9, gamma = 1).

    Batch normalisation makes each logit depend on the whole batch; the gradient is that of their sum.

    Args:
        discriminator: (B, 3, H, W) -> (B,) logits, twice differentiable.
        real: (B, 3, H, W) float32.
    """
    real = real.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # fused attention kernels have no second derivative
        logits = discriminator(real)
    (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean() / 2
