"""The material of the embedded sets: handwriting, fonts and photographs that the dependencies ship.

The embedded sets let every command and test run without a download; their scores cannot be compared with published
ones. The handwriting is scikit-learn's `load_digits` (8x8 scans from UCI optdigits, 1998), the photographs are its
`load_sample_images`, and the fonts are matplotlib's. Train, val and test share neither a writer nor a region of a
photograph, and three fonts appear in val and test only.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SEED = 2024
SPLITS = ("train", "val", "test")
FIELD = 60  # side of a glyph's distance field, in pixels
# The rows of load_digits are ordered by writer; these bounds are among the 14 boundaries between writers that the
# label pattern shows (scikit-learn MOOC, "Sample grouping").
WRITER_ROWS = {"train": (0, 1287), "val": (1287, 1545), "test": (1545, 1797)}
PHOTO_COLUMNS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}  # fractions of the width
# File names in matplotlib's font folder. Monospaced fonts are left out: their dotted zero looks like an 8.
BOLD_FONTS = ("DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSerif-Bold", "STIXGeneralBol", "cmb10")
PLAIN_FONTS = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "STIXGeneralBolIta", "cmr10", "cmss10", "cmti10")
TRAIN_FONTS = BOLD_FONTS + PLAIN_FONTS
HELD_OUT_FONTS = ("DejaVuSans-Oblique", "STIXGeneralItalic", "cmtt10")


class Glyphs(NamedTuple):
    """Digit shapes as signed distance fields, which let the stroke width be chosen freely; lengths in field pixels."""

    labels: np.ndarray  # (M,) int64
    fields: np.ndarray  # (M, FIELD, FIELD) float32 distance to the outline, positive inside
    boxes: np.ndarray  # (M, 4) float32 centre y, centre x, half height, half width
    pens: np.ndarray  # (M,) half the typical stroke width


def rng_for(position: int, split: str) -> np.random.Generator:
    """Return the generator of one split of an embedded set: 0 to 3 are the digit domains, 4 are the faces."""
    return np.random.default_rng((SEED, position, SPLITS.index(split)))


def to_bytes(images: np.ndarray) -> np.ndarray:
    """(N, 3, H, W) or grey (N, 1, H, W) float, clipped to [0, 1] -> (N, H, W, 3) uint8."""
    images = np.moveaxis(np.clip(images, 0, 1) * 255 + 0.5, 1, -1).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], 3)))


@cache
def all_glyphs(split: str) -> Glyphs:
    """Return all shapes of one split: first handwriting, then fonts."""
    fonts = TRAIN_FONTS if split == "train" else TRAIN_FONTS + HELD_OUT_FONTS
    return Glyphs(*map(np.concatenate, zip(handwriting(split), font_digits(fonts), strict=True)))


@cache
def handwriting(split: str) -> Glyphs:
    """Return the scans of one split's writers as shapes."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    rows = slice(*WRITER_ROWS[split])
    padded = np.pad(scans.images[rows], ((0, 0), (2, 2), (2, 2)))
    return _outline(scans.target[rows], enlarge(padded, FIELD) > 6.5)  # of 16: thin strokes do not break


@cache
def font_digits(fonts: tuple[str, ...]) -> Glyphs:
    """Return the ten digits of each font as shapes; digit d of font f is row 10 f + d."""
    import matplotlib

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    masks = []
    for font in (ImageFont.truetype(folder / f"{name}.ttf", 56) for name in fonts):
        for digit in "0123456789":
            page = Image.new("L", (FIELD, FIELD))
            ImageDraw.Draw(page).text((30, 51), digit, fill=255, font=font, anchor="ms")
            masks.append(np.asarray(page) > 127)
    return _outline(np.tile(np.arange(10), len(fonts)), np.stack(masks))


def _outline(labels: np.ndarray, masks: np.ndarray) -> Glyphs:
    """Turn (M, FIELD, FIELD) bool masks into signed distance fields."""
    from scipy import ndimage

    depth = ndimage.distance_transform_edt
    fields = np.stack([depth(mask) - depth(~mask) for mask in masks])
    fields = ndimage.gaussian_filter(fields, 1, axes=(1, 2), output=np.float32)  # smooths the staircase edges
    left, top, right, bottom = np.transpose([Image.fromarray(mask).getbbox() for mask in masks]) / 2
    boxes = np.float32([top + bottom - 0.5, left + right - 0.5, bottom - top, right - left]).T
    ridges = (fields > 0) & (fields == ndimage.maximum_filter(fields, (1, 3, 3)))
    pens = np.nanmedian(np.where(ridges, fields, np.nan).reshape(len(masks), -1), 1)
    return Glyphs(labels.astype(np.int64), fields, boxes, pens)


@cache
def photos(split: str, shrink: int) -> tuple[np.ndarray, ...]:
    """Return the split's part of each photograph, `shrink` times smaller: (3, H, W) float32 in [0, 1]."""
    from sklearn.datasets import load_sample_images

    parts = []
    for photo in load_sample_images().images:
        left, right = (round(share * photo.shape[1]) for share in PHOTO_COLUMNS[split])
        part = Image.fromarray(photo[:, left:right]).reduce(shrink)
        parts.append(np.moveaxis(np.asarray(part, np.float32) / 255, -1, 0))
    return tuple(parts)


def patches(rng: np.random.Generator, count: int, size: int, split: str) -> np.ndarray:
    """Cut random patches of the photographs: (count, 3, size, size) float32 in [0, 1].

    There are only two photographs, so the patches vary in flip, hue and brightness.
    """
    cut = np.empty((count, 3, size, size), np.float32)
    for i in range(count):
        photo = photos(split, int(rng.integers(1, 4)))[rng.integers(2)]
        y, x = (int(rng.integers(0, side - size + 1)) for side in photo.shape[1:])
        patch = photo[rng.permutation(3), y : y + size, x : x + size]
        cut[i] = patch[:, :: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
    gain = rng.uniform(0.6, 1.4, (count, 1, 1, 1)) * rng.uniform(0.8, 1.2, (count, 3, 1, 1))
    return np.clip(cut * gain + rng.uniform(-0.1, 0.1, (count, 1, 1, 1)), 0, 1).astype(np.float32)


def enlarge(coarse: np.ndarray, size: int, order: int = 3) -> np.ndarray:
    """Resample (..., h, w) to (..., size, size) float32 by splines of this order."""
    height, width = coarse.shape[-2:]
    return _spline_basis(height, size, order) @ coarse.astype(np.float32) @ _spline_basis(width, size, order).T


@cache
def _spline_basis(coarse: int, fine: int, order: int) -> np.ndarray:
    """Return the (fine, coarse) float32 matrix that resamples one line."""
    from scipy import ndimage

    unit = np.eye(coarse, dtype=np.float32)
    return ndimage.zoom(unit, (fine / coarse, 1), order=order, mode="nearest", grid_mode=True)
