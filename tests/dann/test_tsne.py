"""The feature plots: the same picture every time, clusters that stay apart, and mistakes in one line."""

import numpy as np
import pytest
import torch
from PIL import Image

from common import checkpoint
from common.errors import UserError
from dann import tsne
from dann.networks import DANN, KIND


@pytest.fixture
def networks(tmp_path):
    paths = []
    for i, mode in enumerate(("source", "dann")):
        torch.manual_seed(i)
        paths.append(tmp_path / f"{mode}.pt")
        checkpoint.save(paths[-1], {"kind": KIND, "weights": DANN().state_dict(),
                                    "model_args": {"source": "mnistm", "target": "usps", "mode": mode}})
    return paths


def test_same_picture_again(data, networks, tmp_path, capsys):
    for name in ("a.png", "b.png"):
        assert tsne.main([*map(str, networks), "--data", str(data), "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1000, 1000)
    assert "20 mnistm and 20 usps images" in capsys.readouterr().out


def test_clusters_stay_apart():
    rng = np.random.default_rng(0)
    cluster = np.arange(3).repeat(40)
    plane = tsne.embed((20 * np.eye(60)[cluster] + rng.normal(size=(120, 60))).astype(np.float32))
    assert plane.shape == (120, 2)
    nearest = np.linalg.norm(plane[:, None] - plane[None], axis=2)
    np.fill_diagonal(nearest, np.inf)
    assert (cluster[nearest.argmin(1)] == cluster).all()


def test_mistakes(data, networks, tmp_path):
    other = tmp_path / "other.pt"
    checkpoint.save(other, {"kind": KIND, "weights": DANN().state_dict(),
                            "model_args": {"source": "mnist", "target": "usps", "mode": "dann"}})
    command = ["--data", str(data), "--out", str(tmp_path / "out.png")]
    with pytest.raises(UserError, match="same domains"):
        tsne.main([str(networks[0]), str(other), *command])
    for before, after, mode in ((0, 0, "source"), (1, 1, "dann"), (1, 0, "dann")):
        with pytest.raises(UserError, match=rf"{mode}\.pt was trained with --mode {mode}, expected"):
            tsne.main([str(networks[before]), str(networks[after]), *command])
    with pytest.raises(UserError, match=r"ends in \.png"):
        tsne.main([*map(str, networks), "--data", str(data), "--out", str(tmp_path / "out.pdf")])
    assert not list(tmp_path.glob("out*"))
