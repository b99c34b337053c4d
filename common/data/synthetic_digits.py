"""The embedded digits: one painter per domain, from the handwriting, fonts and photographs of `ingredients`.

The painters imitate what distinguishes MNIST, MNIST-M (Ganin et al. 2016, arXiv:1505.07818), USPS and SVHN, so a
classifier that is trained on one domain loses accuracy on the others. They return (N, 1 or 3, 28, 28) float, roughly
in [0, 1].
"""

import numpy as np

from common.data.ingredients import BOLD_FONTS, Glyphs, all_glyphs, enlarge, font_digits, handwriting, patches

# Class shares of the USPS training set, 0 to 9 (Hull 1994; 7291 images).
USPS_SHARES = np.array([0.164, 0.138, 0.100, 0.090, 0.089, 0.076, 0.091, 0.088, 0.074, 0.088])
USPS_SHARES /= USPS_SHARES.sum()  # the rounded shares add up to 0.998


def paint_mnist(rng: np.random.Generator, labels: np.ndarray, split: str) -> np.ndarray:
    """Paint white pen strokes on black, fitted into the middle 20x20 as in MNIST."""
    count = len(labels)
    glyphs, rows = all_glyphs(split), _choose(rng, labels, split, 0.5)
    box = glyphs.boxes[rows, 2:]
    half = 10 * box / box.max(1, keepdims=True) * rng.uniform(0.85, 1.05, (count, 2))
    pen, centre = rng.uniform(0.9, 1.7, count), rng.uniform(-1, 1, (count, 2))
    turn, slant = rng.normal(0, 0.12, count), rng.normal(0.08, 0.18, count)
    return _ink(rng, glyphs, rows, 28, half, pen, centre, turn, slant, wobble=0.45)[:, None]


def paint_mnistm(rng: np.random.Generator, labels: np.ndarray, split: str) -> np.ndarray:
    """Follow the published recipe: |patch - digit| in each channel."""
    return np.abs(patches(rng, len(labels), 28, split) - paint_mnist(rng, labels, split))


def paint_usps(rng: np.random.Generator, labels: np.ndarray, split: str) -> np.ndarray:
    """Paint thick strokes that fill a 16x16 scan, and enlarge the scan to 28x28."""
    count = len(labels)
    glyphs, rows = all_glyphs(split), _choose(rng, labels, split, 0.8)
    aspect = glyphs.boxes[rows, 3] / glyphs.boxes[rows, 2]
    half = 7.2 * np.stack([np.ones(count), np.minimum(1, 1.8 * aspect)], 1)  # a 1 stays narrow
    pen, centre = rng.uniform(1.1, 1.7, count), rng.uniform(-0.3, 0.3, (count, 2))
    turn, slant = rng.normal(0, 0.05, count), rng.normal(0.12, 0.12, count)
    scan = _ink(rng, glyphs, rows, 16, half, pen, centre, turn, slant, wobble=0.3)
    return enlarge(scan, 28, order=1)[:, None]


def paint_svhn(rng: np.random.Generator, labels: np.ndarray, split: str) -> np.ndarray:
    """Paint house numbers with neighbours, shadow, uneven light, blur and noise."""
    from scipy import ndimage

    count = len(labels)

    def vary(low: float, high: float, channels: int = 1) -> np.ndarray:
        return rng.uniform(low, high, (count, channels, 1, 1)).astype(np.float32)

    number = _house_number(rng, labels)[:, None]
    dark, tint = vary(0.1, 0.55), vary(-0.12, 0.12, 6)
    pair = np.concatenate([dark, dark + vary(0.15, 0.45)], 1)
    swap = rng.random(count) < 0.5
    pair[swap] = pair[swap, ::-1]
    wall, paint = pair[:, :1] + tint[:, :3], pair[:, 1:] + tint[:, 3:]
    line = np.linspace(-1, 1, 28, dtype=np.float32)
    light = vary(-0.12, 0.12) * line + vary(-0.12, 0.12) * line[:, None]
    stone = enlarge(patches(rng, count, 7, split) - 0.5, 28)
    image = wall + np.maximum(0, vary(-0.4, 0.4)) * stone
    shadow = np.zeros_like(number)
    shadow[:, :, 1:, 1:] = number[:, :, :-1, :-1]
    image *= 1 - np.maximum(0, vary(-0.6, 0.6)) * shadow
    image += number * (paint - image) + light
    blurred = ndimage.gaussian_filter(image, 1.3, axes=(2, 3))
    image += vary(0, 1) * (blurred - image)
    return image + vary(0, 0.05) * rng.standard_normal(image.shape, np.float32)


