"""Pictures: ranges, seeds, the layout of a grid, and which files a stopped run still owes."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from common import images
from common.errors import UserError
from common.images import generator_for, grid, save_gif, save_image, save_picture, seeded_normal, still_missing


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


def test_noise_does_not_depend_on_batching():
    seeds = [(0, i) for i in range(7)]
    together = seeded_normal(seeds, (3, 8, 8))
    assert (together.shape, together.dtype) == ((7, 3, 8, 8), torch.float32)
    apart = torch.cat([seeded_normal(seeds[i:i + 3], (3, 8, 8)) for i in range(0, 7, 3)])
    assert torch.equal(together, apart)
    assert torch.equal(seeded_normal([(0, 4)], (3, 8, 8))[0], together[4])


def test_noise_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    seeded_normal([(0, 0)], (4,))
    assert torch.equal(torch.rand(1), expected)


def test_neighbouring_seeds_are_unrelated():
    seeds = [(i, j) for i in range(8) for j in range(8)] + [(i,) for i in range(8)] + [(0, 0, 0), (0, 1, 0)]
    noise = seeded_normal(seeds, (2000,))
    correlation = torch.corrcoef(noise).fill_diagonal_(0)
    assert correlation.abs().max() < 0.12  # 5.4 standard deviations of 1 / sqrt(2000)
    assert noise.mean().abs() < 0.02
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert not torch.equal(*seeded_normal([(0, 1), (1, 0)], (10,)))


def test_seeds_do_not_collide():
    states = {generator_for(i, j).initial_seed() for i in range(100) for j in range(100)}
    assert len(states) == 10_000


@pytest.mark.parametrize("gap", [0, 1, 2])
@pytest.mark.parametrize("scale", [1, 3])
def test_grid_is_exact_to_the_pixel(gap, scale):
    tiles = torch.randint(0, 255, (5, 3, 4, 6), dtype=torch.uint8)
    expected = np.full((2 * (4 + gap) + gap, 3 * (6 + gap) + gap, 3), 255, np.uint8)
    for i, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]):
        for y in range(4):
            for x in range(6):
                expected[gap + row * (4 + gap) + y, gap + column * (6 + gap) + x] = tiles[i, :, y, x]
    got = np.asarray(grid(tiles, columns=3, scale=scale, gap=gap))
    np.testing.assert_array_equal(got, expected.repeat(scale, 0).repeat(scale, 1))


def test_saved_image_is_lossless_and_stamped(tmp_path):
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    save_image(image, tmp_path / "new" / "a.png", "seed=0")
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert (picture.mode, picture.format, picture.info[images.STAMP]) == ("RGB", "PNG", "seed=0")
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
    with pytest.raises(UserError, match=r"a\.png: cannot write it \(No space left on device\)"):
        save_picture(Image.new("RGB", (4, 4), "blue"), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


NAMES = ["0.png", "1.png", "2.png"]


@pytest.fixture
def folder(tmp_path):
    save_image(torch.zeros(3, 2, 2, dtype=torch.uint8), tmp_path / "1.png", "seed=0")
    return tmp_path


def test_all_is_missing_from_a_new_folder(tmp_path):
    assert still_missing(tmp_path / "new", NAMES, "seed=0") == [0, 1, 2]
    assert not (tmp_path / "new").exists()
    assert still_missing(tmp_path, NAMES, "seed=0") == [0, 1, 2]


def test_what_these_settings_made_is_not_made_again(folder):
    (folder / ".0.png.partial").write_bytes(b"cut short")
    assert still_missing(folder, NAMES, "seed=0") == [0, 2]
    assert still_missing(folder, ["1.png"], "seed=0") == []


def test_other_settings_other_names_and_other_peoples_files_are_refused(folder):
    def refused(names=NAMES, stamp="seed=0"):
        with pytest.raises(UserError, match="was not made by this command and these settings") as mistake:
            still_missing(folder, names, stamp)
        return str(mistake.value)

    assert "1.png" in refused(stamp="seed=1")
    assert "1.png" in refused(names=["0.png"])
    for name, data in (("notes.txt", b"hello"), ("0.png", b"not a picture"), (".hidden", b"")):
        (folder / name).write_bytes(data)
        assert name in refused()
        (folder / name).unlink()
    Image.new("RGB", (2, 2)).save(folder / "2.png")  # a picture without the stamp
    assert "2.png" in refused()
    (folder / "2.png").unlink()
    (folder / "0.png").mkdir()
    assert "0.png" in refused()


def test_a_file_is_no_folder(folder):
    with pytest.raises(UserError, match="is a file"):
        still_missing(folder / "1.png", NAMES, "seed=0")


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
