"""Adversarial losses on logits, in float32. D minimises its own, G minimises its own: no signs to flip.

Non-saturating: Goodfellow et al. 2014, arXiv:1406.2661. Hinge: Miyato et al. 2018, arXiv:1802.05957.
"""

from torch import Tensor
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


LOSSES = {"non-saturating": (non_saturating_d, non_saturating_g), "hinge": (hinge_d, hinge_g)}
