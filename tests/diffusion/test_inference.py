"""Drawing digits: names, bytes, batching, and going on where a run stopped."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from common import checkpoint
from common.errors import UserError
from diffusion import inference
from diffusion.unet import KIND, ConditionalUNet


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    checkpoint.save(path, {"kind": KIND, "model_args": {"width": 8, "prediction": "velocity", "schedule": "cosine"},
                           "weights": ConditionalUNet(8).state_dict()})
    return path


def draw(out, trained, *more):
    return inference.main([str(out), "--weights", str(trained), "--steps", "3", "--per-digit", "2", *more])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def drawn(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("drawn") / "out"
    assert draw(out, trained) == 0
    return contents(out)


def test_names_sizes_and_modes(drawn, tmp_path):
    assert sorted(drawn) == [f"{digit}_{number:03d}.png" for digit in range(10) for number in (1, 2)]
    (tmp_path / "x.png").write_bytes(drawn["7_002.png"])
    with Image.open(tmp_path / "x.png") as image:
        assert (image.size, image.mode, image.format) == ((28, 28), "RGB", "PNG")


def test_same_bytes_again_and_at_any_batch_size(drawn, trained, tmp_path):
    draw(tmp_path / "again", trained)
    assert contents(tmp_path / "again") == drawn
    draw(tmp_path / "batched", trained, "--batch-size", "3")
    assert contents(tmp_path / "batched") == drawn
    draw(tmp_path / "other", trained, "--seed", "1")
    assert not set(contents(tmp_path / "other").values()) & set(drawn.values())


def test_a_stopped_run_is_finished_and_finished_files_stay(drawn, trained, tmp_path):
    out = tmp_path / "out"
    draw(out, trained)
    for name in ("3_001.png", "9_002.png"):
        (out / name).unlink()
    (out / ".4_001.png.partial").write_bytes(b"cut short")
    kept = os.stat(out / "0_001.png").st_mtime_ns
    draw(out, trained)
    assert {name: data for name, data in contents(out).items() if not name.startswith(".")} == drawn
    assert os.stat(out / "0_001.png").st_mtime_ns == kept


def test_other_peoples_files_are_never_overwritten(trained, tmp_path):
    (tmp_path / "0_001.png").write_bytes(b"a photograph")
    with pytest.raises(UserError, match=r"0_001\.png was not made by this command"):
        draw(tmp_path, trained)
    assert contents(tmp_path) == {"0_001.png": b"a photograph"}


def test_other_settings_do_not_mix(trained, tmp_path):
    draw(tmp_path / "out", trained)
    with pytest.raises(UserError, match="these settings"):
        draw(tmp_path / "out", trained, "--guidance", "3")


def test_grid_and_reverse_process(trained, tmp_path):
    assert draw(tmp_path / "grid.png", trained, "--grid") == 0
    assert draw(tmp_path / "process.png", trained, "--process") == 0
    with Image.open(tmp_path / "grid.png") as image:
        assert image.size == (2 * (2 * 30 + 2), 2 * (10 * 30 + 2))
    with Image.open(tmp_path / "process.png") as image:
        assert image.size == (4 * (6 * 30 + 2), 4 * 32)


@pytest.mark.parametrize("flags", [["--sampler", "ddim"], ["--sampler", "heun"],
                                   ["--guidance-interval", "100", "600"]])
def test_samplers_and_interval_draw_other_images(drawn, trained, tmp_path, flags):
    draw(tmp_path / "other", trained, "--digits", "7", *flags)
    other = contents(tmp_path / "other")
    assert sorted(other) == ["7_001.png", "7_002.png"]
    assert not set(other.values()) & set(drawn.values())


def test_chosen_digits_are_the_same_images(drawn, trained, tmp_path):
    draw(tmp_path / "some", trained, "--digits", "7,3")
    assert contents(tmp_path / "some") == {name: drawn[name] for name in drawn if name[0] in "37"}


def test_gif_goes_from_noise_to_the_grid(trained, tmp_path):
    draw(tmp_path / "way.gif", trained, "--gif", "--digits", "3,5")
    draw(tmp_path / "grid.png", trained, "--grid", "--digits", "3,5")
    with Image.open(tmp_path / "way.gif") as way, Image.open(tmp_path / "grid.png") as end:
        assert way.n_frames == 4
        assert way.size == end.size == (2 * (2 * 30 + 2),) * 2
        first = np.asarray(way.convert("RGB"), int)
        way.seek(3)
        last, end = np.asarray(way.convert("RGB"), int), np.asarray(end, int)
        assert np.abs(last - end).mean() < 12 < np.abs(first - end).mean()  # 256 colours come close


@pytest.mark.parametrize(("more", "message"), [
    (["--digits", "3,x"], "different digits"),
    (["--digits", "3,3"], "different digits"),
    (["--digits", ""], "different digits"),
    (["--gif"], r"ends in \.gif"),
    (["--weights", "nowhere.pt"], "no checkpoint at nowhere.pt"),
    (["--steps", "1001"], "at most"),
    (["--guidance", "-1"], ">= 0"),
    (["--grid"], r"ends in \.png"),
])
def test_mistakes(trained, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        draw(tmp_path / "out", trained, *more)
    assert not (tmp_path / "out").exists()
