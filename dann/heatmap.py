"""Draw the accuracy of pairs of domains as a heat map."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from common.files import atomic_path

Cell = tuple[float, str]  # accuracy in 0..1, and a note below its number
COLOURS = "viridis"  # its brightness grows evenly, so it reads in grey and with every kind of colour blindness
WIDTH, HEIGHT, GAP = 0.72, 0.55, 0.4  # of a cell in inches; of the space between panels in cells


def draw(panels: Mapping[str, Mapping[tuple[str, str], Cell]], last: tuple[str, Mapping[str, Cell]],
         domains: Sequence[str], label: str, path: Path) -> None:
    """Write a PNG with one panel per method: one row per source, one column per target, all in one colour scale.

    `panels` are title -> (source, target) -> cell, at least one; a pair without a cell stays empty. `last` is the title
    and target -> cell of a method without a source: one more row below the last panel, unless empty. `domains` is the
    order of rows and columns, and `label` says what the numbers are, in percent.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure  # not pyplot, which opens windows and keeps global state
    from matplotlib.patches import Rectangle

    pairs = {pair for cells in panels.values() for pair in cells}
    sources, targets = ([name for name in domains if name in names] for names in zip(*pairs, strict=True))
    wide, high = len(panels) * (len(targets) + GAP) - GAP, len(sources) + (1 + GAP) * bool(last[1])
    figure = Figure(figsize=(WIDTH * wide, HEIGHT * high))
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, wide), ylim=(high, 0))  # one unit is a cell
    axis.axis("off")

    def draw_cell(x: float, y: float, accuracy: float, note: str) -> None:
        colour = colormaps[COLOURS](accuracy)
        axis.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white", linewidth=2))
        style = {"ha": "center", "va": "center", "color": text_colour(colour)}
        axis.text(x + 0.5, y + 0.5, f"{100 * accuracy:.1f}", **style)
        axis.text(x + 0.5, y + 0.8, note, size=6.5, **style)

    for panel, (title, cells) in enumerate(panels.items()):
        left = panel * (len(targets) + GAP)
        axis.text(left + len(targets) / 2, -0.55 - 0.3 * ("-" in "".join(targets)), title, ha="center", weight="bold")
        for x, target in enumerate(targets):
            axis.text(left + x + 0.5, -0.15, "→ " + target.replace("-", "-\n"), ha="center")
        for (source, target), cell in cells.items():
            draw_cell(left + targets.index(target), sources.index(source), *cell)
    for y, source in enumerate(sources):
        axis.text(-0.15, y + 0.5, f"{source} →", ha="right", va="center")
    if last[1]:
        axis.text(left - 0.15, high - 0.5, last[0], ha="right", va="center", weight="bold")
    for target, cell in last[1].items():
        draw_cell(left + targets.index(target), high - 1, *cell)
    bar = axis.inset_axes((wide + GAP, 0, 0.25, high), transform=axis.transData)
    figure.colorbar(ScalarMappable(cmap=COLOURS), cax=bar, label=label, format=lambda x, _: f"{100 * x:.0f}")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")


def text_colour(colour: Sequence[float]) -> str:
    """Return black or white, whichever has more contrast (WCAG 2) on a colour of red, green, blue, each in 0..1."""
    luminance = sum(weight * part ** 2.2 for weight, part in zip((0.2126, 0.7152, 0.0722), colour, strict=False))
    return "black" if luminance > 0.18 else "white"
