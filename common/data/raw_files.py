"""Raw files: find, download, read and divide them. Every failure becomes one line."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import numpy as np

from common.errors import UserError

RawFile = tuple[str, str, str | None]  # URL, folder below the raw folder, MD5 if one is published


class Missing(Exception):
    """A raw file is missing. The message says what to put where."""


class Unreachable(Missing):
    """A download failed. The message names the host."""


def require(raw: Path, files: tuple[RawFile, ...]) -> list[Path]:
    """Return the path of each file, or raise Missing with the names of those that do not exist."""
    paths = [_prefer_unpacked(raw / folder / Path(url).name) for url, folder, _ in files]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise Missing(f"put {' and '.join(path.name for path in missing)} into {missing[0].parent} (or --download)")
    return paths


def _prefer_unpacked(path: Path) -> Path:
    unpacked = path.with_suffix("")
    return unpacked if path.suffix == ".gz" and unpacked.exists() else path


def fetch(raw: Path, files: tuple[RawFile, ...]) -> None:
    """Download the files that do not exist; a file gets its name when it is complete."""
    from torchvision.datasets import utils  # slow to import

    for url, folder, md5 in files:
        path = _prefer_unpacked(raw / folder / Path(url).name)
        if path.exists():
            continue
        partial = path.with_name(f".{path.name}.partial")
        partial.unlink(missing_ok=True)
        try:
            utils.download_url(url, str(path.parent), partial.name, md5)
            partial.rename(path)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise Unreachable(f"{urlparse(url).hostname} did not deliver {path} ({error}): try later, or put it there "
                              "yourself") from None


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turn an exception of a format's reader into a UserError that names the file; let PermissionError through."""
    try:
        yield
    except PermissionError:  # nothing about the file: `common.prepare` tells of it
        raise
    except Exception as error:  # each reader raises exceptions of its own for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        if _is_web_page(path):
            reason = f"a web page, not a {Path(path).suffix[1:] or 'data file'}"
        raise UserError(f"cannot read {path} ({reason}): damaged or incomplete, download it again") from None


def _is_web_page(path: Path | str) -> bool:
    """Return whether a file begins like HTML: a login page, say, that was saved under the name of a download."""
    try:
        with open(path, "rb") as file:
            return file.read(99).lstrip().lower().startswith((b"<!doctype html", b"<html"))
    except OSError:  # a folder, or a member of an archive
        return False


def split_rows(num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide 0..num_rows-1 into train (80 %) and validation (20 %, at least one) rows, both sorted.

    They are random, and always the same.
    """
    order = np.random.default_rng(0).permutation(num_rows)
    cut = min(round(0.8 * num_rows), num_rows - 1)
    return np.sort(order[:cut]), np.sort(order[cut:])
