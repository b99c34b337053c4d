"""The hinge loss of GANs (Miyato et al. 2018, arXiv:1802.05957), on float32 logits.

D and G each minimise their own loss, so signs differ from papers that maximise.
"""

from torch import Tensor
from torch.nn.functional import relu


def hinge_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))], where D is the logit (Miyato et al. 2018, eq. 16).

    From float32 logits of any two shapes, 0-d float32. It is 2 while D cannot tell real from fake.
    """
    return relu(1 - real_logits).mean() + relu(1 + fake_logits).mean()


def hinge_g(fake_logits: Tensor) -> Tensor:
    """Return -E[D(G(z))] of logits of any shape, 0-d (Miyato et al. 2018, eq. 17)."""
    return -fake_logits.mean()
