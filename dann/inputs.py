"""The network's input: one pipeline for training, inference and all rows of the table.

Every image is standardised, which removes differences in brightness and contrast between domains. Training images are
also moved, recoloured and photographed anew at random, a whole batch at a time on the device. They are never flipped: a
mirrored digit is not a digit.
"""

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from common.data.domains import digit_height
from common.images import grid, to_float, to_uint8

SCALE = (0.9, 1.1)
WIDTH = (0.7, 1.2)  # a further scale of the width: printed digits are narrower than handwritten ones
ROTATION = 0.2  # radians, about 11 degrees
SHEAR = 0.2  # horizontal, like slanted handwriting
SHIFT = 2 / 14  # in half image widths: two of 28 pixels
CONTRAST, BRIGHTNESS = (0.25, 1.5), 0.5  # French et al. 2018; in standard deviations of the image
TINT, LIGHT, NOISE = 0.3, 0.3, 0.2  # likewise: of a channel, from the middle to the edges, of a pixel
BLUR = (-0.5, 1.5)  # share of the image that is blurred: negative sharpens, above 1 counts as 1
NEIGHBOUR = (3, 8)  # pixels


def scale_range(domain: str, other: str) -> tuple[float, float]:
    """Return the smallest and largest random scale for `domain`, so that its digits also reach the size in `other`."""
    ratio = digit_height(other) / digit_height(domain)
    return SCALE[0] * min(1, ratio), SCALE[1] * max(1, ratio)


def standardise(images: Tensor) -> Tensor:
    """Scale each image of (B, 3, H, W) float32 to mean 0 and standard deviation 1; a flat image becomes 0."""
    return F.layer_norm(images, images.shape[1:], eps=1e-6)


def geometry(images: Tensor, scale: tuple[float, float]) -> Tensor:
    """Scale, narrow, rotate, shear and shift each image by its own random amounts, in one resampling.

    Images are (B, 3, H, W) float32, and keep their shape and range; `scale` is the smallest and the largest factor.
    What lies outside an image is its reflection, which continues a textured background: `border` would leave streaks,
    and `zeros` a frame that only augmented images have.
    """
    factor, angle = _uniform(images, *scale), _uniform(images, -ROTATION, ROTATION)
    shear, shift_x, shift_y = (_uniform(images, -most, most) for most in (SHEAR, SHIFT, SHIFT))
    cos, sin = angle.cos() / factor, angle.sin() / factor
    width = _uniform(images, *WIDTH)
    # theta maps output to input coordinates: a rotation times a shear, divided by the scale and the width.
    theta = torch.stack([torch.stack([cos / width, cos * shear - sin, shift_x], 1),
                         torch.stack([sin / width, sin * shear + cos, shift_y], 1)], 1)
    where = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, where, padding_mode="reflection", align_corners=False)


def intensity(images: Tensor) -> Tensor:
    """Invert each image of (B, 3, H, W) with probability 1/2, scale its contrast and shift its brightness at random.

    Light digits on dark and dark digits on light become one case (French et al. 2018, arXiv:1706.05208, sec. 4 and
    their code).
    """
    sign = torch.where(_uniform(images, 0, 1) < 0.5, -1.0, 1.0)
    gain, offset = sign * _uniform(images, *CONTRAST), _uniform(images, -BRIGHTNESS, BRIGHTNESS)
    return images * gain[:, None, None, None] + offset[:, None, None, None]


def photograph(images: Tensor) -> Tensor:
    """Tint each image of (B, 3, H, W), add noise, blur or sharpen it, and light it unevenly, at random.

    These are differences between cameras and places. All values are in standard deviations of the image.
    """
    images = images * _uniform(images, 1 - TINT, 1 + TINT, 3, 1, 1) + _uniform(images, -TINT, TINT, 3, 1, 1)
    images = images + torch.randn_like(images) * _uniform(images, 0, NOISE, 1, 1, 1)
    blurred = F.pad(images, (1, 1, 1, 1), mode="reflect")
    for axis in (2, 2, 3, 3):  # a mean of neighbours, twice: 1, 2, 1; faster than a convolution or pooling
        size = blurred.shape[axis] - 1
        blurred = (blurred.narrow(axis, 0, size) + blurred.narrow(axis, 1, size)) / 2
    images = torch.lerp(images, blurred, _uniform(images, *BLUR, 1, 1, 1).clamp(max=1))
    y, x = (torch.linspace(-1, 1, size, device=images.device) for size in images.shape[2:])
    slopes = LIGHT * torch.randn(2, len(images), 1, 1, 1, device=images.device)
    return images + slopes[0] * y[:, None] + slopes[1] * x


def neighbours(images: Tensor, others: Tensor) -> Tensor:
    """With probability 1/2 each, replace the left and the right edge of an image by those of a random one of `others`.

    Both are (B, 3, H, W) of one type. A street number has several digits, and a crop of one shows parts of the next.
    """
    columns = torch.arange(images.shape[3], device=images.device)
    others = others[torch.randint(len(others), (len(images),), device=images.device)]
    for distance in (columns, columns.flip(0)):
        width = torch.randint(NEIGHBOUR[0], NEIGHBOUR[1] + 1, (len(images), 1, 1, 1), device=images.device)
        width = torch.where(torch.rand(width.shape, device=images.device) < 0.5, width, 0)
        images = torch.where(distance < width, others, images)
    return images


def _uniform(images: Tensor, low: float, high: float, *shape: int) -> Tensor:
    return torch.empty(len(images), *shape, device=images.device).uniform_(low, high)


def network_input(images: Tensor, scale: tuple[float, float] | None = None, recolour: bool = False,
                  rephotograph: bool = False) -> Tensor:
    """Convert images (B, 3, 28, 28) from uint8 to float32 in channels_last, standardise and, if asked for, change them.

    Args:
        scale: range of scales for random `geometry`; None leaves the geometry unchanged.
        recolour: apply random `intensity`.
        rephotograph: apply random `photograph`.
    """
    x = to_float(images)
    if scale is not None:
        x = geometry(x, scale)
    x = standardise(x)
    if recolour:
        x = intensity(x)
    if rephotograph:
        x = photograph(x)
    return x.contiguous(memory_format=torch.channels_last)


def picture(batches: list[Tensor]) -> Image.Image:
    """Arrange the first 16 network inputs of each batch to look at, at half contrast."""
    return grid(to_uint8(torch.cat([x[:16] for x in batches]) / 2), columns=8, scale=2)
