"""Training: reproducible and resumable runs, switches, real SVHN, and mistakes in one line."""

import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
import scipy.io
import torch

from common import prepare
from common.batches import Batches
from common.data.folder import load_digits
from common.errors import UserError
from common.lr_schedule import lr_at
from common.metrics_log import read_metrics
from common.run import Run
from dann import step
from dann import train as training
from dann.inference import main as predict_folder
from dann.inputs import network_input
from dann.predict import load_network, predict
from dann.recipes import RECIPES
from dann.teacher import pseudo_labels
from dann.train import main
from tests.trainers import content, make_small, same

MODES = {"source": ["--mode", "source"], "plain": ["--recipe", "plain"], "plus": ["--recipe", "plus"],
         "target": ["--mode", "target"]}
SWITCHES = ("--no-geometry", "--no-intensity", "--no-photograph", "--no-neighbours", "--adversary", "--no-alignment",
            "--target-only 0.0", "--dropout 0.5", "--lr 0.01", "--lr-schedule constant")


@pytest.fixture(autouse=True)
def no_validators(monkeypatch):
    """Leave out what takes longer than the steps; test_scoring.py and test_validators.py have it."""
    monkeypatch.setattr("dann.scoring.compute_validators", lambda outputs: {})


@pytest.mark.parametrize("recipe", ["plain", "plus"])
def test_learning_rate_follows_the_recipe(recipe, train, monkeypatch):
    rates = []
    monkeypatch.setattr(training, "set_lr", lambda optimizer, lr: rates.append(lr))
    train("run", "--recipe", recipe)
    assert rates == [lr_at(RECIPES[recipe]["lr"], "cosine", step, 6) for step in range(6)]


def test_learns_the_bars(train):
    result = json.loads((train("run", "--mode", "target", "--steps", "60", "--batch-size", "20",
                               "--no-geometry", "--no-intensity") / "result.json").read_text())
    assert result["val"] == result["test"] == 1.0


def test_a_network_of_embedded_data_says_so(monkeypatch, tmp_path, train):
    make_small(monkeypatch.setattr)
    out = train("run", "--data", "builtin")
    model_args = content(out)["model_args"]
    assert (model_args["source"], model_args["target"]) == ("builtin-mnistm", "builtin-usps")


def test_the_result_is_of_the_weights_that_are_kept(train, monkeypatch, tmp_path):
    """Stopped between two previews, and then called finished."""
    with monkeypatch.context() as patch:
        patch.setattr(Run, "record", lambda self, metrics: self.step == 3 and os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            train("run", "--sample-every", "3")
    out = train("run", "--sample-every", "3", "--resume", "auto", "--steps", "4")
    rows = content(out)["parts"]["scores"]["rows"]
    result = json.loads((out / "result.json").read_text())
    assert [row["step"] for row in rows] == [3] and result["steps"] == 4
    digits = load_digits(json.loads((out / "args.json").read_text())["data"], "usps", "val")
    model, _ = load_network(out / "last.pt", torch.device("cpu"))
    predicted = predict(model, digits.images, torch.device("cpu"))[1].argmax(1)
    assert result["val"] == pytest.approx((predicted == digits.labels).float().mean().item())


def test_run_folder(train, capsys):
    out = train("run", "--sample-every", "3", "--adversary")
    assert capsys.readouterr().out.splitlines()[-1].startswith("mnistm -> usps dann plus: target val ")
    result = json.loads((out / "result.json").read_text())
    assert list(result) == ["data", "source", "target", "mode", "recipe", "seed", "batch_size", "precision", "inputs",
                            "parts", "changes", "steps", "seconds", "val", "test", "selected_step", "oracle"]
    assert [result[name] for name in ("source", "target", "mode", "steps")] == ["mnistm", "usps", "dann", 6]
    assert {p.name for p in out.iterdir()} == {".lock", "args.json", "versions.json", "metrics.jsonl", "done",
                                              "last.pt", "samples", "result.json", "previews.json"}
    assert sorted(p.name for p in (out / "samples").iterdir()) == ["0000003.png", "0000006.png"]
    rows = read_metrics(out)
    assert list(rows[0]) == ["step", "class_loss", "domain_loss", "pseudo_loss", "domain_accuracy",
                             "called_source", "grl_coeff", "confident", "lr"]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert rows[0]["grl_coeff"] < rows[1]["grl_coeff"] < rows[2]["grl_coeff"] < 1


@pytest.mark.parametrize("mode", MODES)
def test_same_seed_same_bits_whatever_the_previews_and_resumed_equals_unbroken(mode, train, weights, monkeypatch):
    flags = [*MODES[mode], "--sample-every", "2", "--save-every", "2"]
    unbroken = train("unbroken", *flags)
    assert same(weights(train("again", *flags, "--sample-every", "6")), weights(unbroken))
    assert not same(weights(train("other", *flags, "--seed", "1")), weights(unbroken))

    record = Run.record

    def record_and_stop(self, metrics):
        record(self, metrics)
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "record", record_and_stop)
        with pytest.raises(SystemExit) as stop:
            train("broken", *flags)
    assert stop.value.code == 128 + signal.SIGTERM
    broken = unbroken.parent / "broken"
    assert not (broken / "result.json").exists()
    train("broken", *flags, "--resume", "auto")
    assert same(weights(broken), weights(unbroken))
    assert read_metrics(broken) == read_metrics(unbroken)
    results = [json.loads((out / "result.json").read_text()) | {"seconds": 0} for out in (broken, unbroken)]
    assert results[0] == results[1]


