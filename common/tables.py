"""Tables in Markdown."""

from collections.abc import Sequence
from typing import Any


def markdown(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table; cells are shown by `str`."""
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in (header, ["---"] * len(header), *rows))
