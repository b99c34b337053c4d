"""A mean teacher: it labels target images, and its weights are a moving average of the network's.

Mean teachers are Tarvainen & Valpola 2017 (arXiv:1703.01780), for domain adaptation French et al. 2018
(arXiv:1706.05208). As in FixMatch (Sohn et al. 2020, arXiv:2001.07685), the teacher sees the unchanged image and the
network an augmented one, and only confident predictions become labels.

The labels are not aligned with any class shares, as in ReMixMatch or AdaMatch: those of the target are not known, and
with equal ones a part of the commonest digit is read as another.

The teacher's batch normalisation sees target images only. It uses the statistics of the batch in training, and their
running average in inference.
"""

import torch
from torch import Tensor, nn

from dann.networks import DANN

DECAY = 0.99  # of the moving average of weights; French et al. 2018
CONFIDENCE = 0.9  # a digit with a lower probability is not used as a label


@torch.no_grad()
def pseudo_labels(teacher: DANN, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the digits that the teacher predicts, (B,) int64, and whether each is confident, (B,) bool.

    Images are (B, 3, 28, 28) float32 of the target, not augmented. The teacher is left with batch normalisation in
    training mode, which updates running statistics, and without dropout.
    """
    for module in teacher.modules():
        module.training = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    probability, digits = teacher.classifier(teacher.features(images)).float().softmax(1).max(1)
    return digits, probability > CONFIDENCE
