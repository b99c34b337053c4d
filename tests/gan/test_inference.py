"""Inference: the files written, equal bytes however the work is split, and files that are never overwritten."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.checkpoint import load
from common.errors import UserError
from common.randomness import seeded_normal
from common.release import write_weights
from gan.inference import FRAMES_BETWEEN, STOPS, main, slerp
from gan.models import build_generator

COUNT = 53  # more than one batch


@pytest.fixture(scope="module")
def generate(trained):
    model, run = trained

    def generate(out, n, *flags):
        weights = ["--model", model, "--weights", str(run / "last.pt")]
        assert main([str(out), *weights, *(["--n", str(n)] if n else []), *flags]) == 0
        return {path.name: path.read_bytes() for path in out.iterdir()} if out.is_dir() else out.read_bytes()

    return generate


@pytest.fixture(scope="module")
def generated(generate, tmp_path_factory):
    out = tmp_path_factory.mktemp("generated")
    return out, generate(out, COUNT)


def test_count_names_and_mode(generated):
    out, files = generated
    assert sorted(files) == [f"{i:04d}.png" for i in range(COUNT)]
    with Image.open(out / "0052.png") as image:
        assert (image.mode, image.size, image.format) == ("RGB", (64, 64), "PNG")
    assert len(set(files.values())) == COUNT


def test_images_are_those_of_the_average_from_seeded_noise(generated, trained):
    model, run = trained
    out, _ = generated
    content = torch.load(run / "last.pt", weights_only=True)
    generator = build_generator({"model": model, "width": 8}).eval()
    generator.load_state_dict(content["parts"]["g_ema"]["module"])
    with torch.no_grad():
        expected = generator(seeded_normal([(0, 0), (0, 52)], (100 if model == "dcgan" else 128,)))
    for name, image in zip(("0000.png", "0052.png"), expected, strict=True):
        with Image.open(out / name) as picture:
            levels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()
        torch.testing.assert_close(levels, (image + 1) * 127.5, rtol=0, atol=0.51)


def test_same_bytes_for_any_number_of_images(generated, generate, tmp_path):
    _, files = generated
    assert generate(tmp_path / "again", COUNT) == files
    few = generate(tmp_path / "few", 3)
    assert few == {name: files[name] for name in few}
    assert generate(tmp_path / "other", 3, "--seed", "1") != few


def test_other_settings_do_not_mix(generate, tmp_path):
    generate(tmp_path / "seed0", 2)
    with pytest.raises(UserError, match="these settings"):
        generate(tmp_path / "seed0", 2, "--seed", "1")


@pytest.mark.parametrize("flags", [("holiday.png", "--grid", "1"), ("holiday.gif", "--interpolate")])
def test_a_photograph_is_kept(flags, tmp_path, monkeypatch):
    name, *flags = flags
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(b"a photograph")
    with pytest.raises(UserError, match=f"{name} exists already: name another file, or replace it with --force"):
        main([name, "--weights", "none.pt", *flags])  # early: before the weights are missed
    assert Path(name).read_bytes() == b"a photograph"


def test_grid_shows_the_same_images(generated, generate, tmp_path):
    out, _ = generated
    generate(tmp_path / "grid.png", None, "--grid", "10")
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    generate(tmp_path / "grid.png", None, "--grid", "10", "--force")
    with Image.open(tmp_path / "grid.png") as picture, Image.open(out / "0009.png") as last:
        assert picture.size == (8 * 66 + 2, 2 * 66 + 2)
        assert picture.crop((2 + 66, 2 + 66, 66 + 66, 66 + 66)).tobytes() == last.tobytes()


def test_walk_starts_at_the_first_faces_and_closes(generate, generated, tmp_path):
    generate(tmp_path / "walk.gif", None, "--interpolate")
    generate(tmp_path / "grid.png", None, "--grid", "8")
    with Image.open(tmp_path / "walk.gif") as walk, Image.open(tmp_path / "grid.png") as start:
        assert walk.n_frames == STOPS * FRAMES_BETWEEN and walk.size == start.size
        start = np.asarray(start, int)
        gaps = []
        for frame in (0, FRAMES_BETWEEN * STOPS // 2, walk.n_frames - 1):
            walk.seek(frame)
            gaps.append(np.abs(np.asarray(walk.convert("RGB"), int) - start).mean())
        assert gaps[0] < gaps[1] and gaps[2] < gaps[1]


def test_slerp_keeps_the_length_and_meets_both_ends():
    a, b = torch.nn.functional.normalize(torch.randn(2, 5, 100, dtype=torch.float64), dim=2)
    torch.testing.assert_close(slerp(a, b, 0), a)
    torch.testing.assert_close(slerp(a, b, 1), b)
    half = slerp(a, b, 0.5)
    torch.testing.assert_close(half.norm(dim=1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close((half * a).sum(1), (half * b).sum(1))


def test_released_file_works_too(trained, tmp_path):
    _, run = trained
    small = tmp_path / "small.pt"
    write_weights(load(run / "last.pt"), small)
    assert main([str(tmp_path / "out"), "--weights", str(small), "--n", "2"]) == 0


def test_mistakes_are_one_line(trained, tmp_path):
    model, run = trained
    other = "dcgan" if model == "sagan" else "sagan"
    with pytest.raises(UserError, match=f"got a checkpoint of gan/{model}, expected gan/{other}"):
        main([str(tmp_path / "out"), "--model", other, "--weights", str(run / "last.pt")])
    with pytest.raises(UserError, match=r"ends in \.png"):
        main([str(tmp_path / "out"), "--grid", "32"])
    assert list(tmp_path.iterdir()) == []
