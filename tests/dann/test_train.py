"""Training: one step by hand, reproducible and resumable runs, and what it may not look at."""

import copy
import csv
import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import scipy.io
import torch
from torch.nn import functional as F

from common import prepare
from common.batches import Batches
from common.datasets import load_digits
from common.errors import UserError
from common.runlog import Run, read_metrics
from dann import train as training
from dann.inference import main as predict_folder
from dann.inputs import network_input
from dann.networks import DANN
from dann.teacher import pseudo_labels
from dann.train import diagnose, learning_rate, main, train_step


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("teacher", [False, True])
def test_one_step_by_hand(teacher):
    """The step against plain torch, where the reversal is a second backward pass with the sign turned."""
    torch.manual_seed(0)
    model = DANN()
    twin = copy.deepcopy(model)
    x, target_x, labels = torch.randn(8, 3, 28, 28), torch.randn(8, 3, 28, 28), torch.arange(8)
    progress, lr = 0.25, 1e-3

    torch.manual_seed(1)
    optimiser = torch.optim.SGD(model.parameters(), lr=lr)
    pseudo = torch.arange(8).flip(0), torch.tensor([True, False] * 4)
    metrics = train_step(model, optimiser, x, labels, target_x, pseudo if teacher else None, True, progress,
                         torch.float32)

    torch.manual_seed(1)
    coeff = 2 / (1 + math.exp(-10 * progress)) - 1
    features = twin.feature(x).flatten(1)
    of_class = F.cross_entropy(twin.classifier(features), labels)
    source_logits = twin.discriminator(features)
    features = twin.feature(target_x).flatten(1)
    target_logits = twin.classifier(features)  # its running statistics see the target without a teacher too
    if teacher:
        of_class = of_class + F.cross_entropy(target_logits[::2], pseudo[0][::2]) / 2
    domain_logits = torch.cat([source_logits, twin.discriminator(features)])
    of_domain = F.cross_entropy(domain_logits, torch.tensor([0] * 8 + [1] * 8))
    extractor, classifier = list(twin.feature.parameters()), list(twin.classifier.parameters())
    discriminator = list(twin.discriminator.parameters())
    grads = torch.autograd.grad(of_class - coeff * of_domain, extractor, retain_graph=True)
    grads += torch.autograd.grad(of_class, classifier, retain_graph=True)
    grads += torch.autograd.grad(of_domain, discriminator)
    with torch.no_grad():
        for p, grad in zip(extractor + classifier + discriminator, grads, strict=True):
            p -= lr * grad

    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-7, msg=name)
    classes = metrics["class_loss"] + metrics.get("pseudo_loss", 0)
    assert classes.item() == pytest.approx(of_class.item(), rel=1e-5)
    assert metrics["domain_loss"].item() == pytest.approx(of_domain.item(), rel=1e-5)
    assert metrics["grl_coeff"].item() == pytest.approx(coeff)


def test_a_step_without_target_leaves_the_discriminator_alone():
    model = DANN()
    before = copy.deepcopy(model)
    optimiser = torch.optim.Adam(model.parameters())
    x, labels = torch.randn(4, 3, 28, 28), torch.arange(4)
    metrics = train_step(model, optimiser, x, labels, None, None, False, 0.5, torch.float32)
    assert list(metrics) == ["class_loss"]
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before.get_parameter(name))}
    assert {name.partition(".")[0] for name in moved} == {"feature", "classifier"}


def test_overfits_one_batch():
    torch.manual_seed(0)
    model = DANN()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, target_x, labels = torch.randn(20, 3, 28, 28), torch.randn(20, 3, 28, 28), torch.arange(20) % 10
    for step in range(40):
        metrics = train_step(model, optimiser, x, labels, target_x, None, True, step / 40, torch.float32)
    assert metrics["class_loss"] < 0.1


