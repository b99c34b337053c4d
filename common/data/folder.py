"""Images and labels as uint8 tensors, from the data folder or from the embedded sets.

    hw2_data/digits/<domain>/{data/*.png, train.csv, val.csv, test.csv}    28x28, CSV header image_name,label
    hw2_data/face/{train,val}/*.png|jpg                                    64x64

`common.prepare` writes this layout; only this module reads it. Every set fits in memory: it is decoded once and
cached as one `.npy` file in `<data>/.cache`. The name of that file holds a hash of the images' names, sizes and
change times, so a changed image leads to a new cache file, which replaces the old one. `data="builtin"` selects the
embedded sets, and so does a domain named `builtin-svhn`, whatever `data` is.
"""

import csv
import hashlib
import io
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from common.data import domains, synthetic_faces
from common.errors import UserError
from common.files import atomic_path
from common.images import DIGIT_SIZE, FACE_SIZE

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

_HEADER = ["image_name", "label"]
_LABELS = {str(digit): digit for digit in range(10)}
_DECODER_VERSION = "2"  # part of every cache key: increase it when decode_image returns other pixels than before
_CHUNK = 256  # images per task of the thread pool: one image is too little work for a task

log = logging.getLogger(__name__)


class ImageSet(NamedTuple):
    """Images with what belongs to them, in the same order."""

    images: torch.Tensor  # (N, 3, H, W) uint8
    labels: torch.Tensor | None  # (N,) int64
    names: list[str]  # of the files


def default_data() -> str:
    """Return `hw2_data` if it exists, first in the working directory, then in the project's; otherwise "builtin"."""
    for folder in (Path("hw2_data"), Path(__file__).resolve().parents[2] / "hw2_data"):
        if folder.is_dir():
            return str(folder)
    return "builtin"


def load_digits(data: str | Path, domain: str, split: str) -> ImageSet:
    """Load one split ("train", "val" or "test") of one digit domain at 28x28, from a data folder or "builtin".

    A `domain` named "builtin-NAME" is the embedded stand-in of NAME, whatever `data` is.

    Raises:
        UserError: an unknown domain, a missing folder or image, or a mistake in the CSV file (with its line).
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"got split {split!r}, expected 'train', 'val' or 'test'")
    name, embedded = domains.split_name(domain)
    if embedded or str(data) == "builtin":
        images, labels = domains.embedded_digits(name, split)
        return _embedded(f"{name} {split}", images, torch.from_numpy(labels))
    folder = _require_folder(Path(data), f"digits/{name}", f"builtin-{name}")
    names, labels = _read_csv(folder / f"{split}.csv")
    images = _load_cached(Path(data), f"digits-{name}-{split}", folder / "data", names, DIGIT_SIZE)
    return ImageSet(images, torch.tensor(labels), names)


def load_faces(data: str | Path, split: str) -> ImageSet:
    """Load the faces at 64x64, without labels; `split` is "train" or "val", `data` as in load_digits."""
    if split not in ("train", "val"):
        raise ValueError(f"got split {split!r}, expected 'train' or 'val'")
    if str(data) == "builtin":
        return _embedded(f"face {split}", synthetic_faces.faces(split), None)
    folder = _require_folder(Path(data), f"face/{split}", "builtin")
    names = _list_images(folder)
    return ImageSet(_load_cached(Path(data), f"face-{split}", folder, names, FACE_SIZE), None, names)


def load_folder(folder: str | Path, size: int) -> ImageSet:
    """Load all images of any folder, sorted by name, without labels or cache; a broken image is a UserError."""
    names = _list_images(Path(folder))
    return ImageSet(torch.from_numpy(_decode_strictly(Path(folder), names, size)), None, names)


def load_readable(folder: str | Path, size: int) -> tuple[ImageSet, list[tuple[str, str]]]:
    """Like load_folder, but leave out broken images and return them as (name, reason) pairs."""
    names = _list_images(Path(folder))
    images, reasons = _decode(Path(folder), names, size)
    if reasons:  # without a broken image, this would only copy them all
        good = [row for row, name in enumerate(names) if name not in reasons]
        images, names = images[good], [names[row] for row in good]
    return ImageSet(torch.from_numpy(images), None, names), sorted(reasons.items())


def decode_image(source: str | Path | bytes, size: int) -> np.ndarray:
    """Decode one image file, a path or its bytes, to RGB: (size, size, 3) uint8. All files are decoded here.

    Grey becomes three equal channels, and 16-bit grey keeps its upper byte. Palette colours are looked up, and
    alpha is dropped, as torchvision's loader does. EXIF rotation is applied, and an animation gives its first frame.
    An image of another size is resized, bilinear with antialiasing.

    Raises:
        ValueError: not an image, or a damaged one. The message is the reason, without the file name.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.mode.startswith("I"):  # convert() would clip 16 bits at 255
                image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            elif image.mode == "P":  # through RGBA: Pillow warns when it converts a transparent palette to RGB
                image = image.convert("RGBA")
            image = ImageOps.exif_transpose(image.convert("RGB"))
            return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    except Image.UnidentifiedImageError:
        raise ValueError("not an image") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None


def _embedded(what: str, images: np.ndarray, labels: torch.Tensor | None) -> ImageSet:
    log.info("%s: %d images (embedded)", what, len(images))
    names = [f"{row:05d}.png" for row in range(len(images))]
    return ImageSet(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels, names)


