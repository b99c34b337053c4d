"""Image files to RGB pixels. All files are decoded here, so that every command sees the same picture.

What can spoil images without making them unreadable is logged as a warning: other files, other shapes, one colour.
"""

import io
import logging
import stat
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from common.errors import UserError
from common.images import DIGIT_SIZE

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
DECODER_VERSION = "4"  # part of every cache key: increase it when decode_files returns other pixels than before

_THREADS = 4  # more of them mostly wait for Python's lock
_CHUNK = 256  # images per task of the thread pool: one image is too little work for a task
_MEGAPIXELS = 100  # a larger image is a mistake, or made to fill the memory
_SQUARE = 1.5  # the largest ratio of the sides that is taken for a square

log = logging.getLogger(__name__)
Image.MAX_IMAGE_PIXELS = None  # Pillow would only warn; open_rgb refuses


def open_rgb(source: str | Path | bytes) -> Image.Image:
    """Decode one image file, a path or its bytes, to an upright RGB picture of its own size.

    Grey becomes three equal channels, and 16-bit grey keeps its upper byte. Palette colours are looked up, and
    transparent pixels show white. EXIF rotation is applied, and an animation gives its first frame.

    Raises:
        ValueError: not an image, a damaged one, one of 32-bit grey or over 100 megapixels. The message is the reason,
            without the file name.
    """
    try:
        if not isinstance(source, bytes) and not stat.S_ISREG(Path(source).stat().st_mode):  # a pipe never ends
            raise ValueError("not a file")
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            if file.width * file.height > _MEGAPIXELS * 10**6:
                raise ValueError(f"more than {_MEGAPIXELS} megapixels")
            image = ImageOps.exif_transpose(file)
        if image.mode.startswith(("I", "F")):  # convert() would clip 16 bits at 255
            grey = np.asarray(image)
            if image.mode == "F" or grey.min() < 0 or grey.max() > 65535:
                raise ValueError("32-bit grey is not read")
            clear = grey == image.info.get("transparency", -1)
            image = Image.fromarray(np.where(clear, 255, grey >> 8).astype(np.uint8))
        elif image.has_transparency_data:  # convert("RGB") would show the colour that nobody sees, most often black
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")
    except Image.UnidentifiedImageError:
        raise ValueError("not an image") from None
    except Exception as error:  # each format's decoder raises exceptions of its own for a damaged file
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def decode_files(folder: Path, names: list[str], size: int) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Decode files in threads, and resize those of another size: bilinear, with antialiasing.

    Returns:
        (N, 3, size, size) uint8; the width and height of each file, (N, 2) int32; the reason for each broken file, by
        name. The pixels of a broken file are 0.
    """
    images, sides = np.zeros((len(names), 3, size, size), np.uint8), np.full((len(names), 2), size, np.int32)
    reasons = {}

    def decode_chunk(start: int) -> None:
        for row in range(start, min(start + _CHUNK, len(names))):
            try:
                image = open_rgb(f"{folder}/{names[row]}")
            except ValueError as error:
                reasons[names[row]] = str(error)
                continue
            sides[row] = image.size
            images[row] = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(decode_chunk, range(0, len(names), _CHUNK)))
    return images, sides, reasons


def decode_strictly(folder: Path, names: list[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and sides of `decode_files`. Raises UserError, which names the first broken file."""
    images, sides, reasons = decode_files(folder, names, size)
    broken = [name for name in names if name in reasons]
    if broken:
        raise UserError(f"broken image {folder / broken[0]} ({reasons[broken[0]]}): replace it or remove it")
    return images, sides


def warn_of_shapes(what: str, images: np.ndarray, sides: np.ndarray, exact: bool) -> None:
    """Log how many images of `decode_files` were squashed, are of one colour or, if `exact`, were resized."""
    total, size = len(images), images.shape[-1]
    flat = (images.max((2, 3)) == images.min((2, 3))).all(1).sum()
    far = (sides.max(1) > _SQUARE * sides.min(1)).sum()
    other = (sides != size).any(1).sum()
    if 2 * flat > total:
        log.warning("%s: %d of %d images are of one colour (transparent pixels are read as white)", what, flat, total)
    if far:
        log.warning("%s: %d of %d images are far from square and were squashed to %dx%d: crop each to its %s", what,
                    far, total, size, size, "digit" if size == DIGIT_SIZE else "face")
    if exact and other:
        log.warning("%s: %d of %d images are not %dx%d: they were resized", what, other, total, size, size)


def image_names(where: Path, names: Iterable[str]) -> list[str]:
    """Return the names of image files, sorted, and log how many others are left out; what is no file ends in `/`.

    A leading dot marks a file or folder of the system, such as macOS's ._x.png: of these nothing is said.
    """
    visible = [name for name in names
               if not any(part.startswith(".") and part.strip(".") for part in name.split("/"))]  # `..` hides nothing
    images = sorted(name for name in visible if name.lower().endswith(SUFFIXES))
    others = Counter("not files" if name.endswith("/") else ascii(Path(name).suffix)[1:-1] or "without a suffix"
                     for name in visible if not name.lower().endswith(SUFFIXES))
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common())
        log.warning("%s: %d of %d files are left out (%s): images are named %s", where, others.total(), len(visible),
                    kinds, ", ".join(SUFFIXES))
    return images