def test_learning_rate():
    assert learning_rate(1e-3, "paper", 0) == learning_rate(1e-3, "cosine", 0) == 1e-3
    assert learning_rate(1e-3, "paper", 1) == pytest.approx(1e-3 / 11 ** 0.75)
    assert learning_rate(1e-3, "cosine", 0.5) == pytest.approx(5e-4)
    assert learning_rate(1e-3, "cosine", 1) == 0


def test_learns_the_bars(train):
    result = json.loads((train("run", "--mode", "target", "--steps", "60", "--batch-size", "20",
                               "--no-geometry", "--no-intensity") / "result.json").read_text())
    assert result["val"] == result["test"] == 1.0


def test_run_folder(train, capsys):
    out = train("run", "--sample-every", "3", "--adversary")
    assert capsys.readouterr().out.splitlines()[-1].startswith("mnistm -> usps dann plus: target val ")
    result = json.loads((out / "result.json").read_text())
    assert list(result) == ["data", "source", "target", "mode", "recipe", "seed", "changes", "steps", "seconds",
                            "val", "test", "oracle"]
    assert [result[name] for name in ("source", "target", "mode", "steps")] == ["mnistm", "usps", "dann", 6]
    assert {p.name for p in out.iterdir()} == {"args.json", "versions.json", "metrics.jsonl", "done",
                                              "last.pt", "samples", "result.json"}
    assert sorted(p.name for p in (out / "samples").iterdir()) == ["0000003.png", "0000006.png"]
    rows = read_metrics(out)
    assert list(rows[0]) == ["step", "class_loss", "domain_loss", "domain_accuracy", "called_source",
                             "grl_coeff", "pseudo_loss", "confident"]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert rows[0]["grl_coeff"] < rows[1]["grl_coeff"] < rows[2]["grl_coeff"] < 1


def test_scores_in_eval_mode(train, monkeypatch):
    """The score does not depend on dropout, batch mates or the random state."""
    models, predict = [], training.predict
    monkeypatch.setattr(training, "predict", lambda *args: models.append(args[0]) or predict(*args))
    train("run")
    images = torch.randint(0, 256, (6, 3, 28, 28), dtype=torch.uint8)
    for model in models:
        features, _ = predict(model.train(), images, True, torch.device("cpu"))
        assert not model.training
        torch.testing.assert_close(predict(model, images[:2], True, torch.device("cpu"))[0], features[:2])


MODES = {"source": ["--mode", "source"], "plain": ["--recipe", "plain"], "plus": ["--recipe", "plus"],
         "target": ["--mode", "target"]}


@pytest.mark.parametrize("mode", MODES)
def test_same_seed_same_bits_and_resumed_equals_unbroken(mode, train, weights, monkeypatch):
    flags = [*MODES[mode], "--sample-every", "2", "--save-every", "2"]
    whole = train("whole", *flags)
    assert same(weights(train("again", *flags)), weights(whole))
    assert not same(weights(train("other", *flags, "--seed", "1")), weights(whole))

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
    broken = whole.parent / "broken"
    assert not (broken / "result.json").exists()
    train("broken", *flags, "--resume", "auto")
    assert same(weights(broken), weights(whole))
    assert read_metrics(broken) == read_metrics(whole)
    results = [json.loads((out / "result.json").read_text()) | {"seconds": 0} for out in (broken, whole)]
    assert results[0] == results[1]


def test_the_teacher_is_kept_and_knows_the_target_alone(train):
    content = torch.load(train("run") / "last.pt", weights_only=True)
    teacher, network = content["parts"]["teacher"]["module"], content["parts"]["model"]
    assert same(content["weights"], teacher) and not same(teacher, network)
    name = "feature.1.num_batches_tracked"
    assert (teacher[name], network[name]) == (6, 12)  # one pass a step, and two