def test_checkpoint_parts_and_no_random_states(train):
    for mode, names in (("source", set()), ("plus", {"target_batches", "teacher", "alignment"})):
        saved = content(train(mode, *MODES[mode]))
        assert saved["parts"].keys() == {"model", "optimizer", "batches", "scores"} | names
        assert "rng" not in saved


def test_the_teacher_is_kept_and_sees_the_target_alone(train):
    saved = content(train("run"))
    teacher, network = saved["parts"]["teacher"]["module"], saved["parts"]["model"]
    assert same(saved["weights"], teacher) and not same(teacher, network)
    name = "feature.1.num_batches_tracked"
    assert (teacher[name], network[name]) == (6, 11)  # one pass per step, and two, but for one step on the target alone


def test_the_teacher_sees_unchanged_images(data, train, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "pseudo_labels", lambda *args: seen.append(args[1]) or pseudo_labels(*args))
    train("run")
    clean = network_input(load_digits(data, "usps", "train").images).flatten(1)
    assert len(seen) == 6
    assert all((image.flatten() == clean).all(1).any() for batch in seen for image in batch)


def test_the_teacher_knows_the_progress_and_alignment_can_be_switched_off(train, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "pseudo_labels", lambda *args: seen.append(args[2:]) or pseudo_labels(*args))
    train("on")
    train("off", "--no-alignment")
    assert [progress.item() for _, progress in seen] == pytest.approx(2 * [i / 6 for i in range(6)])
    assert [alignment is None for alignment, _ in seen] == 6 * [False] + 6 * [True]


def test_only_the_source_is_scaled_to_the_size_of_the_target(train, monkeypatch):
    pairs = set()
    monkeypatch.setattr(training, "scale_range", lambda *pair: pairs.add(pair) or (0.9, 1.1))
    train("run")
    assert pairs == {("mnistm", "usps"), ("usps", "usps")}


def test_source_and_target_have_different_orders(train, monkeypatch):
    """MNIST and MNIST-M hold the same digits in the same order: with one order, both batches would show the same."""
    orders = {}

    class Watched(Batches):
        def next(self):
            batch = super().next()
            orders.setdefault(self, []).append(batch.tolist())
            return batch

    monkeypatch.setattr(training, "Batches", Watched)
    train("run")
    source, target = orders.values()
    assert len(source) == len(target) == 6
    assert all(a != b for a, b in zip(source, target, strict=True))


def test_several_seeds_are_separate_runs(train, weights, capsys):
    out = train("runs", "--seeds", "3", "0")
    assert sorted(p.name for p in out.parent.iterdir() if p.name.startswith("runs")) == ["runs-seed0", "runs-seed3"]
    single = train("three", "--seed", "3")
    assert same(weights(out.with_name("runs-seed3")), weights(single))
    settings = [json.loads((path / "args.json").read_text()) for path in (out.with_name("runs-seed3"), single)]
    assert settings[0] == settings[1] | {"out": f"{out}-seed3"}
    main(["--out", str(out), "--seeds", "3", "0", "--resume", "auto"])  # with the settings of the first
    assert capsys.readouterr().out.count("steps are done already") == 2