def _require_folder(data: Path, part: str, stand_in: str) -> Path:
    """Return the folder `data/part`, or raise a UserError that says how to get it."""
    cure = f"build it with `python -m common.prepare --raw DIR --out {data}`, or use"
    if not data.is_dir():
        raise UserError(f"no data folder {data}: {cure} `--data builtin`")
    if not (data / part).is_dir():
        raise UserError(f"{data} has no {part}: {cure} the embedded set ({stand_in})")
    return data / part


def _read_csv(path: Path) -> tuple[list[str], list[int]]:
    """Read `image_name,label` rows; the images are in the folder `data` beside the file."""
    rows: dict[str, int] = {}  # in the order of the file
    try:
        present = set(os.listdir(path.parent / "data"))
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            if next(reader, None) != _HEADER:
                raise UserError(f"{path} line 1: no header: the first line must be `{','.join(_HEADER)}`")
            for row in filter(None, reader):  # a blank line is not a row
                where = f"{path} line {reader.line_num}"
                if len(row) != 2:
                    raise UserError(f"{where}: {len(row)} fields: write `image_name,label`")
                name, label = row
                if name not in present:  # this also rejects a path that leads out of the folder
                    raise UserError(f"{where}: no image {name!r} in {path.parent}/data: add it, or remove the row")
                if label not in _LABELS:
                    raise UserError(f"{where}: bad label {label!r}: write a digit from 0 to 9")
                if name in rows:
                    raise UserError(f"{where}: {name} has a row already: remove one of the two")
                rows[name] = _LABELS[label]
    except FileNotFoundError as error:
        raise UserError(f"no {error.filename}: restore it, or delete {path.parent} and prepare it again") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV text file ({error}): save it as UTF-8 CSV") from None
    if not rows:
        raise UserError(f"{path}: no rows after the header: add `image_name,label` rows")
    return list(rows), list(rows.values())


def _list_images(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: give an existing folder of images")
    with os.scandir(folder) as entries:  # a leading dot marks a file of the system, such as macOS's ._x.png
        names = sorted(e.name for e in entries if e.name.lower().endswith(SUFFIXES) and e.name[0] != ".")
    if not names:
        raise UserError(f"{folder} holds no images: put files named {', '.join(SUFFIXES)} there")
    return names


def _load_cached(data: Path, key: str, folder: Path, names: list[str], size: int) -> torch.Tensor:
    """Load the images `names` of `folder` from the cache; if it is missing or stale, decode them and cache them."""
    start = time.perf_counter()
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hw2"
    data_id = hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:16]
    file_name = f"{key}-{_fingerprint(folder, names, size)}.npy"
    # The second place is for a data folder that cannot be written.
    paths = data / ".cache" / file_name, user_cache / data_id / file_name
    for path in paths:
        try:
            images, how = np.load(path), "cached"
            break
        except (OSError, ValueError, EOFError):  # missing or damaged
            continue
    else:
        images = _decode_strictly(folder, names, size)
        how = "decoded" if any(_store(path, key, images) for path in paths) else "not cached"
    rate = len(images) / (time.perf_counter() - start)
    log.info("%s: %d images, %.0f images/s (%s)", key, len(images), rate, how)
    return torch.from_numpy(images)


def _fingerprint(folder: Path, names: list[str], size: int) -> str:
    """Return a hash that changes when an image is replaced, added, removed or moved."""
    listing = hashlib.sha256(f"{_DECODER_VERSION}\n{size}".encode())
    try:
        for name in names:
            stat = os.stat(f"{folder}/{name}")  # three times as fast as Path.stat
            # Change time, because unpacking an archive sets the modification time back.
            listing.update(f"\n{name}\0{stat.st_size}\0{stat.st_ctime_ns}".encode())
    except OSError as error:  # for example a dangling link
        raise UserError(f"cannot read {folder / name} ({error.strerror}): replace it or remove it") from None
    return listing.hexdigest()[:16]


def _store(path: Path, key: str, images: np.ndarray) -> bool:
    """Write a cache file atomically and remove stale files of the same key; return whether it was written."""
    try:
        with atomic_path(path, writer=str(os.getpid())) as partial, open(partial, "wb") as file:
            np.save(file, images)
        for stale in set(path.parent.glob(f"{key}-*.npy")) - {path}:
            stale.unlink(missing_ok=True)
        return True
    except (UserError, OSError):  # read-only or full
        return False


def _decode(folder: Path, names: list[str], size: int) -> tuple[np.ndarray, dict[str, str]]:
    """Decode files in threads; return (N, 3, size, size) uint8, and the reason for each broken file, by name."""
    images, reasons = np.zeros((len(names), 3, size, size), np.uint8), {}

    def decode_chunk(start: int) -> None:
        for row in range(start, min(start + _CHUNK, len(names))):
            try:
                images[row] = decode_image(f"{folder}/{names[row]}", size).transpose(2, 0, 1)
            except ValueError as error:
                reasons[names[row]] = str(error)

    with ThreadPoolExecutor() as pool:
        list(pool.map(decode_chunk, range(0, len(names), _CHUNK)))
    return images, reasons


def _decode_strictly(folder: Path, names: list[str], size: int) -> np.ndarray:
    images, reasons = _decode(folder, names, size)
    for name in filter(reasons.get, names):  # the first broken one
        raise UserError(f"broken image {folder / name} ({reasons[name]}): replace it or remove it")
    return images