def test_the_teacher_reads_images_as_they_are(data, train, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "pseudo_labels", lambda *args: seen.append(args[1]) or pseudo_labels(*args))
    train("run")
    clean = network_input(load_digits(data, "usps", "train").images).flatten(1)
    assert len(seen) == 6
    assert all((image.flatten() == clean).all(1).any() for batch in seen for image in batch)


def test_the_source_is_scaled_to_the_target_and_the_target_is_not(train, monkeypatch):
    asked = set()
    monkeypatch.setattr(training, "scale_range", lambda *pair: asked.add(pair) or (0.9, 1.1))
    train("run")
    assert asked == {("mnistm", "usps"), ("usps", "usps")}


@pytest.mark.parametrize("mode", MODES)
def test_previews_do_not_change_the_training(mode, train, weights):
    often, seldom = (train(f"every{n}", *MODES[mode], "--sample-every", n) for n in ("1", "6"))
    assert same(weights(often), weights(seldom))


def test_source_and_target_come_in_orders_of_their_own(train, monkeypatch):
    """MNIST and MNIST-M show the same digits in the same order; in one order, every batch would hold the same twice."""
    drawn = {}

    class Watched(Batches):
        def next(self):
            batch = super().next()
            drawn.setdefault(self, []).append(batch.tolist())
            return batch

    monkeypatch.setattr(training, "Batches", Watched)
    train("run")
    source, target = drawn.values()
    assert len(source) == len(target) == 6
    assert all(a != b for a, b in zip(source, target, strict=True))


def test_the_oracle_is_the_best_preview_and_the_result_the_last(train, monkeypatch):
    readings = iter([0.5, 0.1, 0.9, 0.3, 0.2, 0.6])  # val, test of three previews

    def add(self, model, step):
        self.rows.append({"step": step, "val": next(readings), "test": next(readings)})

    monkeypatch.setattr(training.Scores, "add", add)
    result = json.loads((train("run", "--sample-every", "2") / "result.json").read_text())
    assert (result["val"], result["test"], result["steps"]) == (0.2, 0.6, 6)
    assert result["oracle"] == {"step": 4, "val": 0.9, "test": 0.3}


def test_several_seeds_are_runs_of_their_own(train, weights, capsys):
    out = train("runs", "--seeds", "3", "0")
    assert sorted(p.name for p in out.parent.iterdir() if p.name.startswith("runs")) == ["runs-seed0", "runs-seed3"]
    assert same(weights(out.with_name("runs-seed3")), weights(train("three", "--seed", "3")))
    train("runs", "--seeds", "3", "0", "--resume", "auto")
    assert capsys.readouterr().out.count("steps are done already") == 2


@pytest.mark.parametrize("row, said", [
    ({"domain_accuracy": 0.6, "called_source": 0.5}, None),
    ({"class_loss": 1.0}, None),
    ({"domain_accuracy": 0.5, "called_source": 0.0}, "collapsed"),
    ({"domain_accuracy": 0.5, "called_source": 1.0}, "collapsed"),
    ({"domain_accuracy": 0.99, "called_source": 0.5}, "not aligned"),
])
def test_diagnosis(row, said):
    assert said in diagnose(row) if said else diagnose(row) is None


def test_a_collapse_is_said_once(train, monkeypatch, capsys):
    monkeypatch.setattr(training, "called_source", lambda *logits: torch.tensor(1.0))
    train("run", "--adversary")
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("collapsed") == 1


def relabelled(data, domain, tmp_path):
    """A copy of the data folder whose training labels of one domain are shifted by one."""
    copied = tmp_path / "relabelled" / "hw2_data"
    shutil.copytree(data, copied)
    path = copied / "digits" / domain / "train.csv"
    rows = list(csv.reader(path.read_text().splitlines()))
    shifted = "".join(f"{name},{(int(label) + 1) % 10}\n" for name, label in rows[1:])
    path.write_text("image_name,label\n" + shifted)
    return copied


