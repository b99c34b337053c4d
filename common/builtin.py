"""Embedded data: digits in four domains and faces, drawn in seconds from what the dependencies ship.

Nothing is downloaded. Handwriting is scikit-learn's `load_digits` (8x8 scans, UCI optdigits, 1998),
photographs are its `load_sample_images`, fonts lie in matplotlib's folder. The domains imitate what sets
MNIST, MNIST-M (Ganin et al. 2016, arXiv 1505.07818), USPS and SVHN apart, so that a classifier trained on
one loses on another; the faces are procedural portraits. They exist so that every command and every test
runs on a bare machine: no score on them compares with a published one.

A split is a pure function of its name. Train, val and test share neither a writer nor a region of a photo;
three fonts appear in val and test only.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

DIGIT_DOMAINS = ("mnist", "mnistm", "usps", "svhn")

SEED = 2024
FIELD = 60  # side of a glyph's distance field, pixels
SPLITS = ("train", "val", "test")
DIGIT_COUNTS = {"train": 4000, "val": 1000, "test": 1000}
FACE_COUNTS = {"train": 2000, "val": 400}
# The rows of load_digits come writer by writer; these bounds are among the 14 runs that the label pattern
# shows (scikit-learn MOOC, "Sample grouping").
WRITER_ROWS = {"train": (0, 1287), "val": (1287, 1545), "test": (1545, 1797)}
PHOTO_COLUMNS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}  # shares of the width
# File names in matplotlib's font folder. The monospaced faces are left out: their dotted zero reads as an 8.
BOLD_FONTS = ("DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSerif-Bold", "STIXGeneralBol", "cmb10")
PLAIN_FONTS = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "STIXGeneralBolIta", "cmr10", "cmss10", "cmti10")
TRAIN_FONTS = BOLD_FONTS + PLAIN_FONTS
HELD_OUT_FONTS = ("DejaVuSans-Oblique", "STIXGeneralItalic", "cmtt10")
# Class shares of the USPS training set, 0 to 9 (Hull 1994; 7291 images).
USPS_SHARES = np.array([0.164, 0.138, 0.100, 0.090, 0.089, 0.076, 0.091, 0.088, 0.074, 0.088])


class Glyphs(NamedTuple):
    """Digit shapes as signed distance fields, so that the width of the pen is a number one can choose.

    labels: (M,) int64. fields: (M, S, S) float32 distance to the outline in field pixels, positive inside.
    boxes: (M, 4) float32 centre y, centre x, half height, half width. pens: (M,) half the typical stroke.
    """

    labels: np.ndarray
    fields: np.ndarray
    boxes: np.ndarray
    pens: np.ndarray


def digits(domain: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw one split of one digit domain.

    Args:
        domain: one of `DIGIT_DOMAINS`.
        split: "train" (4000 images), "val" or "test" (1000 each).

    Returns:
        images: (N, 28, 28, 3) uint8; labels: (N,) int64 in 0..9.

    Raises:
        ValueError: unknown domain or split.
    """
    _check("domain", domain, DIGIT_DOMAINS)
    _check("split", split, tuple(DIGIT_COUNTS))
    rng = _rng(DIGIT_DOMAINS.index(domain), split)
    shares = USPS_SHARES / USPS_SHARES.sum() if domain == "usps" else None
    labels = rng.choice(10, DIGIT_COUNTS[split], p=shares)
    draw = {"mnist": _mnist, "mnistm": _mnistm, "usps": _usps, "svhn": _svhn}[domain]
    return _to_bytes(draw(rng, labels, split)), labels


