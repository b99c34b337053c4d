"""Images and labels as uint8 tensors, from the data folder or from the embedded sets.

    hw2_data/digits/<domain>/{data/*.png, train.csv, val.csv, test.csv}    28x28, CSV header image_name,label
    hw2_data/face/{train,val}/*.png|jpg                                    64x64

`common.prepare` writes this layout; only this module reads it. Every set fits in memory. It is decoded once
and cached as one `.npy` file in `<data>/.cache`, or decoded at every start where that cannot be written. The name of
the file holds a hash of the images' names, sizes and change times, so a changed image leads to a new cache file, which
replaces the old one.
"""

import csv
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common.data import domains, synthetic_faces
from common.data.decode import DECODER_VERSION, SUFFIXES, decode_files, decode_strictly, image_names, warn_of_shapes
from common.errors import UserError
from common.files import atomic_path
from common.images import DIGIT_SIZE, FACE_SIZE

_HEADER = ["image_name", "label"]
_LABELS = {str(digit): digit for digit in range(10)}

log = logging.getLogger(__name__)


class ImageSet(NamedTuple):
    """Images with what belongs to them, in the same order."""

    images: torch.Tensor  # (N, 3, H, W) uint8
    labels: torch.Tensor | None  # (N,) int64
    names: list[str]  # of the files

    def sample(self, count: int) -> "ImageSet":
        """Return a random choice of at most `count` images, always the same."""
        rows = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(0))[:count]
        labels = None if self.labels is None else self.labels[rows]
        return ImageSet(self.images[rows], labels, [self.names[row] for row in rows])


def fingerprint(*sets: ImageSet) -> str:
    """Return a hash of all pixels and labels: 16 hexadecimal digits. Equal images under other names are equal data."""
    content = hashlib.sha256()
    for images, labels, _ in sets:
        content.update(repr((tuple(images.shape), labels is None)).encode())
        content.update(images.numpy())
        content.update(b"" if labels is None else labels.numpy())
    return content.hexdigest()[:16]


def default_data() -> str:
    """Return `hw2_data`, first in the working directory, then in the project's. Raises UserError if there is none."""
    for folder in (Path("hw2_data"), Path(__file__).resolve().parents[2] / "hw2_data"):
        if folder.is_dir():
            return str(folder)
    raise UserError("no hw2_data here: build it with `python -m common.prepare --raw DIR`, "
                    "or type `--data builtin` for the embedded stand-ins")


