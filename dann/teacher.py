"""A mean teacher: it labels target images, and its weights are a moving average of the network's.

Mean teachers are Tarvainen & Valpola 2017 (arXiv:1703.01780), for domain adaptation French et al. 2018
(arXiv:1706.05208). As in FixMatch (Sohn et al. 2020, arXiv:2001.07685), the teacher sees the unchanged image and the
network an augmented one, and only confident predictions become labels.

A teacher that trains on its own labels predicts some digits ever less often, until they are gone. So its probabilities
are aligned with class shares (distribution alignment; ReMixMatch, Berthelot et al. 2020, arXiv:1911.09785, sec. 3.1).
Those of the target are not known: of street numbers, one in five is a 1, and an alignment with equal shares turns a
part of the ones into sevens. So the shares start halfway between equal ones and those that the teacher predicts
(tempered, as in CReST, Wei et al. 2021, arXiv:2102.09559, sec. 3.3), and fade into the latter until the digits have
come apart. They are then kept. A network that has hardly begun to learn leaves out whole digits, so labels wait until
it has seen some source images.

The teacher's batch normalisation sees target images only. It uses the statistics of the batch in training, and their
running average in inference.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dann.networks import DANN

DECAY = 0.99  # of the moving average of weights; French et al. 2018
CONFIDENCE = 0.9  # a digit with a lower probability is not used as a label
MOMENTUM = 0.05  # of the running mean of probabilities: some 20 batches, as one has few images of a digit
RAREST = 0.001  # below this share, a class share is too noisy to divide by
START, FADE = 0.5, 0.2  # strength of the alignment at first, and the share of the steps over which it falls to 0
WAIT = 0.05  # the share of the steps before the first labels


class Alignment(nn.Module):
    """Distribution alignment with class shares: equal ones at strength 1, nearer to their own while it falls.

    When it is 0, the last shares are kept. `shares` is the running mean of the probabilities, and `wanted` are the
    shares to align with, both (10,) float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shares", torch.full((10,), 0.1))
        self.register_buffer("wanted", torch.full((10,), 0.1))

    def forward(self, probabilities: Tensor, strength: Tensor) -> Tensor:
        """Return aligned probabilities, (B, 10) float32 like those given; `strength` is 0-d in 0..1."""
        self.shares.lerp_(probabilities.mean(0), MOMENTUM)
        shares = self.shares.clamp(min=RAREST)
        self.wanted.copy_(torch.where(strength > 0, F.normalize(shares ** (1 - strength), p=1, dim=0), self.wanted))
        return F.normalize(probabilities * self.wanted / shares, p=1)


def alignment_strength(progress: Tensor) -> Tensor:
    """Return the strength of the alignment at a share of the steps, both 0-d float32."""
    return START * (1 - progress / FADE).clamp(min=0)


@torch.no_grad()
def pseudo_labels(teacher: DANN, images: Tensor, alignment: Alignment | None,
                  progress: Tensor) -> tuple[Tensor, Tensor]:
    """Return the digits that the teacher predicts, (B,) int64, and whether each is confident, (B,) bool.

    Images are (B, 3, 28, 28) float32 of the target, not augmented; `progress` is the share of the steps that are done,
    0-d float32. The teacher is left with batch normalisation in training mode, which updates running statistics, and
    without dropout.
    """
    for module in teacher.modules():
        module.training = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    probabilities = teacher.classifier(teacher.features(images)).float().softmax(1)
    if alignment is not None:
        probabilities = alignment(probabilities, alignment_strength(progress))
    probability, digits = probabilities.max(1)
    return digits, (probability > CONFIDENCE) & (progress >= WAIT)
