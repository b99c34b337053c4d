"""Files that are whole or absent: written under a temporary name, and renamed when nothing can fail any more."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to, and at the end rename it.

    Raises:
        UserError: it cannot be written; what stood at `path` is as it was, and nothing stands beside it.
    """
    temporary = path.with_name(f".{path.name}.partial")
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
    """Return the one line for a full disk, a read-only folder, or another thing of this name in the way."""
    return UserError(f"{path}: cannot write it ({error.strerror or error}): make room, or write elsewhere")


def write_text(path: Path, text: str) -> None:
    """Write a text file as `whole` does."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as `whole` does."""
    write_text(path, json.dumps(value, indent=2) + "\n")