def load_digits(data: str | Path, domain: str, split: str, labelled: bool = True) -> ImageSet:
    """Load one split ("train", "val" or "test") of one digit domain at 28x28, from a data folder or "builtin".

    A `domain` named "builtin-NAME" is the embedded stand-in of NAME, whatever `data` is. If not `labelled`, the labels
    are None: those of the CSV file are not looked at and may be missing. Without a train.csv, the training images are
    then those that neither val.csv nor test.csv names.

    Raises UserError for an unknown domain, a missing folder or image, or a mistake in the CSV file (with its line).
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"got split {split!r}, expected 'train', 'val' or 'test'")
    name, embedded = domains.split_name(domain)
    if embedded or str(data) == "builtin":
        images, labels = domains.embedded_digits(name, split)
        return _embedded(f"{name} {split}", images, torch.from_numpy(labels) if labelled else None)
    folder = _domain_folder(Path(data), name)
    if labelled or split != "train" or (folder / "train.csv").exists():
        rows = _read_split(folder / f"{split}.csv", labelled)
        names, labels = list(rows), torch.tensor([*rows.values()]) if labelled else None
        if split != "train" and (train := folder / "train.csv").exists():
            shared = sum(row[0] in rows for _, row in _read_csv(train, labelled=False))
            if shared:
                log.warning("%s/%s.csv names %d images of train.csv: scores on it mislead", folder, split, shared)
    else:
        names, labels = _unnamed_images(folder), None
    images = _load_cached(Path(data), f"digits-{name}-{split}", folder / "data", names, DIGIT_SIZE)
    return ImageSet(images, labels, names)


def has_split(data: str | Path, domain: str, split: str) -> bool:
    """Return whether `load_digits` can give labelled digits, for scores that are left out otherwise.

    False without the CSV file, if none of its images exists (the coursework's test.csv), or if all labels are empty.
    Any other flaw is a mistake, of which `load_digits` tells. An embedded set has every split.
    """
    name, embedded = domains.split_name(domain)
    if embedded or str(data) == "builtin":
        return True
    path = _domain_folder(Path(data), name) / f"{split}.csv"
    if not path.exists():
        return False
    rows = [row for _, row in _read_csv(path, labelled=False)]
    images = _present(path.parent)
    some_image = any(row[0] in images for row in rows)
    some_label = any(any(row[1:]) for row in rows)
    return not rows or (some_image and some_label)  # without rows, `load_digits` tells of the mistake


def load_faces(data: str | Path, split: str) -> ImageSet:
    """Load the faces at 64x64, without labels; `split` is "train" or "val", `data` as in load_digits."""
    if split not in ("train", "val"):
        raise ValueError(f"got split {split!r}, expected 'train' or 'val'")
    if str(data) == "builtin":
        return _embedded(f"face {split}", synthetic_faces.faces(split), None)
    folder = _require_folder(Path(data), f"face/{split}", prepared=True, stand_in="builtin")
    names = _list_images(folder)
    return ImageSet(_load_cached(Path(data), f"face-{split}", folder, names, FACE_SIZE), None, names)


def load_folder(folder: str | Path, size: int) -> ImageSet:
    """Load all images of any folder, sorted by name, without labels or cache; a broken image is a UserError.

    They should have `size` already: a warning tells how many do not.
    """
    names = _list_images(Path(folder))
    images, sides = decode_strictly(Path(folder), names, size)
    warn_of_shapes(str(folder), images, sides, exact=True)
    return ImageSet(torch.from_numpy(images), None, names)


def load_readable(folder: str | Path, size: int) -> tuple[ImageSet, list[tuple[str, str]]]:
    """Load the images of any folder and any size; leave out broken ones and return them as (name, reason) pairs."""
    names = _list_images(Path(folder))
    images, sides, reasons = decode_files(Path(folder), names, size)
    if reasons:  # without a broken image, this would only copy them all
        good = [row for row, name in enumerate(names) if name not in reasons]
        images, sides, names = images[good], sides[good], [names[row] for row in good]
    warn_of_shapes(str(folder), images, sides, exact=False)
    return ImageSet(torch.from_numpy(images), None, names), sorted(reasons.items())


def _embedded(what: str, images: np.ndarray, labels: torch.Tensor | None) -> ImageSet:
    log.info("%s: %d images (embedded)", what, len(images))
    names = [f"{row:05d}.png" for row in range(len(images))]
    return ImageSet(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels, names)


def _domain_folder(data: Path, name: str) -> Path:
    domain = domains.DOMAINS[name]
    return _require_folder(data, f"digits/{name}", bool(domain.read), f"builtin-{name}" if domain.paint else None)


def _require_folder(data: Path, part: str, prepared: bool, stand_in: str | None) -> Path:
    """Return the folder `data/part`, or raise a UserError that says how to get it."""
    build = f"build it with `python -m common.prepare --raw DIR --out {data}`"
    try:
        os.stat(f"{data}/{part}/.")  # the dot asks whether the files in it can be reached
    except (FileNotFoundError, NotADirectoryError):
        if not data.is_dir():
            raise UserError(f"no data folder {data}: {build}, or use `--data builtin`") from None
        cure = build if prepared else "make it as docs/data.md says"
        cure += f", or use the embedded set ({stand_in})" if stand_in else ""
        raise UserError(f"{data} has no {part}: {cure}") from None
    except OSError as error:
        raise UserError(f"cannot read {data / part} ({error.strerror}): make it readable") from None
    return data / part


def _present(folder: Path) -> set[str]:
    """Return the names in the folder `data` of a domain's folder."""
    try:
        return set(os.listdir(folder / "data"))
    except OSError as error:
        raise _lacking(folder / "data", error) from None


def _lacking(path: Path, error: OSError) -> UserError:
    """Return the error for a part of a domain's folder that is missing or cannot be read."""
    what = f"no {path}" if isinstance(error, FileNotFoundError) else f"cannot read {path} ({error.strerror})"
    return UserError(f"{what}: a domain needs the images in data/ and train.csv, val.csv beside it (see docs/data.md)")


def _read_csv(path: Path, labelled: bool) -> Iterator[tuple[str, list[str]]]:
    """Read a CSV file; yield the place (file and line) and the fields of each row below the header."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            if header != _HEADER and (labelled or header[:1] != _HEADER[:1]):
                raise UserError(f"{path} line 1: no header: the first line must be `{','.join(_HEADER)}`")
            for row in filter(None, reader):  # a blank line is not a row
                yield f"{path} line {reader.line_num}", row
    except OSError as error:
        raise _lacking(path, error) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV text file ({error}): save it as UTF-8 CSV") from None


def _read_split(path: Path, labelled: bool) -> dict[str, int | None]:
    """Read `image_name,label` rows, in the order of the file; the images are in the folder `data` beside it."""
    rows, present = {}, _present(path.parent)
    for where, (name, *rest) in _read_csv(path, labelled):
        if labelled and len(rest) != 1:
            raise UserError(f"{where}: {1 + len(rest)} fields: write `image_name,label`")
        if name not in present:  # this also rejects a path that leads out of the folder
            raise UserError(f"{where}: no image {name!r} in {path.parent}/data: add it, or remove the row")
        if labelled and rest[0] not in _LABELS:
            raise UserError(f"{where}: bad label {rest[0]!r}: write a digit from 0 to 9")
        if name in rows:
            raise UserError(f"{where}: {name} has a row already: remove one of the two")
        rows[name] = _LABELS[rest[0]] if labelled else None
    if not rows:
        raise UserError(f"{path}: no rows after the header: add `image_name,label` rows")
    return rows


def _unnamed_images(folder: Path) -> list[str]:
    """Return the images of a domain that are held out by neither val.csv nor test.csv."""
    others = [path for path in (folder / "val.csv", folder / "test.csv") if path.exists()]
    held_out = {row[0] for path in others for _, row in _read_csv(path, labelled=False)}
    if not (names := [name for name in _list_images(folder / "data") if name not in held_out]):
        raise UserError(f"{folder}/data holds no images but those of val.csv and test.csv: add images to train with")
    log.info("no %s/train.csv: all %d images that val.csv and test.csv do not name are used", folder, len(names))
    return names


def _list_images(folder: Path) -> list[str]:
    """Return the names of the images in a folder, sorted. Raises UserError if there are none or a name is not UTF-8."""
    try:
        with os.scandir(folder) as entries:
            names = image_names(folder, [entry.name + "/" * (not entry.is_file()) for entry in entries])
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no folder {folder}: give an existing folder of images") from None
    except OSError as error:
        raise UserError(f"cannot read {folder} ({error.strerror}): give a folder of images") from None
    if not names:
        raise UserError(f"{folder} holds no images: put files named {', '.join(SUFFIXES)} there")
    for name in names:
        if name != name.encode(errors="ignore").decode():  # neither a CSV file nor a terminal can show it
            raise UserError(f"{folder}: the file name {name!r} is not UTF-8: rename it")
    return names


def _load_cached(data: Path, key: str, folder: Path, names: list[str], size: int) -> torch.Tensor:
    """Load the images `names` of `folder` from the cache; if it is missing or stale, decode them and cache them."""
    start = time.perf_counter()
    path = data / ".cache" / f"{key}-{_listing_hash(folder, names, size)}.npy"
    try:
        with open(path, "rb") as file:
            images, sides, how = np.load(file), np.load(file), "cached"
    except (OSError, ValueError, EOFError):  # missing or damaged
        images, sides = decode_strictly(folder, names, size)
        how = "decoded" if _store(path, key, images, sides) else "not cached"
    log.info("%s: %d images, %.0f images/s (%s)", key, len(images), len(images) / (time.perf_counter() - start), how)
    warn_of_shapes(key, images, sides, exact=False)
    return torch.from_numpy(images)


def _listing_hash(folder: Path, names: list[str], size: int) -> str:
    """Return a hash that changes when an image is replaced, added, removed or moved."""
    listing = hashlib.sha256(f"{DECODER_VERSION}\n{size}".encode())
    try:
        for name in names:
            stat = os.stat(f"{folder}/{name}")  # three times as fast as Path.stat
            # Change time, because unpacking an archive sets the modification time back.
            listing.update(f"\n{name}\0{stat.st_size}\0{stat.st_ctime_ns}".encode())
    except OSError as error:  # for example a dangling link
        raise UserError(f"cannot read {folder / name} ({error.strerror}): replace it or remove it") from None
    return listing.hexdigest()[:16]


def _store(path: Path, key: str, *arrays: np.ndarray) -> bool:
    """Write a cache file atomically and remove stale files of the same key; return whether it was written."""
    try:
        with atomic_path(path, writer=str(os.getpid())) as partial, open(partial, "wb") as file:
            for array in arrays:
                np.save(file, array)
        for stale in set(path.parent.glob(f"{key}-*.npy")) - {path}:
            stale.unlink(missing_ok=True)
        return True
    except (UserError, OSError):  # read-only or full
        return False
