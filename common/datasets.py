"""Images and labels from the canonical data folder, or from the embedded sets, as uint8 tensors.

    hw2_data/digits/<domain>/{data/*.png, train.csv, val.csv, test.csv}    28x28, CSV header image_name,label
    hw2_data/face/{train,val}/*.png|jpg                                    64x64

This is the only module that knows this layout. Every set fits in memory, so a set is decoded once and
kept as one `.npy` file in `<data>/.cache`; the file's name holds a hash of the names, sizes and change times
of the images, so a changed image means a new cache and the old one is removed. `data="builtin"` reads
`common.builtin` instead, and a domain written `builtin-svhn` does so whatever `data` is.
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

from common.errors import UserError

DOMAINS = ("mnist", "mnistm", "usps", "svhn")
DIGIT_SIZE = 28
FACE_SIZE = 64
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

_HEADER = ["image_name", "label"]
_LABELS = {str(digit): digit for digit in range(10)}
_DECODER = "2"  # part of every cache key: raise it when decode_image gives other pixels
_CHUNK = 256  # images a task of the thread pool decodes: one image is too little to be worth a task

log = logging.getLogger(__name__)


class ImageSet(NamedTuple):
    """images: (N, 3, H, W) uint8; labels: (N,) int64 or None; names: N file names, in the same order."""

    images: torch.Tensor
    labels: torch.Tensor | None
    names: list[str]


def default_data() -> str:
    """The data folder that commands use unless told.

    It is `hw2_data` in the working directory or else in the project's, where it exists, and otherwise the
    embedded sets ("builtin").
    """
    for folder in (Path("hw2_data"), Path(__file__).resolve().parent.parent / "hw2_data"):
        if folder.is_dir():
            return str(folder)
    return "builtin"


def load_digits(data: str | Path, domain: str, split: str) -> ImageSet:
    """Load one split of one digit domain at 28x28.

    Args:
        data: the canonical data folder, or "builtin".
        domain: one of DOMAINS, or "builtin-<domain>" for the embedded set whatever `data` is.
        split: "train", "val" or "test".
    Raises:
        UserError: an unknown domain, a missing folder or image, or a mistake in the CSV (with its line).
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"got split {split!r}, expected 'train', 'val' or 'test'")
    embedded = str(data) == "builtin" or domain.startswith("builtin-")
    domain = domain.removeprefix("builtin-")
    if domain not in DOMAINS:
        raise UserError(f"unknown domain '{domain}': choose from {', '.join(DOMAINS)} (or builtin-<domain>)")
    if embedded:
        from common import builtin

        images, labels = builtin.digits(domain, split)
        return _embedded(f"{domain} {split}", images, torch.as_tensor(labels, dtype=torch.int64))

    folder = _existing(Path(data), f"digits/{domain}", f"builtin-{domain}")
    names, labels = _read_csv(folder / f"{split}.csv")
    images = _load_cached(Path(data), f"digits-{domain}-{split}", folder / "data", names, DIGIT_SIZE)
    return ImageSet(images, torch.tensor(labels), names)


def load_faces(data: str | Path, split: str) -> ImageSet:
    """Load the faces at 64x64, unlabelled; `split` is "train" or "val", `data` as in load_digits."""
    if split not in ("train", "val"):
        raise ValueError(f"got split {split!r}, expected 'train' or 'val'")
    if str(data) == "builtin":
        from common import builtin

        return _embedded(f"face {split}", builtin.faces(split), None)
    folder = _existing(Path(data), f"face/{split}", "builtin")
    names = _list_images(folder)
    return ImageSet(_load_cached(Path(data), f"face-{split}", folder, names, FACE_SIZE), None, names)


def load_folder(folder: str | Path, size: int) -> ImageSet:
    """Load all images of any folder, sorted by name, unlabelled, uncached; a broken one is a UserError."""
    names = _list_images(Path(folder))
    return ImageSet(torch.from_numpy(_decode_strictly(Path(folder), names, size)), None, names)


def load_readable(folder: str | Path, size: int) -> tuple[ImageSet, list[tuple[str, str]]]:
    """Like load_folder, but leave broken images out and return them as (name, reason) pairs."""
    names = _list_images(Path(folder))
    images, reasons = _decode(Path(folder), names, size)
    broken = [(names[row], reason) for row, reason in sorted(reasons.items())]
    if broken:  # without, a second copy of all images
        good = [row for row in range(len(names)) if row not in reasons]
        images, names = images[good], [names[row] for row in good]
    return ImageSet(torch.from_numpy(images), None, names), broken


