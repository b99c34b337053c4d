"""What the network sees of a digit: one pipeline for training, inference and all rows of the table.

Every image is standardised, which takes brightness and contrast out of what parts two domains. In training it
is first moved and then recoloured at random, on the device for a whole batch. No flips: a mirrored digit is
another digit or none.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from common.images import to_float

# Height of the digits in a frame of 28 pixels. MNIST's fit a box of 20 (LeCun et al. 1998), and MNIST-M is made
# of them; those of USPS and SVHN fill their frames.
DIGIT_HEIGHT = {"mnist": 20, "mnistm": 20, "usps": 28, "svhn": 28}
SCALE = (0.9, 1.1)
ROTATION = 0.2  # radians, about 11 degrees
SHEAR = 0.2  # horizontal, as handwriting slants
SHIFT = 2 / 14  # of half the frame: two pixels of 28
CONTRAST, BRIGHTNESS = (0.25, 1.5), 0.5  # French et al. 2018, in standard deviations of the image


def scale_range(domain: str, other: str) -> tuple[float, float]:
    """Return by what digits of a domain are scaled, so that they reach the size of another domain's as well."""
    ratio = DIGIT_HEIGHT[other.removeprefix("builtin-")] / DIGIT_HEIGHT[domain.removeprefix("builtin-")]
    return SCALE[0] * min(1, ratio), SCALE[1] * max(1, ratio)


def standardise(images: Tensor) -> Tensor:
    """Give each image mean 0 and standard deviation 1 over all its channels; a flat one becomes 0.

    Args:
        images: (B, 3, H, W) float32.

    Returns:
        the same shape.
    """
    return F.layer_norm(images, images.shape[1:], eps=1e-6)


def geometry(images: Tensor, scale: tuple[float, float]) -> Tensor:
    """Scale, rotate, shear and shift each image by its own random amount, in one resampling.

    What lies outside is filled by reflection: textured backgrounds go on as texture, where `border` would
    draw streaks and `zeros` a frame that only augmented images have.

    Args:
        images: (B, 3, H, W) float32.
        scale: smallest and largest enlargement.

    Returns:
        the same shape and range.
    """
    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(len(images), device=images.device).uniform_(low, high)

    factor, angle = uniform(*scale), uniform(-ROTATION, ROTATION)
    shear, shift_x, shift_y = uniform(-SHEAR, SHEAR), uniform(-SHIFT, SHIFT), uniform(-SHIFT, SHIFT)
    cos, sin = angle.cos() / factor, angle.sin() / factor
    # Rows of the map from output to input coordinates: rotation times shear, divided by the scale.
    theta = torch.stack([torch.stack([cos, cos * shear - sin, shift_x], 1),
                         torch.stack([sin, sin * shear + cos, shift_y], 1)], 1)
    where = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, where, padding_mode="reflection", align_corners=False)


def intensity(images: Tensor) -> Tensor:
    """Invert each image with probability 1/2, scale its contrast and shift its brightness (French et al. 2018).

    Light digits on dark and dark ones on light become one case (arXiv:1706.05208, sec. 4 and their code).

    Args:
        images: (B, 3, H, W) float32, standardised.

    Returns:
        the same shape.
    """
    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(len(images), 1, 1, 1, device=images.device).uniform_(low, high)

    sign = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    return images * sign * uniform(*CONTRAST) + uniform(-BRIGHTNESS, BRIGHTNESS)


def network_input(images: Tensor, standardised: bool = True, scale: tuple[float, float] | None = None,
                  recolour: bool = False) -> Tensor:
    """Return the network's input.

    Args:
        images: (B, 3, 28, 28) uint8.
        standardised: `standardise`, or else leave the range at [-1, 1].
        scale: for random `geometry`, or None.
        recolour: random `intensity`.

    Returns:
        (B, 3, 28, 28) float32, channels_last.
    """
    x = to_float(images)
    if scale is not None:
        x = geometry(x, scale)
    if standardised:
        x = standardise(x)
    if recolour:
        x = intensity(x)
    return x.contiguous(memory_format=torch.channels_last)
