"""Build the canonical data folder (see `common.datasets`) from public data sets as they are published.

    python -m common.prepare --raw DIR --out hw2_data

    DIR/MNIST/raw/*-ubyte[.gz]              digits/mnist, and with the photographs digits/mnistm
    DIR/BSDS500/data/images/*/*.jpg         the photographs (or DIR/BSR_bsds500.tgz)
    DIR/USPS/usps.bz2, usps.t.bz2           digits/usps
    DIR/SVHN/{train,test}_32x32.mat         digits/svhn
    DIR/celeba, lfwcrop/face.zip or lfw     face (the first that is there, or --faces PATH)

Digits: the official train file is divided 80/20 into train.csv and val.csv, the same way for MNIST and
MNIST-M; the official test file becomes test.csv. A set is built in a hidden sibling folder and renamed at
the end, so a set that exists is complete and left alone, and an interrupted run is finished by the next.
"""

import argparse
import gzip
import http.client
import io
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import numpy as np
import scipy.io
from PIL import Image
from torchvision.datasets import MNIST, SVHN, USPS
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import download_url
from tqdm import tqdm

from common.cli import Parser, non_negative_int, run_main
from common.datasets import DIGIT_SIZE, FACE_SIZE, SUFFIXES
from common.errors import UserError

BSDS_URL = "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz"
DOWNLOADS = {  # (url, folder below --raw, MD5 where one is published)
    "mnist": [(MNIST.mirrors[0] + name, "MNIST/raw", md5) for name, md5 in MNIST.resources],
    "usps": [(url, "USPS", md5) for url, _, md5 in USPS.split_list.values()],
    "svhn": [(url, "SVHN", md5) for url, _, md5 in (SVHN.split_list["train"], SVHN.split_list["test"])],
}
DOWNLOADS["mnistm"] = [*DOWNLOADS["mnist"], (BSDS_URL, "", None)]
MAX_IMAGE_BYTES = 64 * 2**20  # a member of a zip that claims more is no photograph
LFW_HOST = "ndownloader.figshare.com"  # where scikit-learn's fetch_lfw_people goes


class Missing(Exception):
    """A raw source that is not there; the message says what to put where."""


class Unreachable(Exception):
    """A download that failed; the message names the host."""


class Digits(NamedTuple):
    """One official file: images (N, H, W) or (N, H, W, 3) uint8, labels (N,) of 0..9."""

    images: np.ndarray
    labels: np.ndarray


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--raw", type=Path, required=True, help="folder of the raw files")
    parser.add_argument("--out", type=Path, default=Path("hw2_data"), help="folder to build")
    parser.add_argument("--faces", type=Path, help="folder or zip of face images, instead of those in --raw")
    parser.add_argument("--download", action="store_true", help="fetch what is missing into --raw")
    parser.add_argument("--seed", metavar="N", type=non_negative_int, default=0,
                        help="of the 80/20 splits and of MNIST-M's patches")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Build every set whose raw files are there, and say in a line what became of each."""
    args = parse_args(argv)
    if not args.raw.is_dir() and not args.download:
        raise UserError(f"no folder {args.raw}: give the folder of the raw files, or --download to fill it")
    if args.faces and not args.faces.exists():
        raise UserError(f"no folder or zip {args.faces}: give --faces the path of the face images")
    complete, failures = 0, []
    for name, write in WRITERS.items():
        target = args.out / name
        try:
            if target.exists():
                print(f"keep {name}: exists")
            else:
                print(f"made {name}: {_build(target, write, args)}")
            complete += 1
        except Missing as missing:
            print(f"skip {target.name}: {missing}")
        except Unreachable as error:  # one host that is away must not keep the other sets waiting
            print(f"skip {target.name}: {error}")
            failures.append(str(error))
    if failures:
        raise UserError(failures[0])
    if not complete:
        raise UserError(f"{args.raw} holds none of the raw sets: put one there as each line above says")


def _build(target: Path, write: Callable[[Path, argparse.Namespace], str], args: argparse.Namespace) -> str:
    """Let `write` fill a hidden sibling of `target`, then rename it; leave nothing behind on an error."""
    hidden = target.with_name(f".{target.name}.partial")
    shutil.rmtree(hidden, ignore_errors=True)  # of an interrupted run
    try:
        try:
            counts = write(hidden, args)
        except Missing:
            if not args.download:
                raise
            fetch(target.name, args.raw)
            counts = write(hidden, args)
        hidden.rename(target)
        return counts
    except OSError as error:
        raise UserError(f"cannot write {target} ({error.strerror or error}): make room or change --out") from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


# --- digits ---------------------------------------------------------------------------------------------


def write_digits(read: Callable, folder: Path, args: argparse.Namespace) -> str:
    """Write one domain from `read(args)`, its official train and test Digits; returns the counts."""
    train, test = read(args)
    images = [*train.images, *test.images]
    labels = [*train.labels, *test.labels]
    names = [f"{stem}.png" for stem in _number(len(images))]
    (folder / "data").mkdir(parents=True)

    def write_image(row: int) -> None:
        image = Image.fromarray(images[row])
        if image.size != (DIGIT_SIZE, DIGIT_SIZE):
            image = image.resize((DIGIT_SIZE, DIGIT_SIZE), Image.Resampling.BILINEAR)
        image.save(folder / "data" / names[row], compress_level=1)

    _in_threads(write_image, len(images), read.__name__.removeprefix("read_"))
    fit, val = split_rows(len(train.labels), args.seed)
    splits = {"train": fit, "val": val, "test": range(len(train.labels), len(images))}
    for split, rows in splits.items():
        lines = ["image_name,label", *(f"{names[row]},{labels[row]}" for row in rows)]
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return ", ".join(f"{len(rows)} {split}" for split, rows in splits.items())


def split_rows(num_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide 0..num_rows-1 at random into sorted train (80 %) and validation (20 %, at least one) rows."""
    order = np.random.default_rng(seed).permutation(num_rows)
    cut = min(round(0.8 * num_rows), num_rows - 1)
    return np.sort(order[:cut]), np.sort(order[cut:])


