"""Files that are complete or absent: written under a temporary name, then renamed."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    return UserError(f"{path}: cannot write ({error.strerror or error}): free some space, or write elsewhere")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")
