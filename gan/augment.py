"""Differentiable augmentation of D's inputs, real and generated alike (Zhao et al. 2020, arXiv:2006.10738).

G receives its gradients through the augmentation, so the changes do not leak into the images that it generates.
Policies and strengths are the paper's: colour, translation by 1/8, cutout of 1/2. Each image has its own draws, from
PyTorch's global generator.
"""

import torch
from torch import Tensor


def random_flip(x: Tensor) -> Tensor:
    """Mirror each of (B, 3, H, W) images left to right with probability 1/2."""
    return torch.where(_uniform(x) < 0.5, x.flip(-1), x)


def augment(x: Tensor) -> Tensor:
    """Change the colours of (B, 3, H, W) images in [-1, 1], translate them, and cut out a rectangle.

    Values may leave [-1, 1]. Uncovered and cut-out areas are 0, which is mid-grey.
    """
    return cutout(translate(colour(x)))


def colour(x: Tensor) -> Tensor:
    """Shift the brightness of (B, 3, H, W) images by up to 1/2; scale saturation by 0..2 and contrast by 1/2..3/2."""
    x = x + _uniform(x) - 0.5
    grey = x.mean(dim=1, keepdim=True)
    x = grey + (x - grey) * 2 * _uniform(x)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (x - mean) * (_uniform(x) + 0.5)


def translate(x: Tensor) -> Tensor:
    """Move each of (B, 3, H, W) images by up to an eighth of its height and width; fill with zeros."""
    for dim in (2, 3):
        size = x.shape[dim]
        reach = int(size / 8 + 0.5)
        shift = torch.randint(-reach, reach + 1, (len(x), 1), device=x.device)
        source = torch.arange(size, device=x.device) - shift  # (B, size); positions outside the image give zeros
        shape = (len(x), 1, size, 1) if dim == 2 else (len(x), 1, 1, size)
        index = source.clamp(0, size - 1).view(shape).expand_as(x)
        x = x.gather(dim, index) * ((source >= 0) & (source < size)).view(shape)
    return x


def cutout(x: Tensor) -> Tensor:
    """Set a rectangle of each of (B, 3, H, W) images to zero: half its height and width, centred at random."""
    inside = []
    for size in x.shape[-2:]:
        length = int(size / 2 + 0.5)
        start = torch.randint(0, size + 1, (len(x), 1), device=x.device) - length // 2
        position = torch.arange(size, device=x.device)
        inside.append((position >= start) & (position < start + length))
    rows, columns = inside
    return x * ~(rows[:, None, :, None] & columns[:, None, None, :])


def _uniform(x: Tensor) -> Tensor:
    return torch.rand(len(x), 1, 1, 1, device=x.device)
