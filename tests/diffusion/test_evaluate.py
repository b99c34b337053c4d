"""Every fault of a generator must show in a score: wrong digits, one image repeated, copies of training digits."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.folder import ImageSet, load_digits
from common.errors import UserError
from common.images import save_picture
from common.scores import SHOWN
from diffusion import classifier, evaluate


def features(per_digit: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features that cluster by digit, and their digits."""
    rng = np.random.default_rng(seed)
    labels = np.arange(10).repeat(per_digit)
    return (10 * np.eye(16)[labels] + rng.normal(size=(len(labels), 16))).astype(np.float32), labels


def test_fresh_real_features_score_as_well_as_real_ones():
    fake, labels = features(100, seed=1)
    scores = evaluate.score(fake, labels, labels, *features(300, seed=2))
    assert scores["accuracy"] == 1
    assert scores["frechet"] < 2 * scores["frechet_real"]
    assert scores["variety"] == pytest.approx(1, abs=0.05)


def test_one_perfect_image_per_digit_has_no_variety_and_a_large_distance():
    fake, labels = features(1, seed=1)
    repeated, labels = fake.repeat(100, axis=0), labels.repeat(100)
    scores = evaluate.score(repeated, labels, labels, *features(300, seed=2))
    assert scores["accuracy"] == 1
    assert scores["variety"] == 0
    assert scores["frechet"] > 5 * scores["frechet_real"]


def test_accuracy_is_counted_digit_by_digit():
    fake, labels = features(10, seed=1)
    predicted = labels.copy()
    predicted[labels == 3] = 8
    scores = evaluate.score(fake, labels, predicted, *features(30, seed=2))
    assert scores["accuracy"] == pytest.approx(0.9)
    assert scores["accuracy_by_digit"] == {digit: float(digit != 3) for digit in range(10)}


def test_bad_digits_and_missing_kinds_are_told_apart():
    (fake, labels), (real, real_labels) = features(100, seed=1), features(300, seed=2)
    bad = fake + 20 * (np.arange(1000) % 2)[:, None]
    few_kinds = fake[:300][np.arange(1000) % 300]  # 0, 1 and 2, whatever was asked for
    good, bad, few_kinds = (evaluate.score(x, labels, labels, real, real_labels) for x in (fake, bad, few_kinds))
    for name in evaluate.MEANING:
        assert good[name] == pytest.approx(good[f"{name}_real"], abs=0.06)
        assert bad[f"{name}_real"] == good[f"{name}_real"]
    assert bad["precision"] < 0.6 * good["precision"] and bad["density"] < 0.6 * good["density"]
    assert few_kinds["precision"] > 0.9 * good["precision"] and few_kinds["density"] > 0.9 * good["density"]
    assert few_kinds["recall"] < 0.5 * good["recall"] and few_kinds["coverage"] < 0.5 * good["coverage"]


@pytest.mark.parametrize(("per_digit", "real_per_digit", "compared"), [(3, 20, 3), (3, 5, 2), (9, 6, 3)])
def test_balls_are_of_equally_many_images_and_real_ones_are_used_once(per_digit, real_per_digit, compared, monkeypatch):
    seen = []

    def spy(fake, real):
        seen.append((fake[:, 0].tolist(), real[:, 0].tolist()))
        return {"precision": len(seen)}

    monkeypatch.setattr(evaluate, "fidelity_and_diversity", spy)
    (fake, labels), (real, real_labels) = features(per_digit, seed=1), features(real_per_digit, seed=2)
    scores = evaluate.score(fake, labels, labels, real, real_labels)
    assert (scores["precision"], scores["precision_real"]) == (1, 2)
    (generated, others), (first, same) = seen
    assert others == same
    assert [len(set(rows)) for rows in (generated, others, first)] == [10 * compared] * 3
    assert set(generated) <= set(fake[:, 0].tolist())
    assert set(first) | set(others) <= set(real[:, 0].tolist()) and not set(first) & set(others)


