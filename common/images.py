"""Images: the pixel ranges of networks and of files, and writing PNG and GIF files.

Networks use float32 in [-1, 1], channels first; files and data sets use uint8 in 0..255.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from common.files import atomic_path

DIGIT_SIZE = 28  # pixels; all digit networks
FACE_SIZE = 64  # pixels; all face networks
STAMP = "made-by"  # name of the PNG text chunk that holds the settings an image was generated with


def to_float(images: Tensor) -> Tensor:
    """Map (N, 3, H, W) uint8 in 0..255 to float32 in [-1, 1], in channels_last memory format."""
    return images.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


def to_uint8(images: Tensor) -> Tensor:
    """Map float in [-1, 1], of any shape, to uint8 in 0..255: clamped, then rounded."""
    return images.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def grid(images: Tensor, columns: int, scale: int = 1) -> Image.Image:
    """Arrange (N, 3, H, W) uint8 images on white, `columns` per row, with gaps of two pixels.

    The picture is enlarged by the integer `scale`, without smoothing.
    """
    from torchvision.utils import make_grid  # costs a second to import

    picture = Image.fromarray(make_grid(images.cpu(), columns, pad_value=255).permute(1, 2, 0).numpy())
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def save_picture(picture: Image.Image, path: Path, stamp: str | None = None) -> None:
    """Write a PNG atomically. Raises UserError if it cannot be written."""
    info = PngImagePlugin.PngInfo()
    if stamp is not None:
        info.add_text(STAMP, stamp)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)


def stamp_of(path: Path) -> str | None:
    """Return the stamp of a picture, or None."""
    with Image.open(path) as picture:
        return picture.info.get(STAMP)


def save_gif(frames: Sequence[Image.Image], path: Path, frame_ms: int = 100, last_ms: int = 1500) -> None:
    """Write a looping animation atomically; the last frame is shown for `last_ms`."""
    # All frames share one palette, made from a few of them: separate palettes would flicker.
    chosen = [*frames[:-1:max(1, len(frames) // 7)], frames[-1]]
    palette = Image.fromarray(np.hstack(chosen)).quantize(dither=Image.Dither.NONE)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    with atomic_path(path) as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], loop=0,
                       duration=[frame_ms] * (len(frames) - 1) + [last_ms])


def save_image(image: Tensor, path: Path, stamp: str | None = None) -> None:
    """Write one (3, H, W) uint8 image as PNG, atomically."""
    save_picture(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()), path, stamp)
