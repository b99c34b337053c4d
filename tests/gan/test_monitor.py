"""Monitoring: what is measured and on which faces, warnings, and no influence on training."""

import copy

import pytest
import torch

from common.errors import UserError
from common.metrics_log import read_metrics
from gan.models import MODELS, build_discriminator
from gan.monitor import diagnose, health, watched_faces
from tests.trainers import content, same


def test_logging_more_often_changes_nothing(trained, run_gan, tmp_path):
    model, run = trained  # every step is logged
    once = run_gan(tmp_path / "once", model, 4, "--log-every", "4")
    for key in ("parts", "weights"):
        assert same(content(run)[key], content(once)[key])
    assert read_metrics(run)[-1]["d_auc"] == read_metrics(once)[-1]["d_auc"]
    assert (run / "samples/0000004.png").read_bytes() == (once / "samples/0000004.png").read_bytes()


@pytest.mark.parametrize("model", MODELS)
def test_health_is_of_d_as_it_trains(model, smooth):
    torch.manual_seed(0)
    discriminator = build_discriminator({"model": model, "width": 8})
    before = copy.deepcopy(discriminator.state_dict())
    train, val, generated = smooth[:5], smooth[5:10], smooth[10:14].clone()
    generated[1] = generated[0]
    found = health(discriminator, generated, train, val, torch.float32)
    assert same(discriminator.state_dict(), before)
    logits = discriminator(smooth[:10].float() / 127.5 - 1).tolist()
    above = [a > b for a in logits[:5] for b in logits[5:]]
    assert found["d_auc"].item() == pytest.approx(sum(above) / 25)
    assert found["near_duplicates"].item() == 0.5


def test_watched_faces_are_spread_over_the_sets():
    train, val = watched_faces(torch.arange(101), torch.arange(5))
    assert (train.tolist(), val.tolist()) == ([0, 25, 50, 75, 100], [0, 1, 2, 3, 4])
    assert [len(faces) for faces in watched_faces(torch.arange(100), torch.arange(100))] == [64, 64]
    with pytest.raises(UserError, match="got 9 training and 1 validation faces, expected at least 2 of each"):
        watched_faces(torch.arange(9), torch.arange(1))


HEALTHY = {"step": 2000, "d_loss": 0.9, "d_real": 0.7, "d_fake": 0.3, "d_auc": 0.6, "near_duplicates": 0.1}


@pytest.mark.parametrize("change, said", [
    ({}, None),
    ({"near_duplicates": 0.9}, "G has collapsed"),
    ({"near_duplicates": 1.0, "step": 50}, None),  # every G starts like this
    ({"d_loss": 0.01}, "D recognises nearly every generated face"),
    ({"d_fake": 0.69}, "D cannot tell"),
    ({"d_auc": 0.8}, "D has memorised"),
])
def test_diagnosis(change, said):
    found = diagnose(HEALTHY | change)
    assert said in found if said else found is None
