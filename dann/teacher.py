"""A teacher that labels target images: the average of the network's weights (Tarvainen & Valpola 2017).

Mean teachers for domain adaptation are French et al. 2018 (arXiv:1706.05208); that the teacher reads the image as
it is and the network a changed one, with the surest digit as its label, is FixMatch (Sohn et al. 2020,
arXiv:2001.07685). The teacher normalises by the statistics of the target alone, in training by the batch's and
later by their running average, so what it reads at the end is what it read all along.

A teacher that learns from its own labels lets a digit that it reads seldom die out, a 6 into 5, a 9 into 4. So its
probabilities are divided by their mean over the batch before it decides (distribution alignment, Berthelot et al.
2020, ReMixMatch, arXiv:1911.09785, sec. 3.1, here towards equally many of each digit).
"""

import torch
from torch import Tensor, nn

from dann.networks import DANN

DECAY = 0.99  # French et al. 2018
CONFIDENCE = 0.9  # a probability below this makes no label
RAREST = 0.001  # a digit's share of a batch counts as this at least: noise shall not be raised to a label


@torch.no_grad()
def pseudo_labels(teacher: DANN, images: Tensor, balance: bool) -> tuple[Tensor, Tensor]:
    """Return the teacher's digits (B,) int64 and where it is sure of them (B,) bool.

    Its batch normalisation is in training mode and its dropout is not.

    Args:
        images: (B, 3, 28, 28) float32 of the target, not augmented.
        balance: align what it reads in the batch with equally many of each digit.
    """
    for module in teacher.modules():
        module.training = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm)
    return decide(teacher.classifier(teacher.features(images)).float().softmax(1), balance)


def decide(probabilities: Tensor, balance: bool) -> tuple[Tensor, Tensor]:
    """Return the surest digits (B,) int64 of (B, 10) probabilities, and where they are sure enough (B,) bool."""
    if balance:
        probabilities = probabilities / probabilities.mean(0).clamp(min=RAREST)
        probabilities = probabilities / probabilities.sum(1, keepdim=True)
    probability, digits = probabilities.max(1)
    return digits, probability > CONFIDENCE
