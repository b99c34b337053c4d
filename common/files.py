"""Files that are complete or absent: written under a temporary name, then renamed."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from common.errors import UserError


@contextlib.contextmanager
def atomic_path(path: Path, writer: str = "") -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to, and rename it at the end.

    `writer` is part of the temporary name: it separates processes that may write the same file at once.

    Raises:
        UserError: the file cannot be written. `path` is unchanged, and no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}{writer}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def cannot_write(path: Path | str, error: OSError) -> UserError:
    """Return the error for a full disk, a read-only folder, or a file in the place of a folder."""
    full = error.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return UserError(f"{path}: cannot write ({error.strerror or error}): "
                     f"{'free some space, or ' * full}write elsewhere")


def lock_folder(lock: FileLock) -> None:
    """Make the folder of a lock file and take the lock, which is held until it is released or the process ends.

    Raises:
        Timeout: another process holds it. OSError: the folder cannot be written.
    """
    folder = Path(lock.lock_file).parent
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.suppress(NotImplementedError):  # some network file systems have no locks
            lock.acquire(timeout=0)
    except Timeout:  # it also stands for a folder that cannot be written
        if os.access(folder, os.W_OK):
            raise
        raise PermissionError(errno.EACCES, "Permission denied", str(folder)) from None


def drop_stdout() -> None:
    """Send standard output, which is closed or full, nowhere; otherwise Python fails at exit on what is buffered."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def require_new(force: bool, *paths: Path | None) -> None:
    """Check the outputs of a command before it begins; None stands for one that is not asked for.

    Raises UserError if two have one name, or if a file exists, which only `force` may replace, or a folder.
    """
    named = [path for path in paths if path is not None]
    real = [path.resolve() for path in named]
    for path in named:
        if real.count(path.resolve()) > 1:
            raise UserError(f"{path} is named for two outputs: name different files")
        if path.is_dir():
            raise UserError(f"{path} is a folder: name a file")
        if path.exists() and not force:
            raise UserError(f"{path} exists already: name another file, or replace it with --force")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object. Raises UserError, which says `what` was expected, for a missing, damaged or other file."""
    try:
        content, reason = json.loads(path.read_text(encoding="utf-8")), "damaged"
    except (OSError, ValueError) as error:
        content, reason = None, getattr(error, "strerror", "damaged")
    if not isinstance(content, dict):
        raise UserError(f"cannot read {path} ({reason}): expected {what}")
    return content


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")