def _house_number(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Paint the labelled digits in bold type, often with cut-off neighbours on the sides: (N, 28, 28) in [0, 1]."""
    count = len(labels)
    glyphs = font_digits(BOLD_FONTS)
    font = 10 * rng.integers(0, len(BOLD_FONTS), count)
    height, narrow = rng.uniform(10, 13, count), rng.uniform(0.6, 1, count)
    gap, pen = rng.uniform(0.8, 3, count), rng.uniform(1.3, 2.3, count)
    turn, slant = rng.normal(0, 0.07, count), rng.normal(0, 0.1, count)
    middle = rng.uniform(-1.5, 1.5, (count, 2))

    def half_box(rows: np.ndarray) -> np.ndarray:
        box = glyphs.boxes[rows, 2:]
        return height[:, None] * np.stack([np.ones(count), narrow * box[:, 1] / box[:, 0]], 1)

    number = np.zeros((count, 28, 28), np.float32)
    for side in (-1, 0, 1):
        rows = font + (rng.integers(0, 10, count) if side else labels)
        centre = middle + side * (half_box(rows) + half_box(font + labels) + gap[:, None]) * (0, 1)
        ink = _ink(rng, glyphs, rows, 28, half_box(rows), pen, centre, turn, slant, wobble=0.2)
        shown = rng.random(count) < 0.75 if side else np.ones(count)
        number = np.maximum(number, shown[:, None, None].astype(np.float32) * ink)
    return number


def _choose(rng: np.random.Generator, labels: np.ndarray, split: str, written: float) -> np.ndarray:
    """Choose a random row of `all_glyphs` for each label, handwriting with probability `written`: (N,) int."""
    known = all_glyphs(split).labels
    is_written = np.arange(len(known)) < len(handwriting(split).labels)
    by_hand = rng.random(len(labels)) < written
    rows = np.empty(len(labels), np.int64)
    for digit in range(10):
        for hand in (True, False):
            here = np.flatnonzero((labels == digit) & (by_hand == hand))
            rows[here] = rng.choice(np.flatnonzero((known == digit) & (is_written == hand)), len(here))
    return rows


def _ink(rng: np.random.Generator, glyphs: Glyphs, rows, size, half, pen, centre, turn, slant, wobble) -> np.ndarray:
    """Paint one glyph per image under a small affine and elastic deformation; lengths are in pixels of the image.

    Args:
        rows: (N,) int, which of the glyphs to paint.
        half, centre: (N, 2) half height and width of the glyph's box, and its offset from the middle, y and x.
        pen: (N,) half the typical stroke width.
        turn, slant: (N,) rotation (radians) and shear.
        wobble: standard deviation of the elastic displacement.
    Returns:
        (N, size, size) float32 coverage in [0, 1].
    """
    from scipy import ndimage

    boxes = glyphs.boxes[rows]
    zoom = boxes[:, 2:] / half
    grow = pen - glyphs.pens[rows] / np.sqrt(zoom.prod(1))
    grow = np.maximum(grow, -0.5)  # hairlines would break if strokes became thinner than this
    maps = [*boxes[:, :2].T, *zoom.T, *centre.T, turn, slant, grow]
    middle_y, middle_x, zoom_y, zoom_x, dy, dx, turn, slant, grow = np.float32(maps)[..., None, None]
    line = np.arange(size, dtype=np.float32) - (size - 1) / 2
    bend_y, bend_x = enlarge(wobble * rng.standard_normal((2, len(rows), 4, 4)), size)
    y, x = line[:, None] - dy + bend_y, line - dx + bend_x
    y, x = np.cos(turn) * y - np.sin(turn) * x, np.sin(turn) * y + np.cos(turn) * x
    row = np.broadcast_to(rows[:, None, None], y.shape)
    where = np.stack([row, middle_y + zoom_y * y, middle_x + zoom_x * (x + slant * y)])
    distance = ndimage.map_coordinates(glyphs.fields, where, order=1, mode="nearest", output=np.float32)
    return np.clip(distance / np.sqrt(zoom_y * zoom_x) + grow + 0.5, 0, 1)
