"""Face sets: CelebA or LFWcrop as published, or any folder or zip of images, divided into train and val."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from common.data.folder import SUFFIXES
from common.data.raw_files import Missing, reading, split_rows
from common.errors import UserError
from common.images import FACE_SIZE

MAX_IMAGE_BYTES = 64 * 2**20  # no photograph is larger, so a zip member that claims more is refused


def read_faces(raw: Path, seed: int, source: Path | None) -> tuple[dict[str, list[str]], Callable]:
    """Divide the faces of `source`, a folder or zip, into train and val. Without `source`, use the first set in `raw`.

    CelebA keeps its official split. A source with folders `train` and `val` keeps these. Others are divided 80/20.

    Returns:
        The names for "train" and "val", and a function that turns a name into (bytes, suffix) of a 64x64 image file.
    Raises:
        Missing: no faces in `raw`. UserError: a damaged file, or a split without faces.
    """
    source = source or _find(raw)
    names, read = _open(source)
    splits = {split: [name for name in names if f"/{split}/" in f"/{name}"] for split in ("train", "val")}
    if source.stem == "img_align_celeba":  # the official partition: 0 is train, 1 val, 2 test (unused)
        with reading(path := source.with_name("list_eval_partition.txt")):
            partition = dict(line.split() for line in path.read_text().splitlines() if line)
        for split, code in (("train", "0"), ("val", "1")):
            splits[split] = [name for name in names if partition.get(Path(name).name) == code]
    elif not all(splits.values()):
        splits = {split: [names[row] for row in rows]
                  for split, rows in zip(splits, split_rows(len(names), seed), strict=True)}
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


def _open(source: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """List the images of a folder or zip; return their names and a function that reads one of them."""
    if source.is_dir():
        names = [path.relative_to(source).as_posix() for path in source.rglob("*")]
        read = lambda name: (source / name).read_bytes()  # noqa: E731
    else:
        with reading(source):
            archive = zipfile.ZipFile(source)
        names = archive.namelist()

        def read(name: str) -> bytes:
            if (size := archive.getinfo(name).file_size) > MAX_IMAGE_BYTES:  # zipfile unpacks no more than this
                raise ValueError(f"{size / 2**20:.0f} MiB unpacked, expected at most {MAX_IMAGE_BYTES / 2**20:.0f}")
            return archive.read(name)
    return sorted(n for n in names if n.lower().endswith(SUFFIXES) and not Path(n).name.startswith(".")), read


def face_file(blob: bytes) -> tuple[bytes, str]:
    """Turn an image file into (bytes, suffix) of a 64x64 one. A 64x64 JPEG or PNG keeps its bytes.

    Any other image is cropped to the central square (178x178 of CelebA's 178x218), resized and stored as PNG.
    """
    with Image.open(io.BytesIO(blob)) as image:
        image.load()
        suffix = {"JPEG": ".jpg", "PNG": ".png"}.get(image.format)
        if suffix and image.size == (FACE_SIZE, FACE_SIZE):
            return blob, suffix
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        # Crop first: with resize(box=...) the filter would read pixels outside the box.
        square = image.convert("RGB").crop((left, top, left + side, top + side))
        face = square.resize((FACE_SIZE, FACE_SIZE), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    face.save(file, "png", compress_level=1)
    return file.getvalue(), ".png"
