"""A mean teacher: it labels target images, and its weights are a moving average of the network's.

Mean teachers are Tarvainen & Valpola 2017 (arXiv:1703.01780), for domain adaptation French et al. 2018
(arXiv:1706.05208). As in FixMatch (Sohn et al. 2020, arXiv:2001.07685), the teacher sees the unchanged image and the
network an augmented one, and only confident predictions become labels.

A young teacher that trains on its own labels predicts rare digits ever less often. So its probabilities are divided by
their running mean: distribution alignment (ReMixMatch, Berthelot et al. 2020, arXiv:1911.09785, sec. 3.1), here towards
equally many of each digit. The target need not have equally many (one in five street numbers is a 1), so the alignment
fades over the first half of the training, while the digits come apart.

The teacher's batch normalisation sees target images only. It uses the statistics of the batch in training, and their
running average in inference.
"""

import torch
from torch import Tensor, nn

from dann.networks import DANN

DECAY = 0.99  # of the moving average of weights; French et al. 2018
CONFIDENCE = 0.9  # a digit with a lower probability is not used as a label
MOMENTUM = 0.05  # of the running mean of probabilities: some 20 batches, as one has few images of a digit
RAREST = 0.001  # below this share, a class prior is too noisy to divide by


class Balance(nn.Module):
    """Align probabilities (B, 10) with equally many of each digit, with a strength, 0-d in 0..1.

    It keeps the running mean of the probabilities.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shares", torch.full((10,), 0.1))

    def forward(self, probabilities: Tensor, strength: Tensor) -> Tensor:
        """Return aligned probabilities (B, 10)."""
        self.shares.lerp_(probabilities.mean(0), MOMENTUM)
        aligned = probabilities / self.shares.clamp(min=RAREST) ** strength
        return aligned / aligned.sum(1, keepdim=True)


def balance_at(progress: float) -> float:
    """Return the strength of the alignment, from 1 to 0, at a share of the training's steps."""
    return max(0.0, 1 - 2 * progress)


@torch.no_grad()
def pseudo_labels(teacher: DANN, images: Tensor, balance: Balance, strength: Tensor) -> tuple[Tensor, Tensor]:
    """Return the digits that the teacher predicts, (B,) int64, and whether each is confident, (B,) bool.

    Images are (B, 3, 28, 28) float32 of the target, not augmented; `strength` is that of the balance. The teacher is
    left with batch normalisation in training mode, which updates running statistics, and without dropout.
    """
    for module in teacher.modules():
        module.training = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    probabilities = teacher.classifier(teacher.features(images)).float().softmax(1)
    probability, digits = balance(probabilities, strength).max(1)
    return digits, probability > CONFIDENCE