@pytest.mark.parametrize("mode", ["source", "plain", "plus"])
def test_target_labels_are_never_used(mode, data, train, weights, tmp_path):
    plain = weights(train("plain", *MODES[mode]))
    swapped = relabelled(data, "usps", tmp_path)
    assert same(weights(train("swapped", *MODES[mode], "--data", str(swapped))), plain)


def test_labels_that_are_used_matter(data, train, weights, tmp_path):
    swapped = relabelled(data, "usps", tmp_path)
    assert not same(weights(train("plain", "--mode", "target")),
                    weights(train("swapped", "--mode", "target", "--data", str(swapped))))


def test_dann_looks_at_the_target_and_source_does_not(train, weights):
    source, dann = weights(train("source", "--mode", "source")), weights(train("dann", "--recipe", "plain"))
    assert not torch.equal(source["feature.0.weight"], dann["feature.0.weight"])


@pytest.mark.parametrize("flags", ["--no-geometry", "--no-intensity", "--no-standardise", "--adversary",
                                   "--no-balance", "--lr 0.01", "--lr-decay paper"])
def test_every_switch_changes_the_training_and_names_its_row(flags, train, weights, monkeypatch):
    monkeypatch.setattr("dann.teacher.CONFIDENCE", 0.0)  # a teacher of six steps is sure of nothing
    assert not same(weights(train("on")), weights(out := train("off", *flags.split())))
    row = flags.removeprefix("--").replace("no-", "no ").replace("lr-decay", "lr_decay")
    assert json.loads((out / "result.json").read_text())["changes"] == [row]


def test_test_csv_without_images_is_left_out(data, train, tmp_path, caplog):
    copied = tmp_path / "coursework" / "hw2_data"
    shutil.copytree(data, copied)
    (copied / "digits" / "usps" / "test.csv").write_text("image_name,label\n00000.png,3\n")
    out = train("run", "--mode", "source", "--data", str(copied))
    assert "test" not in json.loads((out / "result.json").read_text())
    assert "no test score" in caplog.text


def test_the_published_svhn_files_become_a_target(data, bar, tmp_path):
    """MATLAB files of the published shape, prepared, adapted to, and read: the whole path of real SVHN."""
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
    assert result["target"] == "svhn" and result["test"] > 0.9  # with a 10 for a 0 it could not be
    assert predict_folder([str(prepared / "digits" / "svhn" / "data"), str(tmp_path / "OUT.csv"),
                           "--weights", str(out / "last.pt")]) == 0
    assert len((tmp_path / "OUT.csv").read_text().splitlines()) == 1 + 60 + 20


@pytest.mark.parametrize("flags, said", [
    (["--source", "usps"], "usps twice"),
    (["--source", "emnist"], "--source"),
    (["--batch-size", "1"], "--batch-size"),
    (["--batch-size", "41"], "larger than the training set"),
    (["--mode", "both"], "--mode"),
    (["--recipe", "both"], "--recipe"),
    (["--mode", "source", "--teacher"], "--teacher belong to --mode dann"),
    (["--no-teacher"], "--mode source"),
    (["--recipe", "plain", "--balance"], "--balance .* needs --teacher"),
    (["--recipe", "plain", "--no-adversary"], "--mode source"),
    (["--seeds", "-1"], "--seeds"),
    (["--data", "nowhere"], "nowhere"),
])
def test_user_mistakes(flags, said, data, tmp_path):
    with pytest.raises(UserError, match=said) as mistake:
        main(["--data", str(data), "--out", str(tmp_path / "run"), *flags])
    assert "\n" not in str(mistake.value)
    assert not (tmp_path / "run").exists()


def test_default_folder_and_dry_run(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--data", str(data), "--batch-size", "8", "--epochs", "2", "--dry-run"]) == 0
    assert "out=runs/dann-mnistm-usps-dann-plus" in (said := capsys.readouterr().out) and "steps=10 " in said
    assert not (tmp_path / "runs").exists()
