"""Tiny raw files in the published formats, for the tests of the readers and of common.prepare."""

import bz2
import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

TRAIN, TEST = 53, 11  # digits per official file; 53 * 0.8 = 42.4
RNG = np.random.default_rng(5)
IMAGES = {
    "train": RNG.integers(0, 256, (TRAIN, 28, 28), np.uint8),
    "t10k": RNG.integers(0, 256, (TEST, 28, 28), np.uint8),
}
IMAGES["train"][:, :9] = IMAGES["t10k"][:, :9] = 0  # digits have black margins
LABELS = {"train": np.arange(TRAIN) % 10, "t10k": np.arange(TEST)[::-1] % 10}
COLOURS = {"train": (10, 60, 110), "val": (160, 200, 240)}  # red channels of the photographs


def write_mnist(raw: Path, pack=gzip.compress, suffix: str = ".gz") -> None:
    folder = raw / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for part, images in IMAGES.items():
        pixels = struct.pack(">4I", 2051, *images.shape) + images.tobytes()
        labels = struct.pack(">2I", 2049, len(images)) + LABELS[part].astype(np.uint8).tobytes()
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(pixels))
        (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(labels))


def write_photos(raw: Path, folders=("train", "val")) -> None:
    """Write photographs with one red value each, the column in green and the row in blue."""
    for name in folders:
        folder = raw / "BSDS500" / "data" / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        for red in COLOURS[name]:
            photo = np.zeros((40, 60, 3), np.uint8)
            photo[..., 0] = red
            photo[..., 1], photo[..., 2] = np.meshgrid(np.arange(60) * 4, np.arange(40) * 4)
            Image.fromarray(photo).save(folder / f"{red:03d}.jpg", quality=100, subsampling=0)


def write_usps(raw: Path) -> None:
    (raw / "USPS").mkdir(parents=True)
    for name, count in (("usps.bz2", TRAIN), ("usps.t.bz2", TEST)):
        lines = (  # label 1..10, then 1-based index:value in -1..1; image i has one grey value
            f"{i % 10 + 1} " + " ".join(f"{k + 1}:{i / 26 - 1:.4f}" for k in range(256)) for i in range(count)
        )
        (raw / "USPS" / name).write_bytes(bz2.compress("\n".join(lines).encode()))


def write_svhn(raw: Path) -> None:
    (raw / "SVHN").mkdir(parents=True)
    for name, count in (("train", TRAIN), ("test", TEST)):
        images = np.broadcast_to(np.arange(count, dtype=np.uint8), (32, 32, 3, count)).copy()
        labels = np.arange(count)[:, None] % 10 + 1  # 1..10
        scipy.io.savemat(raw / "SVHN" / f"{name}_32x32.mat", {"X": images, "y": labels.astype(np.uint8)})


def face(size: tuple[int, int], shade: int, kind: str = "jpeg") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(file, kind)
    return file.getvalue()


def write_lfwcrop(raw: Path) -> dict[str, bytes]:
    members = {
        f"face/{split}/{i:05d}.jpg": face((64, 64), 10 * i) for split in ("train", "val") for i in range(3)
    }
    members["face/val/00003.jpg"] = face((100, 80), 30)
    (raw / "lfwcrop").mkdir(parents=True)
    with zipfile.ZipFile(raw / "lfwcrop" / "face.zip", "w") as archive:
        for name, blob in {**members, "face/readme.txt": b"x", "__MACOSX/face/val/._0.jpg": b"x"}.items():
            archive.writestr(name, blob)
    return members
