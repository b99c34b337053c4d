"""Readers of the published digit files; tests/common/test_prepare.py has the way from there to loaded images."""

import gzip
import struct

import numpy as np
import pytest

from common.data.raw_digits import blend, read_mnist, read_mnistm, read_photos, read_svhn, read_usps
from common.data.raw_files import Missing, split_rows
from common.errors import UserError
from tests.common.data.raw_sets import (
    IMAGES,
    LABELS,
    TEST,
    TRAIN,
    write_mnist,
    write_photos,
    write_svhn,
    write_usps,
)


@pytest.mark.parametrize(("pack", "suffix"), [(gzip.compress, ".gz"), (bytes, "")], ids=["packed", "unpacked"])
def test_mnist(tmp_path, pack, suffix):
    write_mnist(tmp_path, pack, suffix)
    for digits, part in zip(read_mnist(tmp_path), ("train", "t10k"), strict=True):
        assert digits.images.dtype == np.uint8
        assert (digits.images == IMAGES[part]).all() and (digits.labels == LABELS[part]).all()


def test_usps_label_1_is_the_digit_0(tmp_path):
    write_usps(tmp_path)
    for digits, count in zip(read_usps(tmp_path), (TRAIN, TEST), strict=True):
        assert digits.images.shape == (count, 16, 16) and digits.images.dtype == np.uint8
        assert digits.labels.tolist() == [i % 10 for i in range(count)]


def test_svhn_label_10_is_the_digit_0(tmp_path):
    write_svhn(tmp_path)
    for digits, count in zip(read_svhn(tmp_path), (TRAIN, TEST), strict=True):
        assert digits.images.shape == (count, 32, 32, 3) and digits.images.dtype == np.uint8
        assert digits.labels.tolist() == [(i + 1) % 10 for i in range(count)]
        assert (digits.images == np.arange(count, dtype=np.uint8)[:, None, None, None]).all()


def test_mnistm_keeps_the_labels_and_is_always_the_same(tmp_path):
    write_mnist(tmp_path)
    write_photos(tmp_path)
    for i, (digits, part, photos) in enumerate(zip(read_mnistm(tmp_path), IMAGES, read_photos(tmp_path), strict=True)):
        assert digits.images.shape == (*IMAGES[part].shape, 3) and (digits.labels == LABELS[part]).all()
        assert (digits.images == blend(IMAGES[part], photos, np.random.default_rng([0, i]))).all()


def test_blend_reaches_every_position_inside_the_photograph():
    rng = np.random.default_rng(0)
    photo = np.stack(np.broadcast_arrays(np.arange(30)[:, None], np.arange(29), 7), -1).astype(np.uint8)
    blended = blend(np.zeros((200, 28, 28), np.uint8), [photo], rng)
    assert {tuple(corner) for corner in blended[:, 0, 0]} == {(y, x, 7) for y in range(3) for x in range(2)}


def test_images_without_their_labels_are_refused(tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">2I", 2049, 3) + bytes(3)))
    with pytest.raises(UserError, match="3 labels for 53 images"):
        read_mnist(tmp_path)


@pytest.mark.parametrize("label", [10, 255])
def test_a_label_that_is_not_a_digit_is_refused(tmp_path, label):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">2I", 2049, TEST) + bytes([*range(TEST - 1), label])))
    with pytest.raises(UserError, match=r"11 labels for 11 images, or one not in 0\.\.9"):
        read_mnist(tmp_path)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "starts with , expected 00000803"),
    (struct.pack(">2I", 2049, 53) + bytes(53), "starts with 00000801, expected 00000803"),  # labels, not images
    (struct.pack(">2I", 2051, 53), "buffer"),
    (struct.pack(">4I", 2051, 53, 28, 28) + bytes(100), "cannot reshape"),
    (struct.pack(">4I", 2051, 2**32 - 1, 2**32 - 1, 2**32 - 1), "train-images"),
])
def test_a_damaged_idx_file_is_named(tmp_path, content, message):
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match="cannot read .*train-images-idx3-ubyte.gz.*: damaged") as caught:
        read_mnist(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("read", [read_mnist, read_mnistm, read_usps, read_svhn])
def test_missing_files_are_named(tmp_path, read):
    with pytest.raises(Missing, match=r"put .* into .* \(or --download\)"):
        read(tmp_path)


@pytest.mark.parametrize(("count", "train"), [(60_000, 48_000), (7_291, 5_833), (2, 1)])
def test_split_sizes(count, train):
    fit, val = split_rows(count)
    assert len(fit) == train and sorted([*fit, *val]) == list(range(count))
    assert (np.diff(fit) > 0).all()


def test_the_split_is_random_and_always_the_same():
    fit, val = split_rows(10)
    assert (fit.tolist(), val.tolist()) == ([0, 2, 3, 4, 5, 6, 7, 9], [1, 8])
