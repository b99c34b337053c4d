"""The embedded faces: procedural portraits, some of them in front of the photographs of `ingredients`."""

import numpy as np

from common.data.ingredients import enlarge, patches, rng_for, to_bytes

FACE_COUNTS = {"train": 2000, "val": 400}  # images per split
POSITION = 4  # of the faces among the embedded sets, after the four digit domains: part of their seed
CHUNK = 8  # portraits painted at once: their maps fit into the processor's cache
SIZE = 96  # of the canvas, which is then reduced to 64x64
# sRGB: skin from light to dark, hair from black to grey, irises from brown to grey.
SKINS = np.array([(248, 214, 190), (238, 192, 154), (216, 160, 116), (178, 118, 78), (104, 68, 48)])
HAIRS = np.array([(22, 18, 18), (52, 34, 24), (92, 60, 36), (140, 84, 46), (206, 164, 98), (172, 168, 164)])
IRISES = np.array([(50, 30, 20), (58, 36, 22), (98, 66, 34), (84, 104, 60), (72, 104, 140), (104, 120, 128)])


def faces(split: str) -> np.ndarray:
    """Generate one split, "train" or "val", every time the same: (N, 64, 64, 3) uint8, N is `FACE_COUNTS[split]`."""
    rng = rng_for(POSITION, split)
    chunks = range(FACE_COUNTS[split] // CHUNK)
    return np.concatenate([to_bytes(_Portraits(rng, CHUNK, split).paint()) for _ in chunks])


def _inside(distance: np.ndarray, softness: float = 0.04) -> np.ndarray:
    """Return an anti-aliased mask: 1 where a signed distance is negative."""
    return np.clip(0.5 - distance / softness, 0, 1)


def _oval(x, y, radius_x, radius_y) -> np.ndarray:
    """Return roughly the signed distance to an ellipse around the origin, negative inside."""
    return (np.hypot(x / radius_x, y / radius_y) - 1) * np.minimum(radius_x, radius_y)


def _glow(x, y, radius_x, radius_y) -> np.ndarray:
    """Return a soft spot around the origin, 1 at its centre."""
    return np.exp(-((x / radius_x) ** 2) - (y / radius_y) ** 2)


class _Portraits:
    """A batch of head-and-shoulder portraits, painted from back to front.

    Image coordinates run from -1 to 1, y downwards. The head is an ellipsoid: (u, v) is the point of the unturned face
    that a pixel shows, so a turn of the head moves, narrows and hides features correctly. Maps are (N, H, W) float32,
    one number per portrait is (N, 1, 1), colours are (N, 3, 1, 1) in [0, 1], and the canvas is (N, 3, H, W).
    """

    def __init__(self, rng: np.random.Generator, count: int, split: str) -> None:
        self.rng, self.count, self.split = rng, count, split

    def paint(self) -> np.ndarray:
        """Return (N, 3, 64, 64) float, roughly in [0, 1]."""
        for step in (self._choose_pose, self._choose_person, self._background, self._long_hair, self._body, self._head,
                     self._eyes, self._nose_and_mouth, self._fringe, self._glasses):
            step()
        thirds = np.eye(SIZE, dtype=np.float32).repeat(2, 0).reshape(64, 3, SIZE).mean(1)  # 1.5 pixels become one
        small = thirds @ self.canvas @ thirds.T
        exposure = self._vary(0.85, 1.06)[:, None] * self.rng.uniform(0.96, 1.04, (self.count, 3, 1, 1))
        return small * exposure + self.rng.normal(0, 0.006, small.shape)

    def _vary(self, low: float, high: float) -> np.ndarray:
        return self.rng.uniform(low, high, (self.count, 1, 1)).astype(np.float32)

    def _maybe(self, share: float) -> np.ndarray:
        return (self.rng.random((self.count, 1, 1)) < share).astype(np.float32)

    def _noise(self, rows: int, columns: int) -> np.ndarray:
        return enlarge(self.rng.normal(0, 1, (self.count, rows, columns)), SIZE)

    def _colour(self, low: float, high: float) -> np.ndarray:
        """Choose a colour of any hue, in most cases a muted one."""
        vivid, grey = self.rng.uniform(low, high, (self.count, 3, 1, 1)), self._vary(low, high)[:, None]
        return (grey + self._vary(0, 0.7)[:, None] * (vivid - grey)).astype(np.float32)

    def _tone(self, anchors: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Return the colour at this place, from 0 (first anchor) to 1 (last), slightly varied."""
        steps = np.linspace(0, 1, len(anchors))
        mixed = np.stack([np.interp(place[:, 0, 0], steps, channel / 255) for channel in anchors.T], 1)
        return (mixed * self.rng.uniform(0.97, 1.03, mixed.shape))[..., None, None].astype(np.float32)

    def _layer(self, mask: np.ndarray, colour) -> None:
        """Paint a colour on the canvas, with the mask as its opacity."""
        change = colour - self.canvas
        change *= mask[:, None]
        self.canvas += change

    def _choose_pose(self) -> None:
        """Choose position, shape and rotation of the head, and the light."""
        vary = self._vary
        line = (np.arange(SIZE, dtype=np.float32) + 0.5) / (SIZE / 2) - 1
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

    def _choose_person(self) -> None:
        """Choose skin, hair, irises and beard."""
        vary, maybe = self._vary, self._maybe
        darkness = vary(0, 1)
        self.skin = self._tone(SKINS, darkness)
        self.lit_skin = self.skin * self.shade
        fair = np.where(darkness > 0.6, 0.35, 1)  # blond hair and blue eyes are rare with dark skin
        self.hair, self.iris = self._tone(HAIRS, fair * vary(0, 1)), self._tone(IRISES, fair * vary(0, 1))
        self.female = maybe(0.5)
        self.beard = maybe(0.35) * (1 - self.female) * vary(0.3, 0.95)
        self.length = np.where(self.female > 0, vary(0.1, 1.3), vary(-0.4, 0.15))  # y at which the hair ends
        self.haired = 1 - maybe(0.12) * (1 - self.female)
        thick = vary(0.05, 0.16) * self.haired
        self.strands = self._noise(5, 24)
        self.crown = _oval(self.x, self.y + 0.06, self.broad + thick, self.tall + 0.8 * thick)
        self.locks = np.abs(self.x + 0.03 * self.strands) - self.broad - thick
        gloss = np.clip(self.lambert, 0, 1) * _glow(0, self.py + 0.75, 1, 0.35)
        self.hair_shade = (0.72 + 0.12 * self.strands + 0.4 * gloss)[:, None]

    def _background(self) -> None:
        """Paint a plain wall, a gradient or a blurred photograph."""
        vary = self._vary
        wall = self._colour(0.1, 0.95)
        slope = (0.5 + vary(-0.4, 0.4) * self.image_x + vary(-0.4, 0.4) * self.image_y)[:, None]
        self.canvas = wall + self._maybe(0.7)[:, None] * slope * (self._colour(0.1, 0.95) - wall)
        photo = enlarge(patches(self.rng, self.count, 12, self.split), SIZE)
        photo += vary(0.2, 0.9)[:, None] * (photo.mean(1, keepdims=True) - photo)
        self._layer(self._maybe(0.4), photo)

    def _long_hair(self) -> None:
        """Paint the hair behind the head."""
        locks = np.maximum(self.locks, np.maximum(-self.y - 0.05, self.y - 0.75 * self.length))
        hair = np.minimum(self.crown + np.clip(self.y - self.length, 0, 1), locks)
        self._layer(_inside(hair, 0.06) * self.haired, self.hair * self.hair_shade * 0.75)

    def _body(self) -> None:
        """Paint the neck, in the chin's shadow, the clothes and the ears."""
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

    def _head(self) -> None:
        """Paint the head with its relief (eye sockets, nose, chin, cheeks), red cheeks and a beard."""
        vary, u, v = self._vary, self.u, self.v
        self.eye_u, self.eye_v = np.abs(u) - vary(0.38, 0.43), v + vary(-0.02, 0.05)
        self.nose_v, self.nose_wide = vary(0.32, 0.42), vary(0.13, 0.19)
        self.nose_u = u + 0.18 * np.sin(self.yaw)  # the nose is in front of the ellipsoid
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
        """Paint both eyes at once: `eye_u` grows outwards from the middle of each."""
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
        red = shaded * np.float32([0.88, 0.6, 0.6])[:, None, None]
        lipstick = (0.6 * self.female * self._maybe(0.5))[:, None]
        red += lipstick * (np.float32([0.75, 0.15, 0.2])[:, None, None] * self.shade - red)
        lit = 0.88 + 0.3 * _glow(u, middle - gape - 0.5 * lower, 0.15, 0.035)
        self._layer(0.85 * face * _inside(np.maximum(lips, ends), 0.06), red * lit[:, None])
        gap = np.maximum(np.maximum(-middle - 0.5 * gape * bow, middle - gape * bow), ends)
        self._layer(face * _inside(gap + 0.012, 0.05), self.skin * 0.12)
        teeth = np.maximum(gap + 0.02, middle - 0.45 * gape)
        self._layer(face * _inside(teeth, 0.05), 0.4 + 0.45 * self.shade)
        self._layer(0.7 * face * _glow(0, middle, 1, 0.02) * _inside(ends, 0.06), shaded * 0.3)
        fold = _glow(np.abs(u) - 0.24 - 0.45 * (v - self.nose_v), v - self.nose_v - 0.12, 0.035, 0.13)
        self._layer(face * fold * np.clip(4 * smile, 0, 0.45), shaded * 0.6)

    def _fringe(self) -> None:
        """Paint the hair in front of the head, above a hairline that is lower at the temples."""
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