def faces(split: str) -> np.ndarray:
    """Draw one split of the portraits: (N, 64, 64, 3) uint8, "train" (2000 images) or "val" (400).

    Raises:
        ValueError: unknown split.
    """
    _check("split", split, tuple(FACE_COUNTS))
    rng = _rng(len(DIGIT_DOMAINS), split)
    chunk = 8  # keeps the layers of a chunk in the processor's cache
    chunks = range(FACE_COUNTS[split] // chunk)
    return np.concatenate([_to_bytes(_Portraits(rng, chunk, split).paint()) for _ in chunks])


def _check(what: str, got: str, expected: tuple[str, ...]) -> None:
    if got not in expected:
        raise ValueError(f"unknown {what}: got {got!r}, expected one of {', '.join(expected)}")


def _rng(index: int, split: str) -> np.random.Generator:
    return np.random.default_rng((SEED, index, SPLITS.index(split)))


def _to_bytes(images: np.ndarray) -> np.ndarray:
    """(N, 3, H, W) or grey (N, 1, H, W) float in [0, 1] -> (N, H, W, 3) uint8."""
    images = np.moveaxis(np.clip(images, 0, 1) * 255 + 0.5, 1, -1).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], 3)))


# Ingredients


@cache
def _handwriting(split: str) -> Glyphs:
    """The scans of one split's writers, as shapes."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    rows = slice(*WRITER_ROWS[split])
    padded = np.pad(scans.images[rows], ((0, 0), (2, 2), (2, 2)))
    return _outline(scans.target[rows], _enlarge(padded, FIELD) > 6.5)  # of 16: keeps thin strokes whole


@cache
def _font_digits(fonts: tuple[str, ...]) -> Glyphs:
    """The ten digits of each font; digit d of font f is row 10 f + d."""
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
    """Turn (M, S, S) bool masks into signed distance fields."""
    depth = ndimage.distance_transform_edt
    fields = np.stack([depth(mask) - depth(~mask) for mask in masks])
    fields = ndimage.gaussian_filter(fields, 1, axes=(1, 2), output=np.float32)  # rounds off staircases
    first, last = [], []
    for axis in (2, 1):
        hit = masks.any(axis)
        first.append(hit.argmax(1))
        last.append(hit.shape[1] - 1 - hit[:, ::-1].argmax(1))
    first, last = np.stack(first, 1), np.stack(last, 1)
    boxes = np.concatenate([(first + last) / 2, (last - first + 1) / 2], 1).astype(np.float32)
    ridges = (fields > 0) & (fields == ndimage.maximum_filter(fields, (1, 3, 3)))
    pens = np.nanmedian(np.where(ridges, fields, np.nan).reshape(len(masks), -1), 1)
    return Glyphs(labels.astype(np.int64), fields, boxes, pens)


@cache
def _photos(split: str, shrink: int) -> tuple[np.ndarray, ...]:
    """The split's part of each photograph, reduced: (3, H, W) float32 in [0, 1]."""
    from sklearn.datasets import load_sample_images

    parts = []
    for photo in load_sample_images().images:
        left, right = (round(share * photo.shape[1]) for share in PHOTO_COLUMNS[split])
        part = Image.fromarray(photo[:, left:right]).reduce(shrink)
        parts.append(np.moveaxis(np.asarray(part, np.float32) / 255, -1, 0))
    return tuple(parts)


