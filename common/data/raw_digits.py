"""Readers of the digit sets as published; MNIST-M is blended from MNIST and the photographs of BSDS500.

A reader takes the raw folder and returns the official train and test digits. It raises Missing for a missing file and
UserError for a damaged one. `common.prepare` lists where the files belong.
"""

import gzip
import logging
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.data.decode import open_rgb
from common.data.raw_files import Missing, reading, require
from common.errors import UserError
from common.images import DIGIT_SIZE

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_USPS = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/"
_SVHN = "http://ufldl.stanford.edu/housenumbers/"
_BSDS = "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz"
MNIST_FILES = (
    (f"{_MNIST}train-images-idx3-ubyte.gz", "MNIST/raw", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    (f"{_MNIST}train-labels-idx1-ubyte.gz", "MNIST/raw", "d53e105ee54ea40749a09fcbcd1e9432"),
    (f"{_MNIST}t10k-images-idx3-ubyte.gz", "MNIST/raw", "9fb629c4189551a2d022fa330f9573f3"),
    (f"{_MNIST}t10k-labels-idx1-ubyte.gz", "MNIST/raw", "ec29112dd5afa0611ce80d1b7f02629c"),
)
MNISTM_FILES = (*MNIST_FILES, (_BSDS, "", None))
USPS_FILES = ((f"{_USPS}usps.bz2", "USPS", "ec16c51db3855ca6c91edd34d0e9b197"),
              (f"{_USPS}usps.t.bz2", "USPS", "8ea070ee2aca1ac39742fdd1ef5ed118"))
SVHN_FILES = ((f"{_SVHN}train_32x32.mat", "SVHN", "e26dedcc434d2e4c54c9b2d4a06d8373"),
              (f"{_SVHN}test_32x32.mat", "SVHN", "eb5a983be6a315427106f1b164d9cef3"))


log = logging.getLogger(__name__)


class Digits(NamedTuple):
    """One official file: images (N, H, W) or (N, H, W, 3) uint8, labels (N,) of 0..9."""

    images: np.ndarray
    labels: np.ndarray


def read_mnist(raw: Path) -> tuple[Digits, Digits]:
    """Read MNIST (LeCun et al. 1998), packed or unpacked."""
    paths = require(raw, MNIST_FILES)
    arrays = [_read_idx(path, num_axes) for path, num_axes in zip(paths, (3, 1, 3, 1), strict=True)]
    return _digits(paths[0], *arrays[:2]), _digits(paths[2], *arrays[2:])


def _read_idx(path: Path, num_axes: int) -> np.ndarray:
    """Read an IDX file: the bytes 0, 0, 8 (for uint8) and num_axes, one big-endian uint32 per axis, the values."""
    with reading(path):
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        if content[:4] != bytes((0, 0, 8, num_axes)):
            raise ValueError(f"starts with {content[:4].hex()}, expected 0000080{num_axes}")
        shape = np.frombuffer(content, ">u4", num_axes, offset=4).tolist()
        return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(shape)


def read_usps(raw: Path) -> tuple[Digits, Digits]:
    """Read USPS (Hull 1994) in LIBSVM's text format."""
    from torchvision.datasets import USPS  # slow to import

    digits = []
    for path in require(raw, USPS_FILES):
        with reading(path):
            usps = USPS(str(path.parent), train=path.name == "usps.bz2", download=False)
        digits.append(_digits(path, usps.data, np.array(usps.targets)))
    return tuple(digits)


def read_svhn(raw: Path) -> tuple[Digits, Digits]:
    """Read the cropped digits of SVHN (Netzer et al. 2011)."""
    from scipy.io import loadmat  # slow to import

    digits = []
    for path in require(raw, SVHN_FILES):
        with reading(path):
            mat = loadmat(path)
            if mat["X"].shape[:3] != (32, 32, 3) or mat["X"].dtype != np.uint8:
                raise ValueError(f"X: got {mat['X'].dtype} of shape {mat['X'].shape}, expected uint8 32x32x3xN")
            images, labels = mat["X"].transpose(3, 0, 1, 2), mat["y"].reshape(-1)
        digits.append(_digits(path, images, np.where(labels == 10, 0, labels)))  # label 10 is the digit 0
    return tuple(digits)


def read_mnistm(raw: Path) -> tuple[Digits, Digits]:
    """Blend MNIST with photographs. Train and test digits share no photograph (our choice: it prevents a leak)."""
    splits = enumerate(zip(read_mnist(raw), read_photos(raw), strict=True))
    return tuple(Digits(blend(digits.images, photos, np.random.default_rng([0, i])), digits.labels)
                 for i, (digits, photos) in splits)


def blend(digits: np.ndarray, photos: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Make MNIST-M (Ganin & Lempitsky 2015, arXiv:1409.7495): |patch - digit| in each channel.

    Each digit of (N, 28, 28) uint8 gets a random patch of a random photograph, (H, W, 3) uint8 of at least 28x28. The
    result is (N, 28, 28, 3) uint8.
    """
    chosen = rng.integers(len(photos), size=len(digits))
    position = rng.random((len(digits), 2))
    blended = np.empty((*digits.shape, 3), np.uint8)
    for index, photo in enumerate(photos):
        rows = np.flatnonzero(chosen == index)
        windows = np.lib.stride_tricks.sliding_window_view(photo, digits.shape[1:], axis=(0, 1))
        top, left = (position[rows] * windows.shape[:2]).astype(int).T
        patches = windows[top, left].transpose(0, 2, 3, 1)
        blended[rows] = np.abs(patches.astype(np.int16) - digits[rows, :, :, None])
    return blended


def read_photos(raw: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Read BSDS500 (Arbelaez et al. 2011): (H, W, 3) uint8 photographs, some for train and some for test digits."""
    folder, archive = raw / "BSDS500" / "data" / "images", raw / Path(_BSDS).name
    with reading(folder):
        blobs = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in folder.glob("*/[!.]*.jpg")}
    if not blobs and archive.exists():
        with reading(archive), tarfile.open(archive) as tar:
            for member in tar:
                if "/data/images/" in member.name and member.name.endswith(".jpg") and "/." not in member.name:
                    blobs["/".join(member.name.split("/")[-2:])] = tar.extractfile(member).read()
    train = sorted(name for name in blobs if name.startswith("train/"))
    test = sorted(name for name in blobs if name.startswith(("val/", "test/")))
    if len(train) + len(test) < 2:
        raise Missing(f"put the BSDS500 photographs into {folder}/{{train,val}} (or --download)")
    if not train or not test:
        both = train + test
        cut = min(round(0.8 * len(both)), len(both) - 1)
        train, test = both[:cut], both[cut:]
        log.warning("mnistm: only one folder of photographs: the test digits get its last %d by name", len(test))
    return [_photo(name, blobs[name]) for name in train], [_photo(name, blobs[name]) for name in test]


def _photo(name: str, blob: bytes) -> np.ndarray:
    with reading(f"photograph {name}"):
        image = open_rgb(blob)
        if min(image.size) < DIGIT_SIZE:
            raise ValueError(f"smaller than {DIGIT_SIZE}x{DIGIT_SIZE}")
        return np.asarray(image)


def _digits(path: Path, images: np.ndarray, labels: np.ndarray) -> Digits:
    if len(images) != len(labels) or not np.isin(labels, range(10)).all():
        raise UserError(f"{path}: {len(labels)} labels for {len(images)} images, or one not in 0..9: download it again")
    return Digits(images, labels)
