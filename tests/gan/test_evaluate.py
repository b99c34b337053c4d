"""Scores: cases with a known result, the direction of each score, the command, and mistakes."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.folder import load_folder
from common.errors import UserError
from common.scores import frechet_distance
from gan.evaluate import (
    PRINTED,
    compare,
    equal_sets,
    laplacian_pyramid,
    main,
    measure,
    patches,
    sliced_wasserstein,
    swd,
)


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (20, 3, 64, 64), dtype=torch.uint8, generator=generator)


def test_pyramid_adds_up_to_the_image(smooth):
    fine, middle, coarse = laplacian_pyramid(smooth.float())
    assert [band.shape[-1] for band in (fine, middle, coarse)] == [64, 32, 16]
    constant = laplacian_pyramid(torch.full((1, 3, 64, 64), 100.0))
    assert constant[0].abs().max() < 1e-3 and constant[1].abs().max() < 1e-3
    torch.testing.assert_close(constant[2], torch.full((1, 3, 16, 16), 100.0))
    assert fine.square().mean() < coarse.square().mean()


def test_patches_are_windows_normalised_by_channel():
    ramp = torch.arange(16.0).expand(2, 3, 16, 16)  # rises along the width
    cut = patches(ramp, torch.Generator().manual_seed(0)).view(-1, 7, 7, 3)
    assert cut.shape[0] == 2 * 128
    assert cut.mean(dim=(0, 1, 2)).abs().max() < 1e-5
    torch.testing.assert_close(cut.std(dim=(0, 1, 2)), torch.ones(3))
    assert torch.equal(cut[:, 0], cut[:, 6])  # rows are alike
    steps = cut[:, :, 1:] - cut[:, :, :-1]  # columns rise evenly
    torch.testing.assert_close(steps, steps[0, 0, 0, 0].expand_as(steps))


def test_distance_of_a_shift_is_its_mean_projection():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(500, 147, generator=generator)
    shift = torch.randn(147, generator=generator)
    directions = torch.nn.functional.normalize(
        torch.randn(512, 147, generator=torch.Generator().manual_seed(1)), dim=1)
    got = sliced_wasserstein(a, (a + shift)[torch.randperm(500)], torch.Generator().manual_seed(1))
    assert got == pytest.approx((directions @ shift).abs().mean().item(), rel=1e-4)


def test_same_set_is_close_and_noise_is_far(smooth, noise):
    first, second = smooth.split(20)
    same, half, far = (swd(first, other, seed=0) for other in (first, second, noise))
    assert max(same) < 50  # not 0: the patches differ
    assert all(a < c and b < c for a, b, c in zip(same, half, far, strict=True))
    assert far[0] > 4 * max(same[0], half[0])  # noise differs most in the finest band


def test_scores_take_equal_counts_and_disjoint_real_sets(smooth):
    assert [len(images) for images in equal_sets(smooth[:7], smooth, 0)] == [7, 7, 7]
    fake, first, second = equal_sets(smooth, smooth[:21], 0)
    assert [len(fake), len(first), len(second)] == [10, 10, 10]
    assert len(torch.cat([first, second]).flatten(1).unique(dim=0)) == 20
    with pytest.raises(UserError, match="at least 2"):
        equal_sets(smooth[:1], smooth, 0)


def test_each_score_notices_what_it_is_for(smooth, noise):
    first, second = smooth.split(20)
    good, bad, same = measure((first, torch.cat([first[:10], noise[:10]]), first[:2].repeat(10, 1, 1, 1)), second, 0,
                              set())
    assert min(good["precision"], good["recall"], good["coverage"]) > 0.7 and good["density"] > 0.7
    assert bad["precision"] < 0.6 and bad["density"] < 0.6  # half the images are bad
    assert same["recall"] < 0.2 and same["coverage"] < 0.6  # two images, ten times each
    assert abs(good["kernel"]) < 0.1 * min(bad["kernel"], same["kernel"])
    assert good["swd_mean"] == pytest.approx(np.mean(good["swd"])) and bad["swd_mean"] > 1.5 * good["swd_mean"]
    assert [scores["near_duplicates"] for scores in (good, bad, same)] == [0, 0, 1]


def test_real_images_are_scored_like_the_generated_ones(smooth, noise):
    _, first, second = equal_sets(noise, smooth, 0)
    scores = compare(noise, smooth, 0, set())
    assert scores.pop("images") == 20
    assert {name[:-5]: value for name, value in scores.items() if name.endswith("_real")} == measure(
        [first], second, 0, set())[0]
    assert scores["swd_mean"] > 2 * scores["swd_mean_real"] and scores["precision"] < scores["precision_real"]


def test_optional_scores_stand_beside_those_of_real_images(packages, smooth):
    first, second = smooth.clone().split(20)
    first[:, 0, 0, 0], second[:, 0, 0, 0] = torch.arange(20) % 4, 1  # the stand-in finds so many faces
    (plain,), (scores,) = (measure([first], second, 0, optional) for optional in (set(), {"one_face", "fid"}))
    colours = [images.float().div(255).mean((2, 3)).numpy() for images in (first, second)]
    assert scores == plain | {"one_face": 5 / 20, "fid": pytest.approx(frechet_distance(*colours))}


def read(*command) -> dict:
    """Run the command with --out and return its scores; every number is printed."""
    *argv, out = map(str, command)
    assert main([*argv, "--out", out]) == 0
    with open(out) as file:
        return json.load(file)


def test_command(faces, tmp_path, capsys):
    argv = [faces / "face" / "train", "--reference", faces / "face" / "val"]
    scores = read(*argv, tmp_path / "new" / "gan.json")
    shown = capsys.readouterr().out
    assert read(*argv, tmp_path / "again.json") == scores
    assert scores["kind"] == "gan" and scores["images"] == 4 and "std" not in scores
    assert "note: scores of 4 images say little" in shown
    for size, value, real in zip((64, 32, 16), scores["swd"], scores["swd_real"], strict=True):
        assert re.search(rf"^swd +{value:.2f} +{real:.2f}  x1000, {size} px$", shown, re.M)
    for name in PRINTED.keys() & scores.keys() - {"swd"}:
        value, real = (format(scores[key], PRINTED[name][0]) for key in (name, name + "_real"))
        assert re.search(rf"^{name} +{value} +{real}( |$)", shown, re.M)
    assert re.search(r"suspicious +100\.0% +1\.0%", shown)  # the folder is the training set


def test_several_folders_give_mean_and_spread(faces, tmp_path, capsys):
    train, val = (load_folder(faces / "face" / split, 64).images for split in ("train", "val"))
    one, other = compare(train[:8], val, 0, set()), compare(val, val, 1, set())
    both = read(faces / "face" / "train", faces / "face" / "val", "--reference", faces / "face" / "val",
                tmp_path / "both.json")
    assert (both["folders"], both["images"]) == (2, 4)
    for name in ("kernel", "swd_mean_real", "recall"):
        assert both[name] == pytest.approx((one[name] + other[name]) / 2)
        assert both["std"][name] == pytest.approx(abs(one[name] - other[name]) / 2 ** 0.5)
    assert both["swd"] == pytest.approx(np.mean([one["swd"], other["swd"]], 0).tolist())
    assert both["suspicious"] < 1 and both["std"]["suspicious"] == pytest.approx((1 - both["suspicious"]) * 2 ** 0.5)
    assert re.search(r"kernel +-?[\d.]+ ± [\d.]+ +-?[\d.]+ ± [\d.]+  x1000\n", capsys.readouterr().out)


def test_neighbours_are_shown_and_mirrored_copies_found(faces, tmp_path):
    folder = tmp_path / "mirrored"
    folder.mkdir()
    for path in (faces / "face" / "train").iterdir():
        with Image.open(path) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / path.name)
    main([str(folder), "--reference", str(faces / "face" / "val"), "--neighbours", str(tmp_path / "near.png"),
          "--out", str(tmp_path / "scores.json")])
    assert json.loads((tmp_path / "scores.json").read_text())["suspicious"] == 1
    with Image.open(tmp_path / "near.png") as picture:
        assert picture.size == (8 * 66 + 2, 10 * 66 + 2)
        pixels = np.asarray(picture)
    assert (pixels[2:66, 2:66] == pixels[2:66, 68:132]).all()


def test_without_hw2_data_the_embedded_faces_are_not_taken_unasked(faces, monkeypatch):
    def refuse():
        raise UserError("no hw2_data: type `--data builtin`")

    monkeypatch.setattr("gan.evaluate.default_data", refuse)
    with pytest.raises(UserError, match="type --reference builtin"):
        main([str(faces / "face" / "train")])