def read_mnist(args: argparse.Namespace) -> tuple[Digits, Digits]:
    """Read the official train and test files, packed or unpacked."""
    folder = args.raw / "MNIST" / "raw"
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    names = [name if (folder / name).exists() else f"{name}.gz" for name in names]
    arrays = []
    with tempfile.TemporaryDirectory() as unpacked:
        for path in _require(folder, *names):
            plain = path
            if path.suffix == ".gz":
                with _reading(path):
                    content = gzip.decompress(path.read_bytes())
                plain = Path(unpacked) / path.stem
                plain.write_bytes(content)  # a full disk here is no fault of the raw file
            with _reading(path):
                read = read_image_file if "images" in path.name else read_label_file
                arrays.append(read(str(plain)).numpy())
    return _digits(folder / names[0], *arrays[:2]), _digits(folder / names[2], *arrays[2:])


def read_usps(args: argparse.Namespace) -> tuple[Digits, Digits]:
    """Read the official train and test files."""
    digits = []
    for path in _require(args.raw / "USPS", "usps.bz2", "usps.t.bz2"):
        with _reading(path):
            usps = USPS(str(path.parent), train=path.name == "usps.bz2", download=False)
        digits.append(_digits(path, usps.data, np.array(usps.targets)))
    return tuple(digits)


def read_svhn(args: argparse.Namespace) -> tuple[Digits, Digits]:
    """Read the official train and test files of cropped digits."""
    digits = []
    for path in _require(args.raw / "SVHN", "train_32x32.mat", "test_32x32.mat"):
        with _reading(path):
            mat = scipy.io.loadmat(path)
            if mat["X"].shape[:3] != (32, 32, 3) or mat["X"].dtype != np.uint8:
                raise ValueError(f"X: got {mat['X'].dtype} of shape {mat['X'].shape}, expected uint8 32x32x3xN")
            images, labels = mat["X"].transpose(3, 0, 1, 2), mat["y"].reshape(-1)
        digits.append(_digits(path, images, np.where(labels == 10, 0, labels)))  # 10 stands for the digit 0
    return tuple(digits)


def read_mnistm(args: argparse.Namespace) -> tuple[Digits, Digits]:
    """Blend MNIST with photographs; train and test digits never share one (our choice: no leak)."""
    train, test = read_mnist(args)
    train_photos, test_photos = read_photos(args.raw)
    return (
        Digits(blend(train.images, train_photos, np.random.default_rng([args.seed, 0])), train.labels),
        Digits(blend(test.images, test_photos, np.random.default_rng([args.seed, 1])), test.labels),
    )


