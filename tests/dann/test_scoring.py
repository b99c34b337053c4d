"""Scores: accuracies and validators, the network that is kept, the oracle, result.json, missing splits."""

import argparse
import json
import os
import shutil
import signal

import pytest
import torch
from torch.nn.functional import one_hot

from common.errors import UserError
from common.run import Run
from dann import scoring
from dann.networks import DANN
from dann.predict import predict
from dann.recipes import RECIPES
from dann.scoring import Scores, best, scored_sets, write_result
from dann.validators import VALIDATORS, Outputs, compute_validators
from tests.trainers import same

CPU = torch.device("cpu")


def previews_of(run_dir):
    return json.loads((run_dir / "previews.json").read_text())["previews"]


@pytest.fixture
def sets(data):
    """Return the function that loads what is scored."""
    def load(root=data, mode="dann", select="last"):
        args = argparse.Namespace(data=str(root), source="mnistm", target="usps", mode=mode, select=select)
        unlabelled = None if mode == "target" else scoring.load_digits(root, "usps", "train", labelled=False)
        return scored_sets(args, unlabelled)

    return load


@pytest.fixture
def without_source_val(data, tmp_path):
    """Return a data folder whose source has no val split."""
    copied = shutil.copytree(data, tmp_path / "without" / "hw2_data")
    (copied / "digits" / "mnistm" / "val.csv").unlink()
    return copied


@pytest.fixture
def judged(monkeypatch):
    """Return the function that replaces the validators: `snd` has these values, one per preview."""
    def replace(*values):
        left = iter(values)
        monkeypatch.setattr(scoring, "compute_validators", lambda outputs: {"snd": next(left)})

    return replace


@pytest.fixture
def stopped(train, monkeypatch):
    """Return the function that trains until a signal comes in a step."""
    def run(name, step, *flags):
        def record(self, metrics):
            if self.step == step:
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(Run, "record", record)
            with pytest.raises(SystemExit):
                train(name, *flags)

    return run


def test_a_score_is_the_share_of_right_digits(sets, monkeypatch):
    digits = torch.tensor([0, 1] + [9] * 18)  # 4 of 20 are right
    monkeypatch.setattr(scoring, "predict", lambda *args: (torch.zeros(20, 768), one_hot(digits, 10).float()))
    scores = Scores(DANN(), sets(mode="target"), "last")
    scores.add(5)
    assert list(scores.sets) == ["val", "test"] and len(scores.sets["val"].images) == 20
    row = scores.rows[0]
    assert row == {"step": 5, "val": row["test"], "test": row["test"]}
    assert round(row["val"], 6) == 0.2


def test_validators_see_held_out_source_digits_and_unlabelled_target_images(data, sets, monkeypatch):
    monkeypatch.setattr(scoring, "MOST", 15)
    model, seen = DANN(), []
    monkeypatch.setattr(scoring, "compute_validators",
                        lambda outputs: seen.append(outputs) or compute_validators(outputs))
    scores = Scores(model, sets(), "last")
    scores.add(1)
    assert list(scores.rows[0]) == ["step", "val", "test", *VALIDATORS]
    val, train = scoring.load_digits(data, "mnistm", "val"), scoring.load_digits(data, "usps", "train")
    for name, digits in (("source", val), ("target", train)):
        rows = torch.randperm(len(digits.images), generator=torch.Generator().manual_seed(0))[:15]
        features, logits = predict(model, digits.images[rows], CPU)
        torch.testing.assert_close(getattr(seen[0], f"{name}_features"), features)
        torch.testing.assert_close(getattr(seen[0], f"{name}_probabilities"), logits.softmax(1))
        assert scores.sets[name].names == [digits.names[row] for row in rows]
    assert torch.equal(seen[0].source_labels, scores.sets["source"].labels) and scores.sets["target"].labels is None
    assert isinstance(seen[0], Outputs)


@pytest.mark.parametrize("mode, validators", [("source", list(VALIDATORS)), ("dann", list(VALIDATORS)), ("target", [])])
def test_every_preview_has_a_row(mode, validators, train):
    out = train("run", "--mode", mode, "--sample-every", "4")
    previews = previews_of(out)
    assert [row["step"] for row in previews] == [4, 6]
    assert json.loads((out / "result.json").read_text())["selected_step"] == 6
    assert all(list(row) == ["step", "val", "test", *validators] for row in previews)


