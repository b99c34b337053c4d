"""Tables in Markdown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.files import write_json, write_text


def markdown(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table; cells are shown by `str`."""
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in (header, ["---"] * len(header), *rows))


def publish(table: str, numbers: Any, out: Path | None) -> None:
    """Print a table; with `out`, also write it there, and its numbers beside it as JSON."""
    if out is not None:  # first, because `| head` closes standard output
        write_text(out, table)
        write_json(out.with_suffix(".json"), numbers)
    print(table, end="")
