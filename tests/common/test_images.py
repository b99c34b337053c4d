"""Images: ranges, the layout of a grid, and files."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from common import images
from common.errors import UserError
from common.images import grid, save_gif, save_image, save_picture


def test_every_byte_survives_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8).expand(2, 3, 256).reshape(2, 3, 16, 16)
    floats = images.to_float(levels)
    assert floats.dtype == torch.float32
    assert (floats.min().item(), floats.max().item()) == (-1, 1)
    assert floats.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images.to_uint8(floats), levels)
    assert (levels.min(), levels.max()) == (0, 255)  # left as they were


def test_to_uint8_rounds_and_clamps():
    step = 2 / 255
    x = torch.tensor([-7.0, -1.0, -1 + 0.49 * step, -1 + 0.51 * step, 1 - 0.49 * step, 1.0, 1.2])
    assert images.to_uint8(x).tolist() == [0, 0, 0, 1, 255, 255, 255]
    before = x.clone()
    images.to_uint8(x)
    assert torch.equal(x, before)
    assert images.to_uint8(torch.tensor([0.5], dtype=torch.bfloat16)).tolist() == [191]


@pytest.mark.parametrize("scale", [1, 3])
def test_grid_is_exact_to_the_pixel(scale):
    gap = 2
    tiles = torch.randint(0, 255, (5, 3, 4, 6), dtype=torch.uint8)
    expected = np.full((2 * (4 + gap) + gap, 3 * (6 + gap) + gap, 3), 255, np.uint8)
    for i, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]):
        for y in range(4):
            for x in range(6):
                expected[gap + row * (4 + gap) + y, gap + column * (6 + gap) + x] = tiles[i, :, y, x]
    got = np.asarray(grid(tiles, columns=3, scale=scale))
    np.testing.assert_array_equal(got, expected.repeat(scale, 0).repeat(scale, 1))


def test_saved_image_is_lossless_and_stamped(tmp_path):
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    save_image(image, tmp_path / "new" / "a.png", "seed=0")
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert (picture.mode, picture.format, images.stamp_of(tmp_path / "new" / "a.png")) == ("RGB", "PNG", "seed=0")
        assert torch.equal(torch.from_numpy(np.array(picture)).permute(2, 0, 1), image)
    assert os.listdir(tmp_path / "new") == ["a.png"]


def test_a_picture_is_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_picture(Image.new("RGB", (4, 4), "red"), path)
    before = path.read_bytes()

    def fill_the_disk(self, target, **_):
        target.write_bytes(b"\x89PNG half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill_the_disk)
    with pytest.raises(UserError, match=r"a\.png: cannot write \(No space left on device\)"):
        save_picture(Image.new("RGB", (4, 4), "blue"), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_gif_rests_on_its_last_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    save_gif(frames, tmp_path / "new" / "three.gif", frame_ms=50, last_ms=900)
    with Image.open(tmp_path / "new" / "three.gif") as gif:
        seen = []
        for i in range(gif.n_frames):
            gif.seek(i)
            seen.append(gif.info["duration"])
        assert seen == [50, 50, 900] and gif.info["loop"] == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["three.gif"]
