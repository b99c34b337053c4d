"""Every fault of a generator must show in a score: wrong digits, one image repeated, copies of training digits."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.folder import load_digits
from common.errors import UserError
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


def test_too_few_images_are_refused():
    for fake, real in ((1, 30), (10, 1)):
        with pytest.raises(UserError, match="expected at least 2, and 2 per digit"):
            fake_features, labels = (part[:fake] for part in features(10, seed=1))
            evaluate.score(fake_features, labels, labels, *(part[::30 // real] for part in features(30, seed=2)))


@pytest.mark.slow
def test_command_scores_a_folder_and_shows_the_neighbours(digits_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("diffusion.classifier.EPOCHS", 1)
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


def test_foreign_names_are_refused(digits_dir, tmp_path):
    Image.new("RGB", (28, 28)).save(tmp_path / "holiday.png")
    with pytest.raises(UserError, match=r"holiday\.png: expected names like 3_042\.png"):
        evaluate.main([str(tmp_path), "--data", str(digits_dir)])
