"""Adversarial losses on logits, in float32, and penalties that keep D from learning a small training set by heart.

D minimises its own loss, G minimises its own: no signs to flip. Non-saturating: Goodfellow et al. 2014,
arXiv:1406.2661. Hinge: Miyato et al. 2018, arXiv:1802.05957. R1: Mescheder et al. 2018, arXiv:1801.04406. LeCam:
Tseng et al. 2021, arXiv:2104.03310.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import relu, softplus


def non_saturating_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return -E[log D(x)] - E[log(1 - D(G(z)))], D = sigmoid(logits) (Goodfellow et al. 2014, eq. 1).

    Args:
        real_logits, fake_logits: (B,) float32.

    Returns:
        0-d float32; 2 log 2 where D cannot tell.
    """
    return softplus(-real_logits).mean() + softplus(fake_logits).mean()


def non_saturating_g(fake_logits: Tensor) -> Tensor:
    """Return -E[log D(G(z))] of (B,) logits, 0-d (Goodfellow et al. 2014, sec. 3): its gradient lasts while D wins."""
    return softplus(-fake_logits).mean()


def hinge_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))], D the logit (Miyato et al. 2018, eq. 16).

    Args:
        real_logits, fake_logits: (B,) float32.

    Returns:
        0-d float32; 2 where D cannot tell.
    """
    return relu(1 - real_logits).mean() + relu(1 + fake_logits).mean()


def hinge_g(fake_logits: Tensor) -> Tensor:
    """Return -E[D(G(z))] of (B,) logits, 0-d (Miyato et al. 2018, eq. 17)."""
    return -fake_logits.mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """Return E[|gradient of D at x|^2] / 2 over real x, D the logit (Mescheder et al. 2018, eq. 9, gamma = 1).

    Under batch normalisation the logits of a batch hang together, and the gradient is that of their sum.

    Args:
        discriminator: (B, 3, H, W) -> (B,) logits, differentiable twice.
        real: (B, 3, H, W) float32.
    """
    real = real.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
        logits = discriminator(real)
    (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean() / 2


class Anchors(nn.Module):
    """Keep moving averages of D's mean logit on real and on drawn images (Tseng et al. 2021, sec. 3).

    They start at 0, where D cannot tell.

    Args:
        decay: a step; 0.99 is the paper's.
    """

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    @torch.no_grad()
    def update(self, real_logits: Tensor, fake_logits: Tensor) -> None:
        """Take one step towards the means of (B,) logits each."""
        self.real.lerp_(real_logits.mean(), 1 - self.decay)
        self.fake.lerp_(fake_logits.mean(), 1 - self.decay)


def lecam_penalty(real_logits: Tensor, fake_logits: Tensor, real_anchor: Tensor, fake_anchor: Tensor) -> Tensor:
    """Return E[(D(x) - fake_anchor)^2] + E[(D(G(z)) - real_anchor)^2], R_LC of Tseng et al. 2021.

    The paper's formula; their code leaves out logits on the far side of the anchor.

    Args:
        real_logits, fake_logits: (B,) float32.
        real_anchor, fake_anchor: 0-d, from `Anchors`.
    """
    return (real_logits - fake_anchor).square().mean() + (fake_logits - real_anchor).square().mean()


LOSSES = {"non-saturating": (non_saturating_d, non_saturating_g), "hinge": (hinge_d, hinge_g)}
