"""Features of faces that need no download: those of a ResNet-18 (He et al. 2016, arXiv:1512.03385) of random weights.

Random weights have seen no data set, so they favour none (Naeem et al. 2020, arXiv:2002.09797, who take a VGG16). They
notice scrambled, repeated and too similar faces, but hardly blurred ones: SWD does.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from common.images import to_float

BATCH = 100  # images


@cache
def _network() -> nn.Module:
    from torchvision.models import resnet18  # takes a second, which other commands need not wait

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = resnet18(weights=None).eval()
    network.fc = nn.Identity()
    return network


@torch.no_grad()
def features(images: Tensor) -> np.ndarray:
    """Return features (N, 512) float32 of images (N, 3, H, W) uint8; the network is the same at every call."""
    return torch.cat([_network()(to_float(batch)) for batch in images.split(BATCH)]).numpy()
