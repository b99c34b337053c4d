"""Which labels a mode uses: target labels train mode target alone."""

import csv
import shutil

import pytest

from tests.trainers import same


def relabelled(data, domain, tmp_path):
    """Copy the data folder, with the training labels of one domain shifted by one."""
    copied = tmp_path / "relabelled" / "hw2_data"
    shutil.copytree(data, copied)
    path = copied / "digits" / domain / "train.csv"
    rows = list(csv.reader(path.read_text().splitlines()))
    shifted = "".join(f"{name},{(int(label) + 1) % 10}\n" for name, label in rows[1:])
    path.write_text("image_name,label\n" + shifted)
    return copied


@pytest.mark.parametrize("flags", ["--mode source", "--recipe plain", "--recipe plus"])
def test_target_labels_are_never_used(flags, data, train, weights, tmp_path):
    right = weights(train("right", *flags.split()))
    shifted = relabelled(data, "usps", tmp_path)
    assert same(weights(train("shifted", *flags.split(), "--data", str(shifted))), right)


def test_labels_that_are_used_matter(data, train, weights, tmp_path):
    shifted = relabelled(data, "usps", tmp_path)
    assert not same(weights(train("right", "--mode", "target")),
                    weights(train("shifted", "--mode", "target", "--data", str(shifted))))
