"""Build the data folder (its layout: `common.data.folder`) from public data sets as they are published.

    python -m common.prepare --raw DIR --out hw2_data      every set whose raw files are there
    python -m common.prepare --faces PATH --out hw2_data   faces alone

    DIR/MNIST/raw/*-ubyte[.gz]              digits/mnist, and together with the photographs digits/mnistm
    DIR/BSDS500/data/images/*/*.jpg         the photographs (or DIR/BSR_bsds500.tgz)
    DIR/USPS/usps.bz2, usps.t.bz2           digits/usps
    DIR/SVHN/{train,test}_32x32.mat         digits/svhn
    DIR/celeba or lfwcrop/face.zip          face (the first that exists, or --faces PATH, which then comes first)

The official train digits are divided 80/20 into train.csv and val.csv, in the same way for MNIST and MNIST-M. The
official test digits become test.csv. A set is built in a hidden folder and renamed when it is complete. Existing sets
are kept, so the same command continues an interrupted run. If a raw file is damaged, the other sets are still built.
"""

import argparse
import contextlib
import shutil
from collections.abc import Callable, Iterator, Sized
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from PIL import Image
from tqdm.contrib.concurrent import thread_map

from common.cli import Parser, run_main
from common.data.domains import DOMAINS
from common.data.raw_faces import read_faces
from common.data.raw_files import Missing, Unreachable, fetch, split_rows
from common.errors import UserError
from common.files import cannot_write, lock_folder
from common.images import DIGIT_SIZE


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--raw", metavar="DIR", type=Path, help="folder of the raw files")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("hw2_data"), help="folder to build")
    parser.add_argument("--faces", metavar="PATH", type=Path,
                        help="folder or zip of face images, instead of those in --raw")
    parser.add_argument("--download", action="store_true", help="download missing files of digit sets into --raw")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Build every set whose raw files exist; print one line per set: made, keep (exists), skip or fail (and why)."""
    args = parse_args(argv)
    raw = args.raw
    if raw is None and (args.download or not args.faces):
        raise UserError("--raw is missing: give the folder of the raw files; only --faces PATH alone needs none")
    if raw and not raw.is_dir() and not args.download:
        raise UserError(f"no folder {raw}: give the folder of the raw files, or --download to fill it")
    if args.faces and not args.faces.exists():
        raise UserError(f"no folder or zip {args.faces}: give --faces the path of the face images")
    sets = {f"digits/{name}": (partial(write_digits, name, raw), partial(fetch, raw, domain.files))
            for name, domain in DOMAINS.items() if domain.read and raw}
    faces = {"face": (partial(write_faces, raw, args.faces), None)}
    sets = faces | sets if args.faces else sets | faces
    complete, failures = 0, []
    with locked(args.out):
        for name, (write, download) in sets.items():
            target = args.out / name
            try:
                if any(target.glob("*")):
                    print(f"keep {name}: exists")
                else:
                    splits = build(target, write, args.download and download)
                    print(f"made {name}: {', '.join(f'{len(rows)} {split}' for split, rows in splits.items())}")
                complete += 1
            except Missing as missing:  # if a host cannot be reached, the other sets are still built
                print(f"skip {name}: {missing}")
                failures += [str(missing)] if isinstance(missing, Unreachable) else []
            except UserError as mistake:  # so they are if a file is damaged
                print(f"fail {name}: {mistake}")
                failures.append(str(mistake))
    if failures:
        raise UserError(failures[0])
    if not complete:
        raise UserError(f"{raw} holds none of the raw sets: put one there as the lines above say")


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make the folder and keep other processes from building there; at the end, remove it if it is empty.

    Raises UserError if another process builds there, or if the folder cannot be written.
    """
    lock = FileLock(out / ".prepare.lock")
    try:
        lock_folder(lock)
    except Timeout:
        raise UserError(f"another prepare works in {out}: wait for it") from None
    except OSError as error:
        raise cannot_write(out, error) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)  # while it is held, so that nobody else's is removed
            out.rmdir()
        lock.release()


def build(target: Path, write: Callable[[Path], dict[str, Sized]], download: Callable[[], None] | None) -> dict:
    """Let `write` fill a hidden folder, rename it to `target`, and return the splits that `write` returns.

    If raw files are missing, `download` them and try again. Remove the hidden folder after an error.
    """
    hidden = target.with_name(f".{target.name}.partial")
    shutil.rmtree(hidden, ignore_errors=True)  # left by a killed run
    try:
        try:
            splits = write(hidden)
        except Missing:
            if not download:
                raise
            download()
            splits = write(hidden)
        hidden.rename(target)
        return splits
    except OSError as error:
        if error.filename and not Path(str(error.filename)).is_relative_to(target.parent):
            raise UserError(f"cannot read {error.filename} ({error.strerror}): make it readable") from None
        raise cannot_write(target, error) from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def write_digits(name: str, raw: Path, folder: Path) -> dict[str, Sized]:
    """Write the images and CSV files of one domain; return the rows of each split."""
    train, test = DOMAINS[name].read(raw)
    images, labels = [*train.images, *test.images], [*train.labels, *test.labels]
    names = [f"{stem}.png" for stem in _stems(len(images))]
    (folder / "data").mkdir(parents=True)

    def write_image(row: int) -> None:
        image = Image.fromarray(images[row]).resize((DIGIT_SIZE, DIGIT_SIZE), Image.Resampling.BILINEAR)
        image.save(folder / "data" / names[row], compress_level=1)

    thread_map(write_image, range(len(images)), desc=name, unit="img", disable=None)
    fit, val = split_rows(len(train.labels))
    splits = {"train": fit, "val": val, "test": range(len(train.labels), len(images))}
    for split, rows in splits.items():
        lines = ["image_name,label", *(f"{names[row]},{labels[row]}" for row in rows)]
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return splits


def write_faces(raw: Path | None, source: Path | None, folder: Path) -> dict[str, Sized]:
    """Write the images of both splits, from `source` or else from `raw`; return the names of each split."""
    splits, read = read_faces(raw, source)

    def write_image(stem: Path, name: str) -> None:
        blob, suffix = read(name)
        stem.with_suffix(suffix).write_bytes(blob)

    for split, names in splits.items():
        (folder / split).mkdir(parents=True)
        stems = [folder / split / stem for stem in _stems(len(names))]
        thread_map(write_image, stems, names, desc=f"face {split}", unit="img", disable=None)
    return splits


def _stems(count: int) -> list[str]:
    """Return the file names 00000, 00001, ... without suffix, wide enough to sort by number."""
    width = max(5, len(str(count - 1)))
    return [f"{row:0{width}d}" for row in range(count)]


if __name__ == "__main__":
    run_main(main)
