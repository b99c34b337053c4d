"""Random geometry for digits, drawn on the device for a whole batch.

Digits of one data set fill the frame (USPS), those of another keep a margin of four pixels (MNIST, MNIST-M):
on the real data that difference, not colour, is most of the gap. Scale 0.9-1.5 covers both. No flips: a
mirrored digit is another digit or none.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SCALE = (0.9, 1.5)
ROTATION = 0.2  # radians, about 11 degrees
SHEAR = 0.2  # horizontal, as handwriting slants
SHIFT = 2 / 14  # of half the frame: two pixels of 28


def augment(images: Tensor) -> Tensor:
    """Scale, rotate, shear and shift each image by its own random amount, in one resampling.

    What lies outside is filled by reflection: textured backgrounds go on as texture, where `border` would
    draw streaks and `zeros` a frame that only augmented images have.

    Args:
        images: (B, 3, H, W) float32.

    Returns:
        the same shape and range.
    """
    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(len(images), device=images.device).uniform_(low, high)

    scale, angle = uniform(*SCALE), uniform(-ROTATION, ROTATION)
    shear, shift_x, shift_y = uniform(-SHEAR, SHEAR), uniform(-SHIFT, SHIFT), uniform(-SHIFT, SHIFT)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    # Rows of the map from output to input coordinates: rotation times shear, divided by the scale.
    theta = torch.stack([torch.stack([cos, cos * shear - sin, shift_x], 1),
                         torch.stack([sin, sin * shear + cos, shift_y], 1)], 1)
    where = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, where, padding_mode="reflection", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)
