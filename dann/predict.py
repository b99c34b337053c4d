"""Digits and features of uint8 images from a trained DANN, in float32 and eval mode."""

import torch
from torch import Tensor

from common.images import to_float
from dann.networks import DANN

BATCH = 1000


@torch.no_grad()
def predict(model: DANN, images: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what the network sees; it is left in eval mode.

    Args:
        model: on `device`.
        images: (N, 3, 28, 28) uint8, on any device.

    Returns:
        features: (N, 768) float32; digits: (N,) int64; both on the CPU.
    """
    model.eval()
    features, digits = [], []
    for batch in images.split(BATCH):
        features.append(model.features(to_float(batch.to(device))))
        digits.append(model.classifier(features[-1]).argmax(1))
    return torch.cat(features).cpu(), torch.cat(digits).cpu()
