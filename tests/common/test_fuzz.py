"""Readers on arbitrary bytes: they return a result or raise an error of one line."""

import bz2
import gzip
import io
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from common import checkpoint
from common.data.decode import open_rgb
from common.data.folder import has_split, load_digits
from common.data.raw_digits import read_mnist, read_svhn, read_usps
from common.errors import UserError
from common.prepare import write_faces

many = settings(max_examples=400, deadline=None, derandomize=True,
                suppress_health_check=[HealthCheck.function_scoped_fixture])
changes = st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=4)), min_size=1, max_size=8)


def damaged(content: bytes, edits: list[tuple[int, bytes]]) -> bytes:
    """Overwrite bytes, append bytes or (for empty bytes) truncate, at positions that wrap around the content."""
    for position, new in edits:
        at = position % max(1, len(content))
        content = content[:at] + new + content[at + len(new):] if new else content[:max(1, at)]
    return content


def or_one_line(work, *kinds: type[Exception]):
    """Call `work`; an exception of these kinds must have one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()
    except kinds as mistake:
        assert str(mistake) and "\n" not in str(mistake)


def image_bytes(kind: str, mode: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


IMAGES = [image_bytes(*pair) for pair in (("PNG", "RGB"), ("PNG", "P"), ("PNG", "I;16"), ("JPEG", "RGB"), ("BMP", "L"),
                                          ("WEBP", "RGB"), ("GIF", "P"), ("JPEG", "CMYK"), ("PNG", "LA"),
                                          ("TIFF", "RGBA"))]


@many
@given(st.sampled_from(IMAGES), changes)
def test_images(content, edits):
    image = or_one_line(lambda: open_rgb(damaged(content, edits)), ValueError)
    assert image is None or image.mode == "RGB"


@pytest.fixture
def digits(tmp_path):
    folder = tmp_path / "digits" / "usps"
    (folder / "data").mkdir(parents=True)
    for i in range(3):
        (folder / "data" / f"{i}.png").write_bytes(image_bytes("PNG", "L"))
    return tmp_path


listed = st.sampled_from(["0.png", "1.png", "2.png", "3.png", "../0.png", "/etc/passwd", ".", ""]) | st.text(max_size=5)
labels = st.sampled_from(["0", "9", "10", "-1", "3.0", " 1"]) | st.text(max_size=3)
rows = st.lists(st.tuples(listed, labels, st.sampled_from([",", ";", ",,", "\t", "\0"])), max_size=4)


@many
@given(st.sampled_from(["", "\ufeff"]), st.sampled_from(["image_name,label", "image_name", ""]), rows,
       st.sampled_from(["\n", "\r\n", "\r"]), changes | st.just([]), st.booleans())
def test_csv(digits, mark, header, rows, end, edits, labelled):
    text = mark + end.join([header, *(comma.join((name, label)) for name, label, comma in rows)]) + end
    path = digits / "digits" / "usps" / "train.csv"
    path.write_bytes(damaged(text.encode("utf-8", "surrogatepass"), edits))
    found = or_one_line(lambda: load_digits(digits, "usps", "train", labelled), UserError)
    scored = or_one_line(lambda: has_split(digits, "usps", "train"), UserError)
    if found is not None:
        assert scored or not labelled
        assert set(found.names) <= {"0.png", "1.png", "2.png"} and len(set(found.names)) == len(found.names)
        assert not labelled or (found.labels.min() >= 0 and found.labels.max() <= 9)


def checkpoint_bytes() -> bytes:
    file = io.BytesIO()
    torch.save({"format": 1, "kind": "dann", "model_args": {}, "weights": {"w": torch.zeros(3)}}, file)
    return file.getvalue()


CHECKPOINT = checkpoint_bytes()


@many
@given(edits=changes)
def test_checkpoints(tmp_path, edits):
    path = tmp_path / "last.pt"
    path.write_bytes(damaged(CHECKPOINT, edits))
    content = or_one_line(lambda: checkpoint.load(path, "dann"), UserError)
    assert content is None or content["kind"] == "dann"


def write_mnist(raw: Path, edits: list[tuple[int, bytes]]) -> None:
    folder = raw / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        pixels = struct.pack(">4I", 2051, 4, 28, 28) + bytes(4 * 28 * 28)
        labels = struct.pack(">2I", 2049, 4) + bytes(range(4))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(damaged(pixels, edits))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def write_usps(raw: Path, edits: list[tuple[int, bytes]]) -> None:
    (raw / "USPS").mkdir(parents=True, exist_ok=True)
    text = "\n".join(f"{i + 1} " + " ".join(f"{k + 1}:-0.5" for k in range(256)) for i in range(4)).encode()
    (raw / "USPS" / "usps.bz2").write_bytes(bz2.compress(damaged(text, edits)))
    (raw / "USPS" / "usps.t.bz2").write_bytes(bz2.compress(text))


def write_svhn(raw: Path, edits: list[tuple[int, bytes]]) -> None:
    (raw / "SVHN").mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    scipy.io.savemat(file, {"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.arange(1, 5, dtype=np.uint8)[:, None]})
    (raw / "SVHN" / "train_32x32.mat").write_bytes(damaged(file.getvalue(), edits))
    (raw / "SVHN" / "test_32x32.mat").write_bytes(file.getvalue())


@many
@given(st.sampled_from([(write_mnist, read_mnist), (write_usps, read_usps), (write_svhn, read_svhn)]), changes)
def test_raw_digits(tmp_path, pair, edits):
    write, read = pair
    write(tmp_path, edits)
    for part in or_one_line(lambda: read(tmp_path), UserError) or ():
        assert len(part.images) == len(part.labels)
        assert all(0 <= label <= 9 for label in part.labels)


names = st.lists(st.sampled_from(["face/train/a.png", "face/val/b.png", "../face/train/c.png", "/face/val/d.png",
                                  "face\\val\\e.png", "face/train/.png", "face/val/"])
                 | st.text(min_size=1, max_size=8), max_size=5, unique=True)


@settings(many, max_examples=50)
@given(names, changes | st.just([]))
def test_zips_of_faces(tmp_path_factory, names, edits):
    here = tmp_path_factory.mktemp("zip")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, IMAGES[0])
    path, out = here / "faces.zip", here / "deep" / "down" / "face"
    path.write_bytes(damaged(file.getvalue(), edits))
    out.mkdir(parents=True)
    or_one_line(lambda: write_faces(here, path, out), UserError)
    assert {p for p in here.rglob("*.png")} == set(out.rglob("*.png"))
