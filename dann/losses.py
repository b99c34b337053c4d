"""The two losses of DANN on logits (Ganin et al. 2016, JMLR 17(59), eq. 9), and the teacher's, in float32.

Every parameter descends their sum: the gradient reversal turns the domain loss round for the features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SOURCE, TARGET = 0, 1  # the discriminator's classes


def class_loss(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of (B, 10) logits against (B,) int64 digits, 0-d."""
    return F.cross_entropy(class_logits.float(), labels)


def domain_loss(source_logits: Tensor, target_logits: Tensor) -> Tensor:
    """Return the mean cross-entropy of (B, 2) logits of source and as many of target images, 0-d."""
    # Cross-entropy against one class is minus its log-probability.
    source = -F.log_softmax(source_logits.float(), 1)[:, SOURCE].mean()
    target = -F.log_softmax(target_logits.float(), 1)[:, TARGET].mean()
    return (source + target) / 2


def domain_accuracy(source_logits: Tensor, target_logits: Tensor) -> Tensor:
    """Return the share of images whose domain is right, 0-d, from (B, 2) logits each: 0.5 when they look the same."""
    right = torch.cat([source_logits.argmax(1) == SOURCE, target_logits.argmax(1) == TARGET])
    return right.float().mean()


def called_source(source_logits: Tensor, target_logits: Tensor) -> Tensor:
    """Return the share of images that (B, 2) logits each call source, 0-d: 0 or 1 when the discriminator collapsed."""
    return (torch.cat([source_logits, target_logits]).argmax(1) == SOURCE).float().mean()


def pseudo_label_loss(class_logits: Tensor, digits: Tensor, confident: Tensor) -> Tensor:
    """Return the cross-entropy against the teacher's digits where it is sure of them, averaged over all images, 0-d.

    Sohn et al. 2020 (FixMatch, arXiv:2001.07685, eq. 4).

    Args:
        class_logits: (B, 10) floating point.
        digits: (B,) int64.
        confident: (B,) bool.
    """
    return (F.cross_entropy(class_logits.float(), digits, reduction="none") * confident).mean()
