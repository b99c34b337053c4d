"""Comparing samplers: settings, evaluations, rows of an earlier call, and the same images as inference."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from common import checkpoint
from common.errors import UserError
from common.images import to_uint8
from diffusion import compare, inference
from diffusion.classifier import DigitClassifier
from diffusion.pipeline import Setting, load_pipeline
from diffusion.unet import KIND, ConditionalUNet


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "tiny.pt"
    checkpoint.save(path, {"kind": KIND, "model_args": {"width": 4, "prediction": "velocity", "schedule": "cosine"},
                           "weights": ConditionalUNet(4).state_dict()})
    return path


@pytest.fixture
def run(digits_dir, weights, tmp_path, monkeypatch):
    """Run the command with two images per digit."""
    monkeypatch.setattr(compare, "load_or_train", lambda *args: DigitClassifier().eval())
    monkeypatch.setattr("diffusion.classifier.MIN_ACCURACY", 0)
    monkeypatch.chdir(tmp_path)

    def run(*settings, data=digits_dir):
        argv = [*settings, "--data", str(data), "--weights", str(weights), "--per-digit", "2",
                "--precision", "fp32", "--device", "cpu", "--out", "table/samplers.json"]
        assert compare.main(argv) == 0
        return json.loads((tmp_path / "table" / "samplers.json").read_text())["rows"]

    return run


def test_evaluations_are_counted(run):
    assert [row["evaluations"] for row in run("dpm-solver++:3:1", "ddim:3:2")] == [3, 6]


def test_rows_of_an_earlier_call_are_kept(run, capsys):
    first = run("ddim:2:1")
    assert run("ddim:2:1", "ddim:3:1")[0] == first[0]  # the seconds too: it was not computed again
    assert capsys.readouterr().out.count("ddim:2:1: is in table/samplers.json already\n") == 1


def test_a_table_that_is_missing_is_written_again(run, tmp_path):
    run("ddim:2:1")
    table = tmp_path / "table" / "samplers.md"
    text = table.read_text()
    table.unlink()
    run("ddim:2:1")  # as after a stop between the scores and the table
    assert table.read_text() == text


def test_force_begins_a_new_table(run, tmp_path):
    run("ddim:2:1", "ddim:3:1")
    (tmp_path / "table" / "samplers.json").write_text("foreign")
    assert [row["setting"] for row in run("ddim:2:1", "--force")] == ["ddim:2:1"]


def test_rows_of_another_comparison_are_refused_before_anything_is_computed(run, weights, tmp_path, monkeypatch,
                                                                             digits_dir):
    run("ddim:2:1")
    table = tmp_path / "table" / "samplers.json"
    written = table.read_text()
    monkeypatch.setattr(compare, "load_or_train", None)
    other = shutil.copytree(digits_dir, tmp_path / "other" / digits_dir.name)  # of the same name
    Image.new("RGB", (28, 28)).save(other / "digits" / "mnistm" / "data" / "00050.png")
    with pytest.raises(UserError, match=r"samplers\.json was made with data \w{16}, got \w{16}: name another --out"):
        run("ddim:2:1", data=other)
    for name, value in json.loads(written)["about"].items():
        table.write_text(written.replace(f'"{name}": {json.dumps(value)}', f'"{name}": "other"'))
        with pytest.raises(UserError, match=rf"samplers\.json was made with {name} other, got {value}: name an"):
            run("ddim:3:1")
    table.write_text(written)
    content = checkpoint.load(weights)
    content["weights"]["outc.bias"] += 1
    checkpoint.save(weights, content)
    with pytest.raises(UserError, match="was made with weights"):
        run("ddim:2:1")
    assert table.read_text() == written


@pytest.mark.parametrize("text", ["", '{"about": {}}', '{"about": 1, "rows": []}'])
def test_a_file_of_another_kind_is_refused_before_anything_is_computed(run, tmp_path, monkeypatch, text):
    table = tmp_path / "table" / "samplers.json"
    table.parent.mkdir()
    table.write_text(text, encoding="latin-1")
    monkeypatch.setattr(compare, "load_or_train", None)
    with pytest.raises(UserError, match=r"samplers\.json .*a comparison of samplers: name another --out"):
        run("ddim:2:1")
    assert table.read_text(encoding="latin-1") == text


def test_table_and_plot_are_written_beside_the_scores(run, tmp_path):
    run("ddim:2:2", "ddim:1:2", "dpm-solver++:2:1")
    table = (tmp_path / "table" / "samplers.md").read_text().splitlines()
    assert [line.split(" | ")[3] for line in table[2:]] == ["2", "2", "4"]
    with Image.open(tmp_path / "table" / "samplers.png") as picture:
        assert min(picture.size) > 300


def test_files_beside_a_new_comparison_are_kept(run, tmp_path):
    for name in ("samplers.md", "samplers.png"):
        mine = tmp_path / "table" / name
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("mine")
        with pytest.raises(UserError, match=f"{name} exists already"):
            run("ddim:2:1")
        assert mine.read_text() == "mine"
        mine.unlink()
    run("ddim:2:1")
    run("ddim:2:1", "ddim:3:1")  # an earlier comparison goes on


def test_images_are_those_of_inference(weights, tmp_path):
    pipeline = load_pipeline(weights, torch.device("cpu"))
    images, digits, _ = compare.measure(pipeline, Setting("ddim", 3, 2.0), 1, torch.device("cpu"), torch.float32)
    inference.main([str(tmp_path / "out"), "--weights", str(weights), "--sampler", "ddim", "--steps", "3",
                    "--guidance", "2", "--per-digit", "1", "--precision", "fp32"])
    assert images.dtype == to_uint8(torch.zeros(1)).dtype and digits.tolist() == list(range(10))
    for digit, image in enumerate(images):
        with Image.open(tmp_path / "out" / f"{digit}_001.png") as picture:
            assert (np.asarray(picture) == image.permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize("setting", ["ddim", "ddim:5", "unknown:5:2", "ddim:0:2", "ddim:1001:2", "ddim:5:x",
                                     "ddpm:999:2", "ddim:5:-1", "ddim:5:nan", "ddim:5:2:100-800"])
def test_a_bad_setting_is_named(setting):
    with pytest.raises(UserError, match=f"^{setting}: expected SAMPLER:STEPS:GUIDANCE.* ddpm, ddim, .* 1 to 1000"):
        compare.read_setting(setting)