def test_a_source_without_val_leaves_two_validators_out(without_source_val, train, caplog):
    out = train("run", "--data", str(without_source_val))
    row = previews_of(out)[0]
    assert list(row) == ["step", "val", "test", "entropy", "information", "bnm", "snd", "class-ami"]
    assert "no validators source and dev: mnistm has no val images with labels" in caplog.text


@pytest.mark.parametrize("flags, expected", [
    ("--select source", "--select source needs labelled val images, which mnistm has not"),
    ("--select dev", "--select dev needs"),
    ("--select snd --mode source", "--select snd chooses a step of --mode dann, got --mode source: type --select last"),
    ("--select snd --mode target", "got --mode target"), ("--select oracle", "--select")])
def test_a_choice_that_cannot_be_made_is_one_line(flags, expected, without_source_val, train, tmp_path):
    with pytest.raises(UserError, match=expected) as mistake:
        train("run", "--data", str(without_source_val), *flags.split())
    assert "\n" not in str(mistake.value) and not (tmp_path / "run").exists()
    if "mnistm" in expected:
        train("run", "--data", str(without_source_val), "--select", "snd")


def test_the_best_row_is_the_last_of_equal_ones():
    rows = [{"step": 1, "snd": 0.2}, {"step": 2, "snd": 0.9}, {"step": 3, "snd": 0.9}, {"step": 4, "snd": 0.1}]
    assert best(rows, "snd")["step"] == 3 and best(rows, "step")["step"] == 4


def test_the_network_of_the_best_preview_is_kept(sets, judged):
    judged(0.2, 0.9, 0.5, 0.9, 0.1)
    model = DANN()
    scores = Scores(model, sets(), "snd")

    def train_to(step):
        with torch.no_grad():
            model.classifier[0].bias.fill_(step)
            model.feature[1].running_mean.fill_(step)

    def kept():
        assert scores.kept is not model and scores.kept.classifier[0].bias.std() == 0
        assert scores.kept.classifier[0].bias[0] == scores.kept.feature[1].running_mean[0]
        return scores.kept.classifier[0].bias[0].item()

    for step in (1, 2):  # a checkpoint before the first preview has the network of its step
        train_to(step)
        scores.before_save()
        assert kept() == step
    for step, expected in ((3, 3), (4, 4), (5, 4), (6, 6), (7, 6)):
        train_to(step)
        scores.add(step)
        scores.before_save()
        assert (kept(), scores.selected()["step"]) == (expected, expected)
    scores.finish(8)  # the kept network has been scored
    assert len(scores.rows) == 5

    resumed = Scores(DANN(), scores.sets, "snd")
    resumed.load_state_dict(scores.state_dict())
    assert resumed.rows == scores.rows and same(resumed.kept.state_dict(), scores.kept.state_dict())
    last = Scores(model, scores.sets, "last")
    assert last.kept is model and last.state_dict() == {"rows": []}


def test_all_processes_keep_what_the_first_one_chooses(sets, judged, monkeypatch):
    judged(0.9, 0.1)
    model = DANN()
    scores = Scores(model, sets(), "snd")
    scores.add(1)
    monkeypatch.setattr(scoring, "rank", lambda: 1)
    monkeypatch.setattr(scoring, "max_over_ranks", lambda own: own or 1)  # the first process found a better one
    torch.nn.init.constant_(model.classifier[0].bias, 7)
    scores.add(2)
    assert scores.kept.classifier[0].bias[0] == 7
    judged(0.95)
    monkeypatch.setattr(scoring, "max_over_ranks", lambda own: own)  # only this process found a better one
    torch.nn.init.constant_(model.classifier[0].bias, 8)
    scores.add(3)
    assert scores.kept.classifier[0].bias[0] == 7


def test_mode_source_trains_without_images_of_the_target(data, train, tmp_path, caplog):
    copied = tmp_path / "copied"
    shutil.copytree(data, copied)
    for path in (copied / "digits" / "usps").glob("train*"):
        path.unlink()
    named = {line.split(",")[0] for split in ("val", "test")
             for line in (copied / "digits" / "usps" / f"{split}.csv").read_text().splitlines()}
    for path in (copied / "digits" / "usps" / "data").iterdir():
        if path.name not in named:
            path.unlink()
    out = train("run", "--mode", "source", "--data", str(copied))
    assert list(previews_of(out)[0]) == ["step", "val", "test"] and "no validators: " in caplog.text


def test_a_run_that_diverges_is_scored_and_ends_in_one_line(train):
    with pytest.raises(UserError, match="class_loss became nan"):
        train("run", "--lr", "1e30", "--sample-every", "1", "--log-every", "6")