def test_a_collapse_is_reported_once(train, monkeypatch, capsys):
    monkeypatch.setattr(step, "called_source", lambda *logits: torch.tensor(1.0))
    train("run", "--adversary")
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("collapsed") == 1


def test_every_switch_changes_the_training_and_names_its_row(train, weights, monkeypatch):
    monkeypatch.setattr("dann.teacher.CONFIDENCE", 0.0)  # after six steps no prediction would be confident
    monkeypatch.setattr("dann.teacher.MOMENTUM", 1.0)  # nor the mean of them far from equal shares
    on = weights(train("on"))
    for flags in SWITCHES:
        row = flags.removeprefix("--").replace("-", " ")
        out = train(row, *flags.split())
        assert not same(on, weights(out)), row
        assert json.loads((out / "result.json").read_text())["changes"] == [row]


@pytest.mark.slow
def test_the_published_svhn_files_become_a_target(data, bar, tmp_path):
    """The whole path of real SVHN: MATLAB files of the published shape, prepared, adapted to, and predicted."""
    raw, prepared = tmp_path / "raw", tmp_path / "hw2_data"
    (raw / "SVHN").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", 60), ("test", 20)):
        digits = np.arange(count) % 10
        images = np.stack([np.pad(bar(digit, rng), ((2, 2), (2, 2), (0, 0))) for digit in digits], axis=3)
        scipy.io.savemat(raw / "SVHN" / f"{name}_32x32.mat", {"X": images, "y": np.where(digits, digits, 10)[:, None]})
    prepare.main(["--raw", str(raw), "--out", str(prepared)])
    shutil.copytree(data / "digits" / "mnistm", prepared / "digits" / "mnistm")
    out = tmp_path / "run"
    assert main(["--data", str(prepared), "--target", "svhn", "--out", str(out), "--steps", "50", "--batch-size", "40",
                 "--no-geometry", "--no-intensity", "--precision", "fp32"]) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["target"] == "svhn" and result["test"] > 0.9  # the files store 0 as 10
    assert predict_folder([str(prepared / "digits" / "svhn" / "data"), str(tmp_path / "OUT.csv"),
                           "--weights", str(out / "last.pt")]) == 0
    assert len((tmp_path / "OUT.csv").read_text().splitlines()) == 1 + 60 + 20


@pytest.mark.parametrize("flags, expected", [
    (["--source", "emnist"], "--source"),
    (["--batch-size", "1"], "--batch-size"),
    (["--mode", "both"], "--mode"),
    (["--recipe", "both"], "--recipe"),
    (["--seeds", "-1"], "--seeds"),
    (["--seeds", "3", "3"], "--seeds: expected different numbers"),
    (["--seeds", "3", "--seed", "1"], "--seeds: .* no --seed"),
    (["--seeds", "3", "--seed", "1", "--resume", "auto"], "--seeds: .* no --seed"),
    (["--seeds", "3", "--resume", "runs/x/last.pt"], "--seeds: expected --resume auto"),
])
def test_user_mistakes(flags, expected, data, tmp_path):
    with pytest.raises(UserError, match=expected) as mistake:
        main(["--data", str(data), "--out", str(tmp_path / "run"), *flags])
    assert "\n" not in str(mistake.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("how", ["no CSV", "empty labels", "wrong labels of train"])
def test_a_target_without_labels_trains(how, data, train, tmp_path, capsys):
    copied = shutil.copytree(data, tmp_path / "hw2_data")
    for split in ("train", "val", "test"):
        path = copied / "digits" / "usps" / f"{split}.csv"
        if how == "no CSV":
            path.unlink()
        elif how == "empty labels":
            path.write_text(re.sub(",[0-9]", ",", path.read_text()))
        elif split == "train":
            path.write_text(re.sub(",[0-9]", ",?", path.read_text()))
    out = train("run", "--data", str(copied))
    result = json.loads((out / "result.json").read_text())
    labelled = how == "wrong labels of train"
    assert ("val" in result, "test" in result, result["oracle"] is not None) == (labelled,) * 3
    assert ("target without labels" in capsys.readouterr().out) != labelled


def test_default_folder_and_dry_run(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["--data", str(data), "--batch-size", "8", "--epochs", "2", "--dry-run"])
    shown = capsys.readouterr().out
    assert "out=runs/dann-mnistm-usps-dann-plus" in shown and "steps=10 " in shown
    assert not (tmp_path / "runs").exists()
