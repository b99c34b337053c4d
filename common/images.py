"""Pictures: the only place that converts ranges, draws from per-image seeds, and writes PNG and GIF files.

Networks see float32 in [-1, 1], channels first; files and data sets are uint8 in 0..255.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from common.errors import UserError
from common.files import whole

STAMP = "made-by"  # name of the PNG text chunk that says with what settings an image was made


def to_float(images: Tensor) -> Tensor:
    """Map (N, 3, H, W) uint8 in 0..255 to float32 in [-1, 1], channels_last in memory."""
    return images.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


def to_uint8(images: Tensor) -> Tensor:
    """Map float in [-1, 1], of any shape, to uint8 in 0..255, rounding; values outside are clamped."""
    return images.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def seeded_normal(seeds: Sequence[tuple[int, ...]], shape: Sequence[int]) -> Tensor:
    """Draw standard normal noise, one generator an image, so that batching changes nothing.

    Args:
        seeds: one tuple of non-negative integers an image.
        shape: shape of one image's noise.

    Returns:
        (len(seeds), *shape) float32 on the CPU.
    """
    return torch.stack([torch.randn(*shape, generator=generator_for(*seed)) for seed in seeds])


def generator_for(*seed: int) -> torch.Generator:
    """Return a CPU generator for a tuple of integers; different tuples give unrelated streams."""
    mixed = 0
    for part in seed:
        # The 64-bit finaliser of SplitMix64 (Steele et al. 2014) keeps neighbouring seeds apart.
        mixed = (mixed ^ part) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed)


def grid(images: Tensor, columns: int, scale: int = 1, gap: int = 2) -> Image.Image:
    """Lay out images row by row on white.

    Args:
        images: (N, 3, H, W) uint8.
        columns: images a row.
        scale: whole-number enlargement, without smoothing.
        gap: white pixels between images, before enlargement.
    """
    n, _, height, width = images.shape
    rows = -(-n // columns)
    canvas = torch.full((3, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=torch.uint8)
    for i, image in enumerate(images.cpu()):
        top, left = (i // columns) * (height + gap) + gap, (i % columns) * (width + gap) + gap
        canvas[:, top:top + height, left:left + width] = image
    picture = Image.fromarray(canvas.permute(1, 2, 0).numpy())
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def save_picture(picture: Image.Image, path: Path, stamp: str | None = None) -> None:
    """Write a PNG under a temporary name and rename it, so that a file that exists is whole.

    Raises:
        UserError: it cannot be written.
    """
    info = PngImagePlugin.PngInfo()
    if stamp is not None:
        info.add_text(STAMP, stamp)
    _save_whole(picture, path, format="PNG", pnginfo=info)


def save_gif(frames: Sequence[Image.Image], path: Path, frame_ms: int = 100, last_ms: int = 1500) -> None:
    """Write an endless animation, which rests on its last frame, the way `save_picture` writes a PNG."""
    # One palette for all frames, because palettes of their own would flicker; from eight of them side by side.
    chosen = [*frames[:-1:max(1, len(frames) // 7)], frames[-1]]
    montage = Image.new("RGB", (sum(frame.width for frame in chosen), chosen[0].height))
    for i, frame in enumerate(chosen):
        montage.paste(frame, (i * frame.width, 0))
    palette = montage.quantize(dither=Image.Dither.NONE)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    _save_whole(frames[0], path, format="GIF", save_all=True, append_images=frames[1:], loop=0,
                duration=[frame_ms] * (len(frames) - 1) + [last_ms])


def _save_whole(picture: Image.Image, path: Path, **options: Any) -> None:
    with whole(path) as temporary:
        picture.save(temporary, **options)


def save_image(image: Tensor, path: Path, stamp: str | None = None) -> None:
    """Write one (3, H, W) uint8 image as PNG."""
    save_picture(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()), path, stamp)


def still_missing(folder: Path, names: Sequence[str], stamp: str) -> list[int]:
    """Return the positions of the names that are not yet in the folder, so that a stopped run can go on.

    Raises:
        UserError: the folder holds a file that these settings would not have made.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder to write into")
    wanted = {name: i for i, name in enumerate(names)}
    missing = dict(wanted)
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if path.name.startswith(".") and path.name.endswith(".partial"):
            continue
        if path.name not in wanted or _stamp_of(path) != stamp:
            raise UserError(f"{path} was not made by this command and these settings: name an empty folder")
        del missing[path.name]
    return list(missing.values())


def _stamp_of(path: Path) -> str | None:
    try:
        with Image.open(path) as picture:
            return picture.info.get(STAMP)
    except OSError:
        return None
