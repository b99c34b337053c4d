"""Scores go into the manifest only with a network of their kind; weights must fit half precision."""

import json

import pytest
import torch

from common import checkpoint, release
from common.errors import UserError

SCORES = {"gan": {"kind": "gan", "swd": [1.0]}, "diffusion": {"kind": "diffusion", "frechet": 1.0},
          "dann": {"mode": "dann", "oracle": None}}


def finished_run(run, kind, weights):
    checkpoint.save(run / "last.pt", {"kind": kind, "model_args": {}, "step": 1, "weights": weights})
    for name, content in (("args.json", {"seed": 0, "steps": 1}), ("versions.json", {}),
                          ("done", {"steps": 1, "seconds": 1.0})):
        (run / name).write_text(json.dumps(content))
    return run


@pytest.mark.parametrize("kind", ["gan/dcgan", "gan/sagan", "diffusion", "dann"])
def test_scores_fit_the_network(tmp_path, kind):
    run, out, scores = finished_run(tmp_path / "run", kind, {}), tmp_path / "net.pt", tmp_path / "scores.json"
    own = kind.split("/")[0]
    for other in SCORES.keys() - {own}:
        scores.write_text(json.dumps(SCORES[other]))
        with pytest.raises(UserError, match=rf"scores\.json does not hold scores of {own}"):
            release.main([str(run), str(out), "--scores", str(scores)])
        assert not out.exists()
    scores.write_text(json.dumps(SCORES[own]))
    release.main([str(run), str(out), "--scores", str(scores)])
    assert json.loads((tmp_path / "manifest.json").read_text())["net.pt"]["scores"] == SCORES[own]


def test_a_number_beyond_half_precision_is_refused(tmp_path):
    run, out = finished_run(tmp_path / "run", "dann", {"a": torch.ones(2), "var": torch.tensor([1.0, 7e4])}), "net.pt"
    with pytest.raises(UserError, match="var has numbers that half precision cannot hold"):
        release.main([str(run), str(tmp_path / out)])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