def blend(digits: np.ndarray, photos: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """MNIST-M (Ganin & Lempitsky 2015, arXiv:1409.7495): abs(patch - digit) in each channel.

    Args:
        digits: (N, 28, 28) uint8.
        photos: RGB photographs, each (H, W, 3) uint8 of at least 28x28.
        rng: draws the photograph and the place of the patch for each digit.
    Returns:
        (N, 28, 28, 3) uint8.
    """
    chosen = rng.integers(len(photos), size=len(digits))
    place = rng.random((len(digits), 2))
    blended = np.empty((*digits.shape, 3), np.uint8)
    for index, photo in enumerate(photos):
        rows = np.flatnonzero(chosen == index)
        windows = np.lib.stride_tricks.sliding_window_view(photo, digits.shape[1:], axis=(0, 1))
        top, left = (place[rows] * windows.shape[:2]).astype(int).T
        patches = windows[top, left].transpose(0, 2, 3, 1)
        blended[rows] = np.abs(patches.astype(np.int16) - digits[rows, :, :, None])
    return blended


def read_photos(raw: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Read the photographs of BSDS500, (H, W, 3) uint8: train for train digits, val and test for test digits."""
    folder, archive = raw / "BSDS500" / "data" / "images", raw / Path(BSDS_URL).name
    blobs = {}
    for path in folder.glob("*/*.jpg"):
        with _reading(path):
            blobs[f"{path.parent.name}/{path.name}"] = path.read_bytes()
    if not blobs and archive.exists():
        with _reading(archive), tarfile.open(archive) as tar:
            for member in tar:
                if "/data/images/" in member.name and member.name.endswith(".jpg"):
                    blobs["/".join(member.name.split("/")[-2:])] = tar.extractfile(member).read()
    names = sorted(blobs)
    train = [name for name in names if name.startswith("train/")]
    test = [name for name in names if name.startswith(("val/", "test/"))]
    if len(train) + len(test) < 2:
        raise Missing(f"put the BSDS500 photographs into {folder}/{{train,val}} (or --download)")
    if not train or not test:
        both = train + test
        cut = min(round(0.8 * len(both)), len(both) - 1)
        train, test = both[:cut], both[cut:]
        print(f"mnistm: one folder of photographs only: its last {len(test)} by name go to the test digits")
    return [_photo(name, blobs[name]) for name in train], [_photo(name, blobs[name]) for name in test]


def _photo(name: str, blob: bytes) -> np.ndarray:
    with _reading(f"photograph {name}"), Image.open(io.BytesIO(blob)) as image:
        if min(image.size) < DIGIT_SIZE:
            raise ValueError(f"smaller than {DIGIT_SIZE}x{DIGIT_SIZE}")
        return np.asarray(image.convert("RGB"))


def _digits(path: Path, images: np.ndarray, labels: np.ndarray) -> Digits:
    if len(images) != len(labels) or not np.isin(labels, range(10)).all():
        raise UserError(f"{path}: {len(images)} images do not fit its {len(labels)} labels: fetch it again")
    return Digits(images, labels)


# --- faces ----------------------------------------------------------------------------------------------


def write_faces(folder: Path, args: argparse.Namespace) -> str:
    """Write face/{train,val}: by the source's own split if it has one, else 80/20 (LFW: by person)."""
    source = args.faces or _find_faces(args.raw)
    names, read = _open_images(source)
    splits = {split: [name for name in names if f"/{split}/" in f"/{name}"] for split in ("train", "val")}
    if source.parent == args.raw / "celeba":  # its official partition: 0 train, 1 val, 2 test (not used)
        with _reading(path := source.with_name("list_eval_partition.txt")):
            partition = dict(line.split() for line in path.read_text().splitlines() if line)
        for split, code in (("train", "0"), ("val", "1")):
            splits[split] = [name for name in names if partition.get(Path(name).name) == code]
    elif not all(splits.values()):
        by_person = source.is_dir() and source.name.startswith("lfw")  # LFW has a folder a person
        units = [str(Path(name).parent) if by_person else name for name in names]
        distinct = sorted(set(units))
        for split, rows in zip(splits, split_rows(len(distinct), args.seed), strict=True):
            chosen = {distinct[row] for row in rows}
            splits[split] = [name for name, unit in zip(names, units, strict=True) if unit in chosen]
    for split, members in splits.items():
        if not members:
            raise UserError(f"{source} gives no {split} faces: add some, or a train/ and a val/ folder")
        _write_split(folder / split, source, members, read)
    return ", ".join(f"{len(members)} {split}" for split, members in splits.items())


def _find_faces(raw: Path) -> Path:
    celeba = raw / "celeba"
    places = [celeba / "img_align_celeba", celeba / "img_align_celeba.zip", raw / "lfwcrop" / "face.zip"]
    places += [raw / "lfw", raw / "lfw_home" / "lfw_funneled"]
    for place in places:
        if place.exists():
            return place
    cure = f"put CelebA into {celeba}, lfwcrop's face.zip into {raw}/lfwcrop or LFW into {raw}/lfw"
    raise Missing(f"{cure} (or --download, or --faces)")


def _open_images(source: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """List the images of a folder or a zip; returns their names and a function that reads one by name."""
    if source.is_dir():
        names = [path.relative_to(source).as_posix() for path in source.rglob("*")]
        read = lambda name: (source / name).read_bytes()  # noqa: E731
    else:
        with _reading(source):
            archive = zipfile.ZipFile(source)
        names = archive.namelist()

        def read(name: str) -> bytes:
            if (size := archive.getinfo(name).file_size) > MAX_IMAGE_BYTES:  # zipfile unpacks no more than is declared
                raise ValueError(f"{size / 2**20:.0f} MiB unpacked, expected at most {MAX_IMAGE_BYTES / 2**20:.0f}")
            return archive.read(name)
    names = sorted(n for n in names if n.lower().endswith(SUFFIXES) and not Path(n).name.startswith("."))
    return names, read


def _write_split(folder: Path, source: Path, names: list[str], read: Callable[[str], bytes]) -> None:
    folder.mkdir(parents=True)
    stems = _number(len(names))

    def write_image(row: int) -> None:
        with _reading(f"{source}: {names[row]}"):
            blob, suffix = face_file(read(names[row]))
        (folder / f"{stems[row]}{suffix}").write_bytes(blob)

    _in_threads(write_image, len(names), f"face {folder.name}")


def face_file(blob: bytes) -> tuple[bytes, str]:
    """Turn an image file into a 64x64 one and its suffix; a 64x64 JPEG or PNG stays as it is, byte for byte.

    Others are cropped to the central square (178x178 of CelebA's aligned 178x218) and resized to PNG.
    """
    with Image.open(io.BytesIO(blob)) as image:
        image.load()
        suffix = {"JPEG": ".jpg", "PNG": ".png"}.get(image.format)
        if suffix and image.size == (FACE_SIZE, FACE_SIZE):
            return blob, suffix
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        square = image.convert("RGB").crop(box)  # resize(box=...) would let the filter reach beyond the box
        face = square.resize((FACE_SIZE, FACE_SIZE), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    face.save(file, "png", compress_level=1)
    return file.getvalue(), ".png"


# --- fetching, reading, writing -------------------------------------------------------------------------


def fetch(name: str, raw: Path) -> None:
    """Download the raw files of the set `name` that are not in `raw` yet."""
    for url, folder, md5 in DOWNLOADS.get(name, ()):
        path = raw / folder / Path(url).name
        if path.exists() or path.with_suffix("").exists():  # MNIST may lie there unpacked
            continue
        hidden = path.with_name(f".{path.name}.partial")
        hidden.unlink(missing_ok=True)
        with _fetching(urlparse(url).hostname, path):
            download_url(url, str(path.parent), hidden.name, md5)
            hidden.rename(path)
    if name == "face":
        from sklearn.datasets import fetch_lfw_people  # slow to import; verifies the archive's sha256

        with _fetching(LFW_HOST, raw / "lfw"):  # 500: it also loads what it fetched, so let that be little
            fetch_lfw_people(data_home=str(raw), min_faces_per_person=500)


@contextmanager
def _fetching(host: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise Unreachable(f"{host} gives no {path} ({error}): try later or put it there yourself") from None


@contextmanager
def _reading(path: Path | str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each format's reader has its own set of exceptions for a damaged file
        reason = str(error) or type(error).__name__
        raise UserError(f"cannot read {path} ({reason}): damaged or incomplete, fetch it again") from None


def _require(folder: Path, *names: str) -> list[Path]:
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise Missing(f"put {' and '.join(missing)} into {folder} (or --download)")
    return [folder / name for name in names]


def _number(count: int) -> list[str]:
    """File stems 00000, 00001, ... that sort in order however many there are."""
    width = max(5, len(str(count - 1)))
    return [f"{row:0{width}d}" for row in range(count)]


def _in_threads(write: Callable[[int], None], count: int, what: str) -> None:
    with ThreadPoolExecutor() as pool:
        for _ in tqdm(pool.map(write, range(count)), total=count, desc=what, unit="img", disable=None):
            pass


WRITERS = {
    "digits/mnist": partial(write_digits, read_mnist),
    "digits/mnistm": partial(write_digits, read_mnistm),
    "digits/usps": partial(write_digits, read_usps),
    "digits/svhn": partial(write_digits, read_svhn),
    "face": write_faces,
}

if __name__ == "__main__":
    run_main(main)
