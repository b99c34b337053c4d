"""The losses of the GANs: non-saturating (Goodfellow et al. 2014, arXiv:1406.2661), and the hinge of common/losses.py.

Logits and losses are float32. D and G each minimise their own loss, so signs differ from papers that maximise.
"""

from torch import Tensor
from torch.nn.functional import softplus

from common.losses import hinge_d, hinge_g


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


LOSSES = {"non-saturating": (non_saturating_d, non_saturating_g), "hinge": (hinge_d, hinge_g)}