def decode_image(source: str | Path | bytes, size: int) -> np.ndarray:
    """Decode one image file to RGB of one size: the only place where pixels of a file are converted.

    Grey becomes three equal channels, 16-bit grey keeps its upper byte, a palette is looked up and alpha
    is dropped (what torchvision's loader does). A photograph that a camera stored lying is set upright, of an
    animation the first frame is taken. Another size is resized, bilinear with antialiasing.

    Args:
        source: a path, or the bytes of a file.
        size: side length of the result, in pixels.
    Returns:
        (size, size, 3) uint8.
    Raises:
        ValueError: not an image, or a damaged one; the message is the reason, without the name.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.mode.startswith("I"):  # convert() would clip 16 bits at 255
                image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            elif image.mode == "P":  # by way of RGBA: transparency in a palette warns otherwise
                image = image.convert("RGBA")
            image = ImageOps.exif_transpose(image.convert("RGB"))
            if image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(image)
    except Image.UnidentifiedImageError:
        raise ValueError("not an image") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None


def _embedded(what: str, images: np.ndarray, labels: torch.Tensor | None) -> ImageSet:
    tensor = torch.as_tensor(images).permute(0, 3, 1, 2).contiguous()
    log.info("%s: %d images (embedded)", what, len(tensor))
    return ImageSet(tensor, labels, [f"{row:05d}.png" for row in range(len(tensor))])


def _existing(data: Path, part: str, embedded: str) -> Path:
    """The folder `data/part`, or a UserError that says how to get it."""
    cure = "build it with `python -m common.prepare --raw DIR`"
    if not data.is_dir():
        raise UserError(f"no data folder {data}: {cure} --out {data}, or use `--data builtin`")
    if not (data / part).is_dir():
        raise UserError(f"{data} has no {part}: {cure} --out {data}, or use the embedded set ({embedded})")
    return data / part


def _read_csv(path: Path) -> tuple[list[str], list[int]]:
    """Read `image_name,label` rows, whose images stand in the sibling folder `data`."""
    rows: dict[str, int] = {}  # in the order of the file
    try:
        present = set(os.listdir(path.parent / "data"))
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            if next(reader, None) != _HEADER:
                raise UserError(f"{path} line 1: no header: the first line must be `{','.join(_HEADER)}`")
            for row in filter(None, reader):  # blank lines are no rows
                where = f"{path} line {reader.line_num}"
                if len(row) != 2:
                    raise UserError(f"{where}: {len(row)} fields: write `image_name,label`")
                name, label = row
                if name not in present:  # as a name that leads out of the folder never is
                    raise UserError(f"{where}: no image {name!r} in {path.parent}/data: add it, or cut the row")
                if label not in _LABELS:
                    raise UserError(f"{where}: bad label {label!r}: write a digit from 0 to 9")
                if name in rows:
                    raise UserError(f"{where}: {name} has a row already: cut one of the two")
                rows[name] = _LABELS[label]
    except FileNotFoundError as error:
        cure = f"restore it, or delete {path.parent} and prepare it again"
        raise UserError(f"no {error.filename}: {cure}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV text file ({error}): save it as UTF-8 CSV") from None
    if not rows:
        raise UserError(f"{path}: no rows after the header: add `image_name,label` rows")
    return list(rows), list(rows.values())


def _list_images(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: give an existing folder of images")
    with os.scandir(folder) as entries:  # a name with a leading dot is a system's own file (macOS ._x.png)
        names = sorted(e.name for e in entries if e.name.lower().endswith(SUFFIXES) and e.name[0] != ".")
    if not names:
        raise UserError(f"{folder} holds no images: put files named {', '.join(SUFFIXES)} there")
    return names


def _load_cached(data: Path, key: str, folder: Path, names: list[str], size: int) -> torch.Tensor:
    """Load the images `names` of `folder` from the cache `key`, which is (re)built where need be."""
    start = time.perf_counter()
    listing = hashlib.sha256(f"{_DECODER}\n{size}".encode())  # as it goes: a list of lines would take more memory
    opened = os.open(folder, os.O_RDONLY)  # a name in it is found faster than a path
    try:
        for name in names:
            stat = os.stat(name, dir_fd=opened)
            # The time of change: the time of modification can be set, and unpacking an archive sets it back.
            listing.update(f"\n{name}\0{stat.st_size}\0{stat.st_ctime_ns}".encode())
    except OSError as error:  # a dangling link
        raise UserError(f"cannot read {folder / name} ({error.strerror}): replace it or remove it") from None
    finally:
        os.close(opened)
    file_name = f"{key}-{listing.hexdigest()[:16]}.npy"
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hw2"
    # The second place is for a data folder that cannot be written; there each data folder has its own.
    places = (data / ".cache", user_cache / _hash(str(data.resolve())))
    for place in places:
        try:
            images, how = np.load(place / file_name), "cached"
            break
        except (OSError, ValueError, EOFError):  # absent, or damaged
            continue
    else:
        images = _decode_strictly(folder, names, size)
        how = "decoded" if any(_store(place / file_name, key, images) for place in places) else "not cached"
    rate = len(images) / (time.perf_counter() - start)
    log.info("%s: %d images, %.0f images/s (%s)", key, len(images), rate, how)
    return torch.from_numpy(images)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _store(path: Path, key: str, images: np.ndarray) -> bool:
    """Write a cache file in one step and remove stale ones of the same key; False where it cannot be."""
    partial = path.with_name(f".{key}-{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            np.save(file, images)
        os.replace(partial, path)
        for stale in set(path.parent.glob(f"{key}-*.npy")) - {path}:
            stale.unlink(missing_ok=True)
        return True
    except OSError:  # read-only, or full
        return False
    finally:
        if partial.exists():
            partial.unlink()


def _decode(folder: Path, names: list[str], size: int) -> tuple[np.ndarray, dict[int, str]]:
    """Decode files in threads; returns (N, 3, size, size) uint8 and the reason for each broken row."""
    images = np.zeros((len(names), 3, size, size), np.uint8)
    reasons: dict[int, str] = {}

    def decode_chunk(start: int) -> None:
        for row in range(start, min(start + _CHUNK, len(names))):
            try:
                images[row] = decode_image(f"{folder}/{names[row]}", size).transpose(2, 0, 1)
            except ValueError as error:
                reasons[row] = str(error)

    with ThreadPoolExecutor() as pool:
        list(pool.map(decode_chunk, range(0, len(names), _CHUNK)))
    return images, reasons


def _decode_strictly(folder: Path, names: list[str], size: int) -> np.ndarray:
    images, reasons = _decode(folder, names, size)
    if reasons:
        row = min(reasons)
        raise UserError(f"broken image {folder / names[row]} ({reasons[row]}): replace it or remove it")
    return images
