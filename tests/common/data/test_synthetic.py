"""The embedded sets: shapes, determinism, disjoint splits, and domains that differ."""

import hashlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from common.data import domains, ingredients, synthetic_faces
from common.data.domains import DOMAINS

PAINTED = [name for name, domain in DOMAINS.items() if domain.paint]
ROOT = Path(__file__).parents[3]
USPS_TRAIN_SHARES = (0.164, 0.138, 0.100, 0.090, 0.089, 0.076, 0.091, 0.088, 0.074, 0.088)

digits = cache(domains.embedded_digits)


@cache
def faces(split: str) -> np.ndarray:
    """Return the first 200 faces of a split: all of train would take longer than all other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(synthetic_faces.FACE_COUNTS, split, 200)
        return synthetic_faces.faces(split)


def sha256(images: np.ndarray) -> str:
    return hashlib.sha256(images.tobytes()).hexdigest()


def run_python(code: str, **environment: str) -> str:
    command, environment = [sys.executable, "-c", code], os.environ | environment
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("domain", PAINTED)
def test_digits_have_the_promised_shape(domain):
    for split, count in (("train", 4000), ("val", 1000), ("test", 1000)):
        images, labels = digits(domain, split)
        assert images.shape == (count, 28, 28, 3) and images.dtype == np.uint8
        assert labels.shape == (count,) and labels.dtype == np.int64
        assert set(labels.tolist()) == set(range(10))
        assert images.std((1, 2, 3)).min() > 1, "a blank image"


def test_faces_have_the_promised_shape():
    assert synthetic_faces.FACE_COUNTS == {"train": 2000, "val": 400}
    for split in ("train", "val"):
        images = faces(split)
        assert images.shape == (200, 64, 64, 3) and images.dtype == np.uint8
        # Neither noise nor a flat image: neighbouring pixels are similar, and the whole image varies.
        assert np.abs(np.diff(images.astype(int), axis=2)).mean() < 0.2 * images.std((1, 2)).mean()


@pytest.mark.parametrize("domain", PAINTED)
def test_digits_are_the_same_bytes_every_time(domain):
    (images, labels), (again, labels_again) = digits(domain, "val"), domains.embedded_digits(domain, "val")
    assert sha256(images) == sha256(again)
    assert np.array_equal(labels, labels_again)


@pytest.mark.slow
def test_a_new_process_generates_the_same_bytes():
    code = """
import hashlib
from common.data import domains, synthetic_faces

synthetic_faces.FACE_COUNTS["val"] = 200
for array in (*domains.embedded_digits("mnistm", "val"), synthetic_faces.faces("val")):
    print(hashlib.sha256(array.tobytes()).hexdigest())
"""
    generated = run_python(code, PYTHONHASHSEED="7", OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2")
    assert generated.split() == [sha256(array) for array in (*digits("mnistm", "val"), faces("val"))]


# The first labels of each split "val", and the mean of each colour channel. Any other random draw changes both; the
# tolerance is for processors that round differently.
GOLDEN = {
    "mnist": ("28579804090880428911", (34.221, 34.221, 34.221)),
    "mnistm": ("28823578634516400216", (117.081, 117.914, 117.105)),
    "usps": ("11650645217360883614", (98.28, 98.28, 98.28)),
    "svhn": ("56471823059658175440", (116.322, 115.699, 116.657)),
}
GOLDEN_FACES = (125.143, 111.254, 100.353)


@pytest.mark.parametrize("domain", PAINTED)
def test_digits_are_those_of_every_earlier_version(domain):
    first_labels, means = GOLDEN[domain]
    images, labels = digits(domain, "val")
    assert "".join(map(str, labels[:20])) == first_labels
    assert images.mean((0, 1, 2)) == pytest.approx(means, abs=0.005)


def test_faces_are_those_of_every_earlier_version():
    assert faces("val").mean((0, 1, 2)) == pytest.approx(GOLDEN_FACES, abs=0.005)


@pytest.mark.parametrize("domain", PAINTED)
def test_no_digit_appears_twice(domain):
    images = [image.tobytes() for split in ("train", "val", "test") for image in digits(domain, split)[0]]
    assert len(set(images)) == len(images)


def test_no_face_appears_twice():
    images = [image.tobytes() for split in ("train", "val") for image in faces(split)]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize("ranges", [ingredients.WRITER_ROWS, ingredients.PHOTO_COLUMNS])
def test_splits_share_no_ingredient(ranges):
    train, val, test = (ranges[split] for split in ("train", "val", "test"))
    assert train[0] < train[1] <= val[0] < val[1] <= test[0] < test[1]


def test_the_splits_use_their_own_handwriting_and_photos():
    handwriting = [ingredients.handwriting(split).fields for split in ingredients.SPLITS]
    photos = [ingredients.photos(split, 1)[0] for split in ingredients.SPLITS]
    assert [len(fields) for fields in handwriting] == [1287, 258, 252]
    assert [photo.shape for photo in photos] == [(3, 427, 384), (3, 427, 128), (3, 427, 128)]
    for ingredient in (handwriting, photos):
        assert len({sha256(array) for array in ingredient}) == 3


def test_usps_has_the_class_shares_of_the_original():
    _, labels = digits("usps", "train")
    shares = np.bincount(labels, minlength=10) / len(labels)
    assert shares == pytest.approx(USPS_TRAIN_SHARES, abs=0.02)
    assert set(np.argsort(shares)[-2:]) == {0, 1}


@pytest.mark.parametrize("domain", PAINTED)
def test_only_the_grey_domains_are_grey(domain):
    images, _ = digits(domain, "val")
    grey = domain in ("mnist", "usps")
    assert np.array_equal(images[..., 0], images[..., 1]) == grey
    assert np.array_equal(images[..., 0], images[..., 2]) == grey


def test_usps_fills_the_frame_and_mnist_does_not():
    edges = {}
    for domain in ("mnist", "usps"):
        images, _ = digits(domain, "val")
        edges[domain] = images[:, :3].mean() + images[:, -3:].mean()
    assert edges["mnist"] < 5 < 30 < edges["usps"]


def features(domain: str, split: str) -> np.ndarray:
    """Return the images in grey at 14x14: (N, 196) float in [0, 1]."""
    images, _ = digits(domain, split)
    return images.mean(3).reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 196) / 255


def test_a_classifier_learns_a_domain_and_loses_on_the_others():
    _, labels = digits("mnist", "train")
    classifier = LogisticRegression(C=0.1, max_iter=60, tol=1e-2).fit(features("mnist", "train"), labels)
    accuracy = {
        domain: classifier.score(features(domain, "val"), digits(domain, "val")[1])
        for domain in PAINTED
    }
    assert accuracy["mnist"] > 0.75, accuracy
    assert accuracy["svhn"] < 0.45 and accuracy["mnistm"] < 0.6 and accuracy["usps"] < 0.65, accuracy
