"""Scores that need other packages: with stand-ins for the packages, and with dlib itself if it is installed."""

import hashlib
import importlib.util
import sys

import numpy as np
import pytest
import torch

from gan.extras import inception_features, one_face_share, optional_scores


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (12, 3, 64, 64), dtype=torch.uint8, generator=generator)


def test_only_exactly_one_face_counts(packages, images):
    images[:, 0, 0, 0] = torch.tensor([0, 1, 2, 1, 1, 3, 0, 0, 0, 0, 0, 0])
    assert one_face_share(images) == pytest.approx(3 / 12)
    image, upsampling = packages[1]
    assert upsampling == 1 and image.dtype == np.uint8
    np.testing.assert_array_equal(image, images[1].permute(1, 2, 0))


def test_inception_features_are_of_every_image_in_order(packages, images):
    images = images.repeat(5, 1, 1, 1)  # more than one batch
    np.testing.assert_allclose(inception_features(images), images.float().div(255).mean((2, 3)), rtol=1e-5)


def test_missing_packages_and_weights_are_named_and_weights_by_their_hash(packages, monkeypatch, tmp_path):
    weights = tmp_path / "checkpoints" / "weights.pth"
    needed = f"fid is left out: it needs https://example.org/weights.pth as {weights}"
    assert optional_scores() == ({"one_face"}, [needed])
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    found, (note,) = optional_scores()
    assert found == {"one_face", "fid"} and "299 px" in note
    assert note.endswith(hashlib.sha256(b"weights").hexdigest()[:16])
    for name in ("dlib", "pytorch_fid"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    found, notes = optional_scores()
    assert found == set() and ["pip install" in line for line in notes] == [True, True]


@pytest.mark.skipif(importlib.util.find_spec("dlib") is None, reason="dlib is not installed")
def test_dlib_itself_finds_no_face_in_noise(images):
    assert one_face_share(images[:2]) == 0