def _patches(rng: np.random.Generator, count: int, size: int, split: str) -> np.ndarray:
    """Cut random patches, then vary flip, hue and brightness: two photographs are few.

    Returns:
        (count, 3, size, size) float32 in [0, 1].
    """
    patches = np.empty((count, 3, size, size), np.float32)
    for i in range(count):
        photo = _photos(split, int(rng.integers(1, 4)))[rng.integers(2)]
        y, x = (int(rng.integers(0, side - size + 1)) for side in photo.shape[1:])
        patch = photo[rng.permutation(3), y : y + size, x : x + size]
        patches[i] = patch[:, :: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
    gain = rng.uniform(0.6, 1.4, (count, 1, 1, 1)) * rng.uniform(0.8, 1.2, (count, 3, 1, 1))
    return np.clip(patches * gain + rng.uniform(-0.1, 0.1, (count, 1, 1, 1)), 0, 1).astype(np.float32)


@cache
def _basis(coarse: int, fine: int, order: int) -> np.ndarray:
    """(fine, coarse) float32 matrix that resamples a line by splines."""
    unit = np.eye(coarse, dtype=np.float32)
    return ndimage.zoom(unit, (fine / coarse, 1), order=order, mode="nearest", grid_mode=True)


def _enlarge(coarse: np.ndarray, size: int, order: int = 3) -> np.ndarray:
    """Resample (..., h, w) to (..., size, size) float32."""
    height, width = coarse.shape[-2:]
    return _basis(height, size, order) @ coarse.astype(np.float32) @ _basis(width, size, order).T


# Digits


def _ink(rng, glyphs, rows, size, half, pen, centre, turn, slant, wobble) -> np.ndarray:
    """Draw glyphs under a small affine and elastic deformation.

    Args:
        rows: (N,) int, which of the glyphs.
        size: side of the drawing, pixels; every length below is in these pixels.
        half: (N, 2) half height and half width that the glyph's box is stretched to.
        pen: (N,) half the width of a typical stroke.
        centre: (N, 2) offset of the box from the middle, y and x.
        turn, slant: (N,) rotation (radians) and shear.
        wobble: standard deviation of the elastic displacement.

    Returns:
        (N, size, size) float32 coverage in [0, 1].
    """
    boxes = glyphs.boxes[rows]
    zoom = boxes[:, 2:] / half
    grow = pen - glyphs.pens[rows] / np.sqrt(zoom.prod(1))
    grow = np.maximum(grow, -0.5)  # thinned by more than that, hairlines would break
    maps = [*boxes[:, :2].T, *zoom.T, *centre.T, turn, slant, grow]
    middle_y, middle_x, zoom_y, zoom_x, dy, dx, turn, slant, grow = np.float32(maps)[..., None, None]
    line = np.arange(size, dtype=np.float32) - (size - 1) / 2
    bend_y, bend_x = _enlarge(wobble * rng.standard_normal((2, len(rows), 4, 4)), size)
    y, x = line[:, None] - dy + bend_y, line - dx + bend_x
    y, x = np.cos(turn) * y - np.sin(turn) * x, np.sin(turn) * y + np.cos(turn) * x
    row = np.broadcast_to(rows[:, None, None], y.shape)
    where = np.stack([row, middle_y + zoom_y * y, middle_x + zoom_x * (x + slant * y)])
    distance = ndimage.map_coordinates(glyphs.fields, where, order=1, mode="nearest", output=np.float32)
    return np.clip(distance / np.sqrt(zoom_y * zoom_x) + grow + 0.5, 0, 1)


@cache
def _all_glyphs(split: str) -> Glyphs:
    """Handwriting first, fonts last."""
    fonts = TRAIN_FONTS if split == "train" else TRAIN_FONTS + HELD_OUT_FONTS
    return Glyphs(*map(np.concatenate, zip(_handwriting(split), _font_digits(fonts), strict=True)))


def _choose(rng: np.random.Generator, labels: np.ndarray, split: str, written: float) -> np.ndarray:
    """A random row of `_all_glyphs` for each label, handwriting for a share `written`: (N,) int."""
    num_written = len(_handwriting(split).labels)
    known = _all_glyphs(split).labels
    by_hand = rng.random(len(labels)) < written
    rows = np.empty(len(labels), np.int64)
    for digit in range(10):
        candidates = np.flatnonzero(known == digit)
        cut = np.searchsorted(candidates, num_written)
        for wanted, pool in ((by_hand, candidates[:cut]), (~by_hand, candidates[cut:])):
            here = np.flatnonzero(wanted & (labels == digit))
            rows[here] = rng.choice(pool, len(here))
    return rows


def _mnist(rng: np.random.Generator, labels: np.ndarray, split: str) -> np.ndarray:
    """White pen strokes on black, fitted into the middle 20x20 as in MNIST: (N, 1, 28, 28) in [0, 1]."""
    count = len(labels)
    glyphs, rows = _all_glyphs(split), _choose(rng, labels, split, 0.5)
    box = glyphs.boxes[rows, 2:]
    half = 10 * box / box.max(1, keepdims=True) * rng.uniform(0.85, 1.05, (count, 2))
    pen, centre = rng.uniform(0.9, 1.7, count), rng.uniform(-1, 1, (count, 2))
    turn, slant = rng.normal(0, 0.12, count), rng.normal(0.08, 0.18, count)
    return _ink(rng, glyphs, rows, 28, half, pen, centre, turn, slant, wobble=0.45)[:, None]


def _mnistm(rng: np.random.Generator, labels: np.ndarray, split: str) -> np.ndarray:
    """The published recipe, |patch - digit| in each channel: (N, 3, 28, 28) in [0, 1]."""
    return np.abs(_patches(rng, len(labels), 28, split) - _mnist(rng, labels, split))


def _usps(rng: np.random.Generator, labels: np.ndarray, split: str) -> np.ndarray:
    """Fat scans cropped to the ink, 16x16 stretched to 28x28: (N, 1, 28, 28) in [0, 1]."""
    count = len(labels)
    glyphs, rows = _all_glyphs(split), _choose(rng, labels, split, 0.8)
    aspect = glyphs.boxes[rows, 3] / glyphs.boxes[rows, 2]
    half = 7.2 * np.stack([np.ones(count), np.minimum(1, 1.8 * aspect)], 1)  # a one stays narrow
    pen, centre = rng.uniform(1.1, 1.7, count), rng.uniform(-0.3, 0.3, (count, 2))
    turn, slant = rng.normal(0, 0.05, count), rng.normal(0.12, 0.12, count)
    scan = _ink(rng, glyphs, rows, 16, half, pen, centre, turn, slant, wobble=0.3)
    return _enlarge(scan, 28, order=1)[:, None]


def _svhn(rng: np.random.Generator, labels: np.ndarray, split: str) -> np.ndarray:
    """House numbers with neighbours, shadow, uneven light, blur and noise: (N, 3, 28, 28) in [0, 1]."""
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
    stone = _enlarge(_patches(rng, count, 7, split) - 0.5, 28)
    image = wall + np.maximum(0, vary(-0.4, 0.4)) * stone
    shadow = np.zeros_like(number)
    shadow[:, :, 1:, 1:] = number[:, :, :-1, :-1]
    image *= 1 - np.maximum(0, vary(-0.6, 0.6)) * shadow
    image += number * (paint - image) + light
    blurred = ndimage.gaussian_filter(image, 1.3, axes=(2, 3))
    image += vary(0, 1) * (blurred - image)
    return image + vary(0, 0.05) * rng.standard_normal(image.shape, np.float32)


def _house_number(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """The labelled digits in bold type, often with neighbours cut off at the sides: (N, 28, 28) in [0, 1]."""
    count = len(labels)
    glyphs = _font_digits(BOLD_FONTS)
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


# Faces

# sRGB, from light to dark, from black to grey, from brown to grey.
SKINS = np.array([(248, 214, 190), (238, 192, 154), (216, 160, 116), (178, 118, 78), (104, 68, 48)])
HAIRS = np.array([(22, 18, 18), (52, 34, 24), (92, 60, 36), (140, 84, 46), (206, 164, 98), (172, 168, 164)])
IRISES = np.array([(50, 30, 20), (58, 36, 22), (98, 66, 34), (84, 104, 60), (72, 104, 140), (104, 120, 128)])


def _inside(distance: np.ndarray, softness: float = 0.04) -> np.ndarray:
    """Anti-aliased mask of where a signed distance is negative."""
    return np.clip(0.5 - distance / softness, 0, 1)


def _oval(x, y, radius_x, radius_y) -> np.ndarray:
    """Roughly the signed distance to an ellipse around 0, negative inside."""
    return (np.hypot(x / radius_x, y / radius_y) - 1) * np.minimum(radius_x, radius_y)


def _glow(x, y, radius_x, radius_y) -> np.ndarray:
    """A soft spot around 0 with peak 1."""
    return np.exp(-((x / radius_x) ** 2) - (y / radius_y) ** 2)


class _Portraits:
    """A batch of head-and-shoulder portraits, painted back to front at 96x96.

    Image coordinates run from -1 to 1, y downwards. Features live on an ellipsoid head: `u`, `v` are the
    place of a pixel on the face once the pose is undone, so that turning the head moves, narrows and hides
    them as it should. Maps are (N, H, W) float32, numbers of a portrait (N, 1, 1), colours (N, 3, 1, 1) in
    [0, 1], the canvas (N, 3, H, W).
    """

    SIZE = 96

    def __init__(self, rng: np.random.Generator, count: int, split: str) -> None:
        self.rng, self.count, self.split = rng, count, split

    def paint(self) -> np.ndarray:
        """Returns: (N, 3, 64, 64) float in [0, 1], give or take a little."""
        self._pose()
        self._sitter()
        for layer in (self._background, self._mane, self._body, self._skin, self._eyes, self._nose_and_mouth):
            layer()
        self._fringe()
        self._glasses()
        thirds = np.eye(self.SIZE, dtype=np.float32).repeat(2, 0).reshape(64, 3, self.SIZE).mean(1)
        small = thirds @ self.canvas @ thirds.T
        exposure = self._vary(0.85, 1.06)[:, None] * self.rng.uniform(0.96, 1.04, (self.count, 3, 1, 1))
        return small * exposure + self.rng.normal(0, 0.006, small.shape)

    def _vary(self, low: float, high: float) -> np.ndarray:
        return self.rng.uniform(low, high, (self.count, 1, 1)).astype(np.float32)

    def _maybe(self, share: float) -> np.ndarray:
        return (self.rng.random((self.count, 1, 1)) < share).astype(np.float32)

    def _noise(self, rows: int, columns: int) -> np.ndarray:
        return _enlarge(self.rng.normal(0, 1, (self.count, rows, columns)), self.SIZE)

    def _colour(self, low: float, high: float) -> np.ndarray:
        """Any hue, mostly muted."""
        vivid, grey = self.rng.uniform(low, high, (self.count, 3, 1, 1)), self._vary(low, high)[:, None]
        return (grey + self._vary(0, 0.7)[:, None] * (vivid - grey)).astype(np.float32)

    def _tone(self, anchors: np.ndarray, place: np.ndarray) -> np.ndarray:
        """A colour between the anchors, by place in [0, 1]."""
        steps = np.linspace(0, 1, len(anchors))
        mixed = np.stack([np.interp(place[:, 0, 0], steps, channel / 255) for channel in anchors.T], 1)
        return (mixed * self.rng.uniform(0.97, 1.03, mixed.shape))[..., None, None].astype(np.float32)

    def _layer(self, mask: np.ndarray, colour) -> None:
        """Blend a colour over the canvas where the mask is 1."""
        change = colour - self.canvas
        change *= mask[:, None]
        self.canvas += change

    def _pose(self) -> None:
        """Set the head's place, turn and light."""
        vary = self._vary
        line = (np.arange(self.SIZE, dtype=np.float32) + 0.5) / (self.SIZE / 2) - 1
        self.image_x, self.image_y = line, line[:, None]
        roll, self.shift_x, self.shift_y = vary(-0.16, 0.16), vary(-0.06, 0.06), vary(-0.04, 0.08)
        off_x, off_y = self.image_x - self.shift_x, self.image_y - self.shift_y
        self.x = np.cos(roll) * off_x + np.sin(roll) * off_y
        self.y = np.cos(roll) * off_y - np.sin(roll) * off_x
        self.broad, self.tall, jaw = vary(0.54, 0.63), vary(0.7, 0.79), vary(0.12, 0.32)
        self.px = self.x / (self.broad * (1 - jaw * np.clip(self.y / self.tall, 0, 1) ** 2))
        self.py = self.y / self.tall
        radius = np.hypot(self.px, self.py)
        self.face = _inside((radius - 1) * 0.5, 0.03)
        depth = np.sqrt(np.clip(1 - radius**2, 0, 1))
        self.yaw, pitch = vary(-0.5, 0.5), vary(-0.15, 0.1)
        self.u = self.px * np.cos(self.yaw) - depth * np.sin(self.yaw)
        forward = self.px * np.sin(self.yaw) + depth * np.cos(self.yaw)
        self.v = self.py * np.cos(pitch) - forward * np.sin(pitch)
        self.light_x, light_y, contrast = vary(-0.8, 0.8), vary(-0.6, 0.1), vary(0.3, 0.65)
        light_z = np.sqrt(1.1 - 0.8 * (self.light_x**2 + light_y**2))
        self.lambert = np.clip(self.px * self.light_x + self.py * light_y + depth * light_z, -0.4, 1.2)
        self.shade = (1 + contrast * (self.lambert - 0.75))[:, None]

    def _sitter(self) -> None:
        """Choose who sits: complexion, hair, beard or rouge."""
        vary, maybe = self._vary, self._maybe
        darkness = vary(0, 1)
        self.skin = self._tone(SKINS, darkness)
        self.lit_skin = self.skin * self.shade
        fair = np.where(darkness > 0.6, 0.35, 1)  # dark skin rarely goes with blond hair and blue eyes
        self.hair, self.iris = self._tone(HAIRS, fair * vary(0, 1)), self._tone(IRISES, fair * vary(0, 1))
        self.female = maybe(0.5)
        self.beard = maybe(0.35) * (1 - self.female) * vary(0.3, 0.95)
        self.length = np.where(self.female > 0, vary(0.1, 1.3), vary(-0.4, 0.15))  # where hair ends, as y
        self.haired = 1 - maybe(0.12) * (1 - self.female)
        thick = vary(0.05, 0.16) * self.haired
        self.strands = self._noise(5, 24)
        self.crown = _oval(self.x, self.y + 0.06, self.broad + thick, self.tall + 0.8 * thick)
        self.locks = np.abs(self.x + 0.03 * self.strands) - self.broad - thick
        gloss = np.clip(self.lambert, 0, 1) * _glow(0, self.py + 0.75, 1, 0.35)
        self.hair_shade = (0.72 + 0.12 * self.strands + 0.4 * gloss)[:, None]

    def _background(self) -> None:
        """A plain wall, a gradient or a photograph out of focus."""
        vary = self._vary
        wall = self._colour(0.1, 0.95)
        slope = (0.5 + vary(-0.4, 0.4) * self.image_x + vary(-0.4, 0.4) * self.image_y)[:, None]
        self.canvas = wall + self._maybe(0.7)[:, None] * slope * (self._colour(0.1, 0.95) - wall)
        photo = _enlarge(_patches(self.rng, self.count, 12, self.split), self.SIZE)
        photo += vary(0.2, 0.9)[:, None] * (photo.mean(1, keepdims=True) - photo)
        self._layer(self._maybe(0.4), photo)

    def _mane(self) -> None:
        """Hair behind the head."""
        locks = np.maximum(self.locks, np.maximum(-self.y - 0.05, self.y - 0.75 * self.length))
        mane = np.minimum(self.crown + np.clip(self.y - self.length, 0, 1), locks)
        self._layer(_inside(mane, 0.06) * self.haired, self.hair * self.hair_shade * 0.75)

    def _body(self) -> None:
        """Neck in the chin's shadow, clothes, ears."""
        vary = self._vary
        middle, low = self.image_x - self.shift_x, self.image_y - self.shift_y
        neck = np.maximum(np.abs(middle) - vary(0.24, 0.33) - np.maximum(low - 0.85, 0) ** 2 * 3, 0.1 - low)
        cast = np.clip((low - self.tall) * 2.5 + 0.6, 0.45, 1) + 0.2 * self.light_x * middle
        self._layer(_inside(neck), self.skin * self.shade.mean((2, 3), keepdims=True) * cast[:, None])
        shoulders = _oval(middle, self.image_y - vary(1.18, 1.32), vary(0.8, 1.1), 0.42)
        opening = _oval(middle, self.image_y - 0.78, vary(0.24, 0.38), vary(0.12, 0.3))
        folds = 0.92 - 0.25 * self.image_x**2 + 0.2 * self.light_x * self.image_x + 0.05 * self._noise(4, 8)
        self._layer(_inside(np.maximum(shoulders, -opening)), self._colour(0.08, 0.9) * folds[:, None])
        ears = _oval(np.abs(self.px + 0.15 * np.sin(self.yaw)) - 1, self.py - 0.02, 0.13, 0.2)
        self._layer(_inside(ears), self.lit_skin * 0.85)

    def _skin(self) -> None:
        """The head with the relief of sockets, nose, chin and cheeks; rosy cheeks; a beard."""
        vary, u, v = self._vary, self.u, self.v
        self.eye_u, self.eye_v = np.abs(u) - vary(0.38, 0.43), v + vary(-0.02, 0.05)
        self.nose_v, self.nose_wide = vary(0.32, 0.42), vary(0.13, 0.19)
        self.nose_u = u + 0.18 * np.sin(self.yaw)  # it stands out of the ellipsoid
        self.mouth_v = self.nose_v + vary(0.2, 0.26)
        cheek, shadow = np.abs(u) - 0.5, 0.13 * np.sign(self.light_x)
        relief = (
            -0.22 * _glow(self.eye_u + 0.03, self.eye_v + 0.01, 0.27, 0.13)
            - 0.16 * _glow(np.abs(u) - 0.16, self.eye_v, 0.09, 0.14)
            + 0.14 * _glow(self.nose_u, v - 0.12, 0.07, 0.26)
            - 0.25 * np.abs(self.light_x) * _glow(self.nose_u + shadow, v - 0.18, 0.08, 0.2)
            + 0.14 * _glow(self.nose_u, v - self.nose_v + 0.05, 0.09, 0.07)
            - 0.22 * _glow(self.nose_u, v - self.nose_v - 0.06, self.nose_wide * 1.2, 0.05)
            - 0.12 * _glow(u, v - self.mouth_v - 0.17, 0.2, 0.05)
            + 0.06 * _glow(cheek, v - 0.3, 0.22, 0.2)
            + 0.07 * _glow(u, v + 0.5, 0.4, 0.25)
            + 0.03 * self._noise(9, 9)
        )
        self._layer(self.face, self.lit_skin * (1 + relief)[:, None])
        blush = self.face * vary(0, 0.8) * _glow(cheek, v - 0.3, 0.25, 0.18)
        self.canvas += blush[:, None] * np.float32([0.1, -0.04, -0.03])[:, None, None]
        stubble = _inside(0.55 - 1.3 * np.maximum(v, 0) - 0.25 * np.abs(u) ** 3, 0.25)
        stubble *= 1 - _glow(u, v - self.mouth_v, 0.26, 0.09)
        curls = (0.8 + 0.1 * self.strands)[:, None]
        self._layer(self.face * self.beard * stubble, self.hair * self.shade * curls)

    def _eyes(self) -> None:
        """Both eyes at once: `eye_u` runs outwards from the middle of each."""
        vary, along, face, shade = self._vary, self.eye_u, self.face, self.shade
        wide, height = vary(0.18, 0.23), vary(0.06, 0.11)
        across = self.eye_v + vary(-0.15, 0.2) * along
        arc = height * (1 - (along / wide) ** 2)
        eye = face * _inside(np.maximum(-across - arc, across - 0.75 * arc), 0.05)
        self._layer(eye, np.float32([0.93, 0.92, 0.9])[:, None, None] * (0.45 + 0.55 * shade))
        gaze_u, gaze_v = along - np.sign(self.u) * vary(-0.06, 0.06), across - vary(-0.02, 0.02)
        radius = vary(0.09, 0.11)
        iris, pupil = (_oval(gaze_u, gaze_v, part * radius, 0.75 * part * radius) for part in (1, 0.48))
        self._layer(eye * _inside(iris), self.iris * shade)
        self._layer(eye * _inside(pupil), 0.04)
        glint = _glow(gaze_u - 0.03 * np.sign(self.u * self.light_x), gaze_v + 0.03, 0.028, 0.022)
        self._layer(0.9 * eye * glint, 1.0)
        within = face * _inside(np.abs(along) - wide - 0.02, 0.06)
        lash = within * _glow(0, across + arc, 1, vary(0.025, 0.045))
        self._layer(lash * (0.65 + 0.3 * self.female), self.skin * 0.12)
        self._layer(0.35 * within * _glow(0, across + arc + 0.08, 1, 0.03), self.lit_skin * 0.55)
        arch = self.eye_v + vary(0.21, 0.28) + vary(-0.1, 0.15) * along - vary(0.2, 1.2) * along**2
        brow = np.maximum(np.abs(arch) - vary(0.025, 0.06) * (1.1 - 1.5 * along), np.abs(along - 0.02) - 0.26)
        self._layer(face * _inside(brow, 0.07) * vary(0.6, 0.95), self.hair * shade * 0.6)

    def _nose_and_mouth(self) -> None:
        vary, u, v, face, shaded = self._vary, self.u, self.v, self.face, self.lit_skin
        nostrils = _glow(np.abs(self.nose_u) - self.nose_wide * 0.55, v - self.nose_v, 0.05, 0.03)
        wings = _glow(np.abs(self.nose_u) - self.nose_wide, v - self.nose_v + 0.03, 0.035, 0.06)
        self._layer(face * (0.75 * nostrils + 0.25 * wings), shaded * 0.3)
        smile, gape, reach = vary(-0.03, 0.13), np.maximum(vary(-0.07, 0.09), 0), vary(0.25, 0.35)
        bow = np.clip(1 - (u / reach) ** 2, 0, 1)
        middle = v - self.mouth_v + smile * (0.6 - bow)
        upper, lower = vary(0.045, 0.08), vary(0.06, 0.11)
        ends = np.abs(u) - reach
        lips = np.maximum(-middle - (0.5 * gape + upper) * bow, middle - (gape + lower) * bow)
        rouge = shaded * np.float32([0.88, 0.6, 0.6])[:, None, None]
        painted = (0.6 * self.female * self._maybe(0.5))[:, None]
        rouge += painted * (np.float32([0.75, 0.15, 0.2])[:, None, None] * self.shade - rouge)
        lit = 0.88 + 0.3 * _glow(u, middle - gape - 0.5 * lower, 0.15, 0.035)
        self._layer(0.85 * face * _inside(np.maximum(lips, ends), 0.06), rouge * lit[:, None])
        gap = np.maximum(np.maximum(-middle - 0.5 * gape * bow, middle - gape * bow), ends)
        self._layer(face * _inside(gap + 0.012, 0.05), self.skin * 0.12)
        teeth = np.maximum(gap + 0.02, middle - 0.45 * gape)
        self._layer(face * _inside(teeth, 0.05), 0.4 + 0.45 * self.shade)
        self._layer(0.7 * face * _glow(0, middle, 1, 0.02) * _inside(ends, 0.06), shaded * 0.3)
        fold = _glow(np.abs(u) - 0.24 - 0.45 * (v - self.nose_v), v - self.nose_v - 0.12, 0.035, 0.13)
        self._layer(face * fold * np.clip(4 * smile, 0, 0.45), shaded * 0.6)

    def _fringe(self) -> None:
        """Hair in front of the head, above a hairline that falls towards the temples."""
        vary, maybe = self._vary, self._maybe
        middle = vary(-0.7, -0.5) + maybe(0.25) * vary(0.1, 0.25) - 0.2 * maybe(0.15)
        middle = middle + vary(-0.2, 0.2) * self.u
        temple = np.where(self.length > 0.15, 1.4, vary(-0.1, 0.1))
        line = np.minimum(middle + (temple - middle) * np.abs(self.u) ** vary(3, 6), temple)
        fringe = np.maximum(self.crown, self.v - line + 0.03 * self.strands)
        colour = self.hair * self.hair_shade * (0.7 + 0.3 * self.shade)
        self._layer(_inside(fringe, 0.07) * self.haired, colour)

    def _glasses(self) -> None:
        vary = self._vary
        lens = _oval(self.eye_u, self.eye_v - 0.01, vary(0.25, 0.3), vary(0.17, 0.22))
        frame = np.abs(lens) - vary(0.01, 0.025)
        bridge = np.maximum(np.abs(self.eye_v + 0.02) - 0.014, np.abs(self.u) - 0.17)
        arms = np.maximum(np.abs(self.eye_v + 0.03) - 0.014, 0.65 - np.abs(self.u))
        rim = _inside(np.minimum(np.minimum(frame, bridge), arms), 0.05)
        self._layer(0.9 * self.face * rim * self._maybe(0.18), self._colour(0.02, 0.3))
