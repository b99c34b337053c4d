"""The heat map: each cell in its place and colour, numbers that can be read, the same picture every time."""

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from dann.heatmap import COLOURS, draw, text_colour

DOMAINS = ["mnist", "mnistm", "usps"]
PANELS = {"DANN": {("mnist", "usps"): (0.2, ""), ("mnistm", "usps"): (0.3, "2,000 steps")},
          "plus": {("mnist", "usps"): (0.5, ""), ("usps", "mnist"): (0.6, "")}}
LAST = ("trained on target", {"mnist": (0.8, ""), "usps": (0.9, "")})


def centre(picture: np.ndarray, accuracy: float) -> np.ndarray:
    """Return the centre (row, column) of the cell of an accuracy, by its colour; the colour bar is to its right."""
    colour = np.round(255 * np.array(colormaps[COLOURS](accuracy)[:3]))
    rows, columns = np.nonzero((abs(picture - colour) <= 1).all(2))
    assert len(rows) > 3000  # a cell, not just a line of the colour bar
    return np.array([np.median(rows), np.median(columns)])


def test_every_cell_is_in_its_place(tmp_path):
    for name in ("a.png", "b.png"):
        draw(PANELS, LAST, DOMAINS, "accuracy", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        picture = np.asarray(image.convert("RGB"), dtype=float)
    at = {accuracy: centre(picture, accuracy) for accuracy in (0.2, 0.3, 0.5, 0.6, 0.8, 0.9)}
    down, right = 0.55 * 150, 0.72 * 150  # pixels of a cell
    # Two columns, mnist and usps, and three rows in both panels; the panels are 0.4 cells apart.
    for accuracy, row, column in ((0.2, 0, 1), (0.3, 1, 1), (0.5, 0, 3.4), (0.6, 2, 2.4), (0.8, 3.4, 2.4),
                                  (0.9, 3.4, 3.4)):
        expected = at[0.2] + np.array([row * down, (column - 1) * right])
        assert at[accuracy] == pytest.approx(expected, abs=4), accuracy


def test_a_single_pair_is_enough(tmp_path):
    draw({"plus": {("mnist", "usps"): (0.5, "")}}, ("trained on target", {}), DOMAINS, "accuracy", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        centre(np.asarray(image.convert("RGB"), dtype=float), 0.5)


def test_numbers_can_be_read_on_every_colour():
    """WCAG 2.2 asks for a contrast of 4.5."""
    for value in np.linspace(0, 1, 256):
        colour = np.array(colormaps[COLOURS](value)[:3])
        linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        luminance = linear @ (0.2126, 0.7152, 0.0722)
        contrast = (luminance + 0.05) / 0.05 if text_colour(colour) == "black" else 1.05 / (luminance + 0.05)
        assert contrast >= 4.5