def test_too_few_images_are_refused():
    for fake, real in ((1, 30), (10, 1)):
        with pytest.raises(UserError, match="expected at least 2, and 2 per digit"):
            fake_features, labels = (part[:fake] for part in features(10, seed=1))
            evaluate.score(fake_features, labels, labels, *(part[::30 // real] for part in features(30, seed=2)))


@pytest.mark.slow
def test_command_scores_a_folder_and_shows_the_neighbours(digits_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("diffusion.classifier.EPOCHS", 1)
    monkeypatch.setattr("diffusion.classifier.MIN_STEPS", 100)
    source = digits_dir / "digits" / "mnistm" / "data"
    folder = tmp_path / "generated"
    folder.mkdir()
    for i in range(20):  # training images in the place of generated ones
        with Image.open(source / f"{i:05d}.png") as image:
            image.save(folder / f"{i % 10}_{i // 10:03d}.{'png' if i % 3 else 'bmp'}")
    command = [str(folder), "--data", str(digits_dir), "--classifier", str(tmp_path / "classifier.pt"),
               "--out", str(tmp_path / "scores.json"), "--neighbours", str(tmp_path / "near.png")]
    assert evaluate.main(command) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["kind"] == "diffusion" and scores["images"] == 20
    assert scores["closest"] == pytest.approx(0, abs=0.01)
    assert scores["suspicious"] == 1
    out = capsys.readouterr().out
    assert "0 is a copy" in out and "note: scores of 20 images say little" in out
    with Image.open(tmp_path / "near.png") as picture:
        assert picture.size == (2 * ((1 + SHOWN) * 30 + 2), 2 * (10 * 30 + 2))
    written = (tmp_path / "classifier.pt").stat().st_mtime_ns
    assert evaluate.main([*command, "--force"]) == 0
    assert (tmp_path / "classifier.pt").stat().st_mtime_ns == written  # trained only once


CPU = torch.device("cpu"), torch.float32


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr("diffusion.classifier.train", lambda *args: classifier.DigitClassifier().eval())


def test_a_classifier_is_of_the_digits_that_trained_it(untrained, digits_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = load_digits(digits_dir, "mnistm", "train")
    second = first._replace(labels=first.labels.flip(0))
    for digits, trained in ((first, True), (first, False), (second, True), (second, False)):
        classifier.load_or_train(None, "mnistm", digits, *CPU)
        assert ("training the digit classifier" in capsys.readouterr().out) == trained
    path = next((tmp_path / "runs").glob("classifier-mnistm-*.pt"))
    with pytest.raises(UserError, match=rf"{path.name} was trained on other digits than those of mnistm"):
        for digits in (first, second):
            classifier.load_or_train(path, "mnistm", digits, *CPU)


def test_a_classifier_that_cannot_read_real_digits_gives_no_scores(untrained, digits_dir, tmp_path):
    folder = tmp_path / "generated"
    folder.mkdir()
    for digit in range(10):
        Image.new("RGB", (28, 28)).save(folder / f"{digit}_001.png")
    with pytest.raises(UserError, match=r"reads \d+\.\d% of the real validation digits, expected at least 90%"):
        evaluate.main([str(folder), "--data", str(digits_dir), "--classifier", str(tmp_path / "classifier.pt")])


def test_classifiers_of_the_same_digits_read_as_well_and_wrong_labels_teach_nothing(digits_dir, monkeypatch):
    monkeypatch.setattr(classifier, "MIN_STEPS", 15)
    real, val = (load_digits(digits_dir, "mnistm", split) for split in ("train", "val"))
    same = classifier.classification_accuracy(real, real, val, *CPU)
    assert same["cas"] == same["cas_real"] > 0.8
    wrong = classifier.classification_accuracy(real._replace(labels=(real.labels + 1) % 10), real, val, *CPU)
    assert wrong["cas"] < 0.2 and wrong["cas_real"] == same["cas_real"]


@pytest.mark.parametrize(("generated", "real"), [(12, 40), (40, 12)])
def test_both_classifiers_see_equally_many_digits(generated, real, digits_dir, monkeypatch):
    seen = []

    def spy(digits, *args):
        seen.append((digits, args))
        return classifier.DigitClassifier().eval()

    monkeypatch.setattr(classifier, "train", spy)
    sets = [ImageSet(torch.randint(256, (count, 3, 28, 28), dtype=torch.uint8), torch.arange(count) % 10,
                     [f"{row}.png" for row in range(count)])
            for count in (generated, real)]
    classifier.classification_accuracy(*sets, load_digits(digits_dir, "mnistm", "val"), *CPU)
    assert len(seen) == 2 and seen[0][1] == seen[1][1]  # the same seed and batch size, so the same steps
    for ((images, labels, _), _), own in zip(seen, sets, strict=True):
        label_of = {image.numpy().tobytes(): label for image, label in zip(own.images, own.labels, strict=True)}
        chosen = [image.numpy().tobytes() for image in images]
        assert [label_of[image] for image in chosen] == labels.tolist()
        assert len(chosen) == len(set(chosen)) == 12


def test_command_prints_and_stores_the_scores(untrained, digits_dir, tmp_path, capsys, monkeypatch):
    """Untrained features will do; `--cas` gets the digits of the names, and is computed only when it is asked for."""
    monkeypatch.setattr(classifier, "MIN_ACCURACY", 0)
    asked = []

    def spy(fake, real, val, *how):
        asked.append((fake.labels.tolist(), len(real.images), real.names[0], val.names[0]))
        return {"cas": 0.5, "cas_real": 0.75}

    monkeypatch.setattr(evaluate, "classification_accuracy", spy)
    folder = tmp_path / "generated"
    folder.mkdir()
    for digit in range(10):
        save_picture(Image.new("RGB", (28, 28), (20 * digit, 0, 0)), folder / f"{digit}_001.png", "seed=0")
    command = [str(folder), "--data", str(digits_dir), "--classifier", str(tmp_path / "classifier.pt"),
               "--out", str(tmp_path / "scores.json")]
    assert evaluate.main(command) == 0
    scores, out = json.loads((tmp_path / "scores.json").read_text()), capsys.readouterr().out
    assert scores["made"] == "seed=0"  # the stamp of the images
    for name in ("precision", "recall", "density", "coverage"):
        assert f"{name:20} {scores[name]:.2f}  (real against real: {scores[f'{name}_real']:.2f}; " in out
    assert not asked and "cas" not in scores and "trained on them" not in out

    assert evaluate.main([*command, "--cas", "--force"]) == 0
    assert asked == [(list(range(10)), 40, "00000.png", "00040.png")]
    with_cas, out = json.loads((tmp_path / "scores.json").read_text()), capsys.readouterr().out
    assert with_cas == scores | {"cas": 0.5, "cas_real": 0.75}
    assert "trained on them      50.00%  (on as many real digits: 75.00%)" in out
    assert "note: --cas on 10 digits says little: train on at least 1000" in out


def test_foreign_names_are_refused(digits_dir, tmp_path):
    Image.new("RGB", (28, 28)).save(tmp_path / "holiday.png")
    with pytest.raises(UserError, match=r"holiday\.png: expected names like 3_042\.png"):
        evaluate.main([str(tmp_path), "--data", str(digits_dir)])
