"""Scores that need other packages: with stand-ins for the packages, and with dlib itself if it is installed."""

import importlib.util
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from common.scores import frechet_distance
from gan.extras import PADDING, extra_scores, fid, one_face_share


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (12, 3, 64, 64), dtype=torch.uint8, generator=generator)


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """Stand-ins: a detector that finds as many faces as the first pixel's value, a network of mean colours."""
    seen = []

    def detector(image, upsampling):
        seen.append((image, upsampling))
        return [None] * int(image[0, 0, 0])

    class MeanColours(nn.Module):
        def forward(self, x):
            assert x.min() >= 0 and x.max() <= 1
            return [x.mean((2, 3), keepdim=True)]

    dlib, package, inception = ModuleType("dlib"), ModuleType("pytorch_fid"), ModuleType("pytorch_fid.inception")
    dlib.get_frontal_face_detector = lambda: detector
    inception.InceptionV3, inception.FID_WEIGHTS_URL = MeanColours, "https://example.org/weights.pth"
    for module in (dlib, package, inception):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return seen


def test_only_exactly_one_face_counts(packages, images):
    images[:, 0, 0, 0] = torch.tensor([0, 1, 2, 1, 1, 3, 0, 0, 0, 0, 0, 0])
    assert one_face_share(images) == pytest.approx(3 / 12)
    image, upsampling = packages[1]
    assert upsampling == 1 and image.dtype == np.uint8
    assert image.shape == (64 + 2 * PADDING, 64 + 2 * PADDING, 3)
    np.testing.assert_array_equal(image[PADDING:-PADDING, PADDING:-PADDING], images[1].permute(1, 2, 0))
    np.testing.assert_array_equal(image[:PADDING, PADDING], np.tile(images[1, :, 0, 0], (PADDING, 1)))  # edges repeat


def test_fid_is_the_frechet_distance_of_features(packages, images):
    first, second, third = images.split(4)
    colours = [part.float().div(255).mean((2, 3)).numpy() for part in (first, second, third)]
    expected = [frechet_distance(colours[0], colours[2]), frechet_distance(colours[1], colours[2])]
    assert fid(first, second, third) == pytest.approx(expected, abs=1e-9)


def test_scores_stand_beside_those_of_real_images(packages, images, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "weights.pth").touch()
    images[:, 0, 0, 0] = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0])
    scores, missing = extra_scores(*images.split(4))
    assert not missing
    assert (scores["one_face"], scores["one_face_real"]) == (0.75, 0.5)
    assert [scores["fid"], scores["fid_real"]] == fid(*images.split(4))


def test_missing_packages_are_named(packages, images, monkeypatch):
    scores, missing = extra_scores(*images.split(4))
    assert "fid" not in scores and len(missing) == 1
    assert "https://example.org/weights.pth" in missing[0] and "checkpoints" in missing[0]
    for name in ("dlib", "pytorch_fid", "pytorch_fid.inception"):
        monkeypatch.setitem(sys.modules, name, None)  # an import fails
    scores, missing = extra_scores(*images.split(4))
    assert scores == {} and ["pip install" in line for line in missing] == [True, True]


@pytest.mark.skipif(importlib.util.find_spec("dlib") is None, reason="dlib is not installed")
def test_dlib_itself_finds_no_face_in_noise(images):
    assert one_face_share(images[:2]) == 0