@pytest.mark.parametrize("recipe", ["plain", "plus"])
def test_a_selected_run_keeps_its_step_also_through_a_stop(recipe, train, stopped, weights, judged):
    flags = ["--recipe", recipe, "--sample-every", "2"]
    stopped("four", 3, *flags)
    judged(0.1, 0.7, 0.3)
    out = train("selected", *flags, "--select", "snd")
    assert same(weights(out), weights(out.with_name("four")))
    result = json.loads((out / "result.json").read_text())
    assert (result["selected_step"], result["steps"], result["changes"]) == (4, 6, ["step by snd"])
    row = previews_of(out)[1]
    assert row["step"] == 4 and (result["val"], result["test"]) == (row["val"], row["test"])
    for step in (0, 2, 4):  # before the first preview, and after the chosen one
        judged(*(0.1, 0.7, 0.3)[:(step + 1) // 2])
        stopped(f"broken{step}", step, *flags, "--select", "snd")
        judged(*(0.1, 0.7, 0.3)[(step + 1) // 2:])
        broken = train(f"broken{step}", *flags, "--select", "snd", "--resume", "auto")
        again = json.loads((broken / "result.json").read_text())
        assert again | {"seconds": 0} == result | {"seconds": 0} and previews_of(broken) == previews_of(out)
        assert same(weights(broken), weights(out))
        contents = [torch.load(folder / "last.pt", weights_only=True)["parts"] for folder in (broken, out)]
        assert same(*contents)


def test_a_run_that_is_stopped_before_its_first_preview_keeps_the_network_of_its_step(train, stopped, weights):
    stopped("last", 1)
    stopped("run", 1, "--select", "snd")
    out = train("run", "--select", "snd", "--steps", "2", "--resume", "auto")
    assert same(weights(out), weights(out.with_name("last")))
    result = json.loads((out / "result.json").read_text())
    assert (result["selected_step"], result["steps"], len(previews_of(out))) == (2, 2, 1)


def test_the_oracle_is_the_best_preview_and_the_result_the_last(train, monkeypatch):
    accuracies = iter([0.5, 0.1, 0.9, 0.3, 0.2, 0.6])  # val, test of three previews

    def add(self, step):
        self.rows.append({"step": step, "val": next(accuracies), "test": next(accuracies), "snd": 0.5})

    monkeypatch.setattr(Scores, "add", add)
    result = json.loads((train("run", "--sample-every", "2") / "result.json").read_text())
    assert (result["val"], result["test"], result["steps"]) == (0.2, 0.6, 6)
    assert result["oracle"] == {"step": 4, "val": 0.9, "test": 0.3}


def test_result_file(tmp_path):
    (tmp_path / "done").write_text('{"steps": 10, "seconds": 1.5}')
    scores = Scores(DANN(), {}, "last")
    scores.load_state_dict({"rows": [{"step": 5, "val": 0.75, "snd": 1.0}, {"step": 10, "val": 0.5, "snd": 0.0}]})
    settings = {"data": "hw2_data", "source": "mnistm", "target": "usps", "mode": "dann", "recipe": "plain", "seed": 1,
                "geometry": False, "intensity": True, "photograph": False, "neighbours": False, "adversary": True,
                "teacher": False, "alignment": False, "target_only": 0.0, "dropout": 0.5,
                "lr": 1e-3, "lr_schedule": "constant", "steps": 10, "device": "cpu",
                "batch_size": 8, "precision": "fp32", "inputs": {"data": "12"}, "select": "last"}
    assert write_result(tmp_path, settings, scores) == "mnistm -> usps dann plain: target val 50.0%"
    assert previews_of(tmp_path) == scores.rows
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "data": "hw2_data", "source": "mnistm", "target": "usps", "mode": "dann", "recipe": "plain", "seed": 1,
        "batch_size": 8, "precision": "fp32", "inputs": {"data": "12"},
        "parts": {name: settings[name] for name in RECIPES[None]},
        "changes": ["no geometry", "lr schedule constant"], "steps": 10, "seconds": 1.5, "val": 0.5,
        "selected_step": 10, "oracle": {"step": 5, "val": 0.75}}


def test_a_test_split_without_images_is_left_out(data, train, tmp_path, caplog):
    copied = tmp_path / "coursework" / "hw2_data"
    shutil.copytree(data, copied)
    (copied / "digits" / "usps" / "test.csv").write_text("image_name,label\n00000.png,3\n")
    out = train("run", "--mode", "source", "--data", str(copied))
    assert "test" not in json.loads((out / "result.json").read_text())
    assert "no test score" in caplog.text
