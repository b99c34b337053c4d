"""Losses and diagnostics on logits, in float32.

Class and domain loss are the two terms of DANN (Ganin et al. 2016, JMLR 17(59), eq. 9). All parameters descend their
sum; gradient reversal flips the sign of the domain loss for the features. The pseudo-label loss is that of FixMatch
(Sohn et al. 2020, arXiv:2001.07685). Losses and metrics are 0-d.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SOURCE, TARGET = 0, 1  # classes of the discriminator


def class_loss(class_logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of (B, 10) logits against (B,) int64 digits."""
    return F.cross_entropy(class_logits.float(), labels)


def domain_loss(source_logits: Tensor, target_logits: Tensor) -> Tensor:
    """Return the mean cross-entropy of the discriminator's (B, 2) logits on source and on target images."""
    # Cross-entropy against a single class is minus the log-probability of that class.
    source = -F.log_softmax(source_logits.float(), 1)[:, SOURCE].mean()
    target = -F.log_softmax(target_logits.float(), 1)[:, TARGET].mean()
    return (source + target) / 2


def domain_accuracy(source_logits: Tensor, target_logits: Tensor) -> Tensor:
    """Return the accuracy of the discriminator from (B, 2) logits per domain: 0.5 if it cannot tell them apart."""
    right = torch.cat([source_logits.argmax(1) == SOURCE, target_logits.argmax(1) == TARGET])
    return right.float().mean()


def called_source(source_logits: Tensor, target_logits: Tensor) -> Tensor:
    """Return the share of images classified as source, from (B, 2) logits per domain: 0 or 1 after a collapse."""
    return (torch.cat([source_logits, target_logits]).argmax(1) == SOURCE).float().mean()


def diagnose(row: dict[str, float]) -> str | None:
    """Return what is wrong with the discriminator according to a row of mean metrics, or None."""
    if not 0.02 < row.get("called_source", 0.5) < 0.98:
        return "the discriminator has collapsed: it gives one answer for both domains, which teaches nothing"
    if row.get("domain_accuracy", 0.5) > 0.98:
        return "the discriminator tells the domains apart: the features are not aligned"
    return None


def pseudo_label_loss(class_logits: Tensor, digits: Tensor, confident: Tensor) -> Tensor:
    """Return the mean cross-entropy of (B, 10) logits against (B,) int64 pseudo-labels (FixMatch, eq. 4).

    Images whose label is not confident, (B,) bool, count as 0 in this mean.
    """
    return (F.cross_entropy(class_logits.float(), digits, reduction="none") * confident).mean()
