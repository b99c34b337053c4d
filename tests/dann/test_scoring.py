"""Scores: eval mode, the oracle, the last step, and a test split without images."""

import json
import shutil

import torch

from dann import scoring
from dann.networks import DANN
from dann.scoring import Scores, held_out, write_result


def test_scores_in_eval_mode(train, monkeypatch):
    """The score does not depend on dropout, on the rest of the batch, or on the random state."""
    models, predict = [], scoring.predict
    monkeypatch.setattr(scoring, "predict", lambda *args: models.append(args[0]) or predict(*args))
    train("run")
    images = torch.randint(0, 256, (6, 3, 28, 28), dtype=torch.uint8)
    assert models
    for model in models:
        features, _ = predict(model.train(), images, True, torch.device("cpu"))
        assert not model.training
        torch.testing.assert_close(predict(model, images[:2], True, torch.device("cpu"))[0], features[:2])


def test_a_score_is_the_share_of_right_digits(data, monkeypatch):
    splits = held_out(str(data), "usps")
    monkeypatch.setattr(scoring, "predict", lambda *args: (None, torch.tensor([0, 1] + [9] * 18)))  # 4 of 20 are right
    scores = Scores(splits, True, torch.device("cpu"))
    scores.add(DANN(), 5)
    assert list(splits) == ["val", "test"] and len(splits["val"].images) == 20
    row = scores.rows[0]
    assert row == {"step": 5, "val": row["test"], "test": row["test"]}
    assert round(row["val"], 6) == 0.2


def test_the_oracle_is_the_best_preview_and_the_result_the_last(train, monkeypatch):
    accuracies = iter([0.5, 0.1, 0.9, 0.3, 0.2, 0.6])  # val, test of three previews

    def add(self, model, step):
        self.rows.append({"step": step, "val": next(accuracies), "test": next(accuracies)})

    monkeypatch.setattr(Scores, "add", add)
    result = json.loads((train("run", "--sample-every", "2") / "result.json").read_text())
    assert (result["val"], result["test"], result["steps"]) == (0.2, 0.6, 6)
    assert result["oracle"] == {"step": 4, "val": 0.9, "test": 0.3}


def test_result_file(tmp_path):
    (tmp_path / "done").write_text('{"steps": 10, "seconds": 1.5}')
    scores = Scores({}, True, torch.device("cpu"))
    scores.load_state_dict({"rows": [{"step": 5, "val": 0.75}, {"step": 10, "val": 0.5}]})
    settings = {"data": "hw2_data", "source": "mnistm", "target": "usps", "mode": "dann", "recipe": "plain", "seed": 1,
                "geometry": False, "intensity": True, "standardise": True, "adversary": True, "teacher": False,
                "balance": False, "lr": 1e-3, "lr_schedule": "constant", "steps": 10, "device": "cpu",
                "batch_size": 8, "precision": "fp32", "inputs": {"data": "12"}}
    assert write_result(tmp_path, settings, scores) == "mnistm -> usps dann plain: target val 50.0%"
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "data": "hw2_data", "source": "mnistm", "target": "usps", "mode": "dann", "recipe": "plain", "seed": 1,
        "batch_size": 8, "precision": "fp32", "inputs": {"data": "12"},
        "changes": ["no geometry", "lr_schedule constant"], "steps": 10, "seconds": 1.5, "val": 0.5,
        "oracle": {"step": 5, "val": 0.75}}


def test_a_test_split_without_images_is_left_out(data, train, tmp_path, caplog):
    copied = tmp_path / "coursework" / "hw2_data"
    shutil.copytree(data, copied)
    (copied / "digits" / "usps" / "test.csv").write_text("image_name,label\n00000.png,3\n")
    out = train("run", "--mode", "source", "--data", str(copied))
    assert "test" not in json.loads((out / "result.json").read_text())
    assert "no test score" in caplog.text
