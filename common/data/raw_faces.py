"""Face sets: CelebA or LFWcrop as published, or any folder or zip of images, divided into train and val."""

import io
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from common.data.decode import image_names, open_rgb
from common.data.raw_files import Missing, reading, split_rows
from common.errors import UserError
from common.images import FACE_SIZE

MAX_IMAGE_BYTES = 64 * 2**20  # no photograph is larger, so a zip member that claims more is refused

log = logging.getLogger(__name__)


def read_faces(raw: Path | None, source: Path | None) -> tuple[dict[str, list[str]], Callable]:
    """Divide the faces of `source`, a folder or zip, into train and val. Without `source`, use the first set in `raw`.

    CelebA keeps its official split. A source with folders `train` and `val`, in letters of any case, keeps these; if it
    has no `val`, train is divided 80/20. Any other source is divided 80/20. What is left out is counted in a warning.

    Returns:
        The names for "train" and "val", and a function that turns a name into (bytes, suffix) of a 64x64 image file.
    Raises:
        Missing: no faces in `raw`. UserError: a damaged file, or a split without faces.
    """
    source = source or _find(raw)
    names, read = _open(source)
    place = source.absolute()  # `.` has no name
    if official := place.stem == "img_align_celeba":
        partition = _read_partition(place.parent)
        found = [partition.get(Path(name).name) for name in names]
    else:
        found = [_split_folder(name) for name in names]
    splits = {split: [name for name, part in zip(names, found, strict=True) if part == split]
              for split in ("train", "val")}
    if not official and not splits["val"]:
        if splits["train"]:
            log.warning("%s has train/ but no val/: 20 %% of train/ become val", source)
        whole = splits["train"] or names
        splits = {split: [whole[row] for row in rows]
                  for split, rows in zip(splits, split_rows(len(whole)), strict=True)}
    if left_out := len(names) - sum(map(len, splits.values())):
        log.warning("%s: %d of %d images are left out: neither train nor val", source, left_out, len(names))
    for split, members in splits.items():
        if not members:
            raise UserError(f"{source} has no {split} faces: add more images, or a train/ and a val/ folder")

    def read_face(name: str) -> tuple[bytes, str]:
        with reading(f"{source}: {name}"):
            return face_file(read(name))

    return splits, read_face


def _find(raw: Path) -> Path:
    for place in ("celeba/img_align_celeba", "celeba/img_align_celeba.zip", "lfwcrop/face.zip"):
        if (raw / place).exists():
            return raw / place
    raise Missing(f"put CelebA into {raw}/celeba, or LFWcrop's face.zip into {raw}/lfwcrop, or name others by --faces")


def _read_partition(folder: Path) -> dict[str, str]:
    """Read CelebA's official partition, as published or as Kaggle's CSV; return "train" or "val" by file name."""
    text, table = (folder / f"list_eval_partition{suffix}" for suffix in (".txt", ".csv"))
    path = table if table.exists() and not text.exists() else text
    with reading(path):
        rows = dict(line.replace(",", " ").split() for line in path.read_text().splitlines() if line)
    codes = {"0": "train", "1": "val"}  # 2 is test (unused)
    return {name: codes[code] for name, code in rows.items() if code in codes}


def _split_folder(name: str) -> str | None:
    """Return the first of the folders of `name` that names a split; a zip from Windows may have backslashes."""
    folders = name.lower().replace("\\", "/").split("/")[:-1]
    return next((folder for folder in folders if folder in ("train", "val")), None)


def _open(source: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """List the images of a folder or zip; return their names and a function that reads one of them."""
    if source.is_dir():
        with reading(source):
            found = []
            for folder, folders, files in os.walk(source, onerror=_raise, followlinks=True):
                above = {place.resolve() for place in (Path(folder), *Path(folder).absolute().parents)}
                folders[:] = [name for name in folders if Path(folder, name).resolve() not in above]  # no circles
                found += [f"{folder}/{name}".removeprefix(f"{source}/") + "/" * (not os.path.isfile(f"{folder}/{name}"))
                          for name in files]
        return image_names(source, found), lambda name: (source / name).read_bytes()
    with reading(source):
        archive = zipfile.ZipFile(source)

    def read(name: str) -> bytes:
        if (size := archive.getinfo(name).file_size) > MAX_IMAGE_BYTES:  # zipfile unpacks no more than this
            raise ValueError(f"{size / 2**20:.0f} MiB unpacked, expected at most {MAX_IMAGE_BYTES / 2**20:.0f}")
        return archive.read(name)

    return image_names(source, [name for name in archive.namelist() if not name.endswith("/")]), read


def _raise(error: OSError) -> None:
    raise error


def face_file(blob: bytes) -> tuple[bytes, str]:
    """Turn an image file into (bytes, suffix) of a 64x64 one. A 64x64 JPEG or PNG keeps its bytes.

    Any other image is cropped to the central square (178x178 of CelebA's 178x218), resized and stored as PNG.
    """
    image = open_rgb(blob)
    suffix = {b"\xff\xd8": ".jpg", b"\x89P": ".png"}.get(blob[:2])  # the first bytes of a JPEG and of a PNG file
    if suffix and image.size == (FACE_SIZE, FACE_SIZE):
        return blob, suffix
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Crop first: with resize(box=...) the filter would read pixels outside the box.
    square = image.crop((left, top, left + side, top + side))
    file = io.BytesIO()
    square.resize((FACE_SIZE, FACE_SIZE), Image.Resampling.BILINEAR).save(file, "png", compress_level=1)
    return file.getvalue(), ".png"
