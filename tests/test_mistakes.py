"""Mistakes of users and disks, for every command: one line on stderr that names the problem, exit code 2, no damage.

Each case breaks one thing in a small world of data, images and checkpoints, or gives one wrong flag.
"""

import bz2
import errno
import importlib
import io
import itertools
import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from common import checkpoint
from common.cli import run_main
from common.errors import UserError
from common.run import Run
from dann.networks import DANN
from diffusion.classifier import DigitClassifier
from diffusion.unet import ConditionalUNet
from gan import train as gan_train
from gan.models import build_generator
from tests.common.data.raw_sets import write_lfwcrop, write_mnist, write_svhn, write_usps
from tests.trainers import make_small, state

TRAIN = "--device cpu --out run --steps 2 --batch-size 4"
COMMANDS = {  # each works as it stands
    "gan.train": f"--model dcgan --data hw2_data --width 8 {TRAIN}",
    "gan.inference": "out --weights gan.pt --n 4 --device cpu",
    "gan.evaluate": "faces --reference hw2_data/face/val",
    "diffusion.train": f"--data hw2_data --width 4 {TRAIN}",
    "diffusion.distill": f"--teacher diffusion.pt --data hw2_data {TRAIN}",
    "diffusion.adversarial": f"--student diffusion.pt --teacher diffusion.pt --data hw2_data {TRAIN}",
    "diffusion.inference": "out --weights diffusion.pt --per-digit 1 --steps 1 --device cpu",
    "diffusion.evaluate": "digits --data hw2_data --classifier classifier.pt --device cpu",
    "dann.train": f"--data hw2_data {TRAIN}",
    "dann.inference": "usps out.csv --weights dann.pt --device cpu",
    "dann.evaluate": "run-a run-b --out table.md",
    "dann.tsne": "source.pt dann.pt --data hw2_data --out tsne.png --device cpu",
    "common.prepare": "--raw raw --out made",
    "common.release": "run-a released.pt",
    "common.compare": "run-a run-b --out curves.png",
}


def image(size: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def png(**options) -> bytes:
    file = io.BytesIO()
    image(28, 0).save(file, "PNG", **options)
    return file.getvalue()


def bomb() -> bytes:
    """A file of some bytes that claims 20,000 x 20,000 pixels."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    for domain in ("mnistm", "usps"):
        folder = root / "hw2_data" / "digits" / domain
        (folder / "data").mkdir(parents=True)
        for number, split in enumerate(("train", "val", "test")):
            names = [f"{20 * number + i:02d}.png" for i in range(20)]
            for i, name in enumerate(names):
                image(28, 100 * number + i).save(folder / "data" / name)
            rows = "".join(f"{name},{i % 10}\n" for i, name in enumerate(names))
            (folder / f"{split}.csv").write_text("image_name,label\n" + rows)
    for folder, size, names in (("hw2_data/face/train", 64, [f"{i}.png" for i in range(6)]),
                                ("hw2_data/face/val", 64, [f"{i}.png" for i in range(6)]),
                                ("faces", 64, [f"{i}.png" for i in range(4)]),
                                ("digits", 28, [f"{i}_001.png" for i in range(10)]),
                                ("usps", 28, [f"{i}.png" for i in range(3)]), ("plain", 28, ["0.png"])):
        (root / folder).mkdir(parents=True)
        for i, name in enumerate(names):
            image(size, i).save(root / folder / name)
    torch.manual_seed(0)
    for name, kind, model_args, network in (
            ("gan.pt", "gan/dcgan", {"model": "dcgan", "width": 8}, build_generator({"model": "dcgan", "width": 8})),
            ("diffusion.pt", "diffusion", {"width": 4, "prediction": "velocity", "schedule": "cosine"},
             ConditionalUNet(4)),
            *((f"{name}.pt", "dann", {"source": "mnistm", "target": "usps", "mode": mode}, DANN())
              for name, mode in (("source", "source"), ("dann", "dann")))):
        checkpoint.save(root / name, {"kind": kind, "step": 2, "model_args": model_args,
                                      "weights": network.state_dict()})
    for name, seed in (("run-a", 0), ("run-b", 1)):
        (root / name).mkdir()
        result = {"data": "hw2_data", "source": "mnistm", "target": "usps", "mode": "dann", "recipe": "plus",
                  "changes": [], "seed": seed, "steps": 2, "seconds": 1.0, "val": 0.5, "test": 0.5,
                  "batch_size": 4, "precision": "fp32", "inputs": {}, "parts": {},
                  "oracle": {"step": 1, "val": 0.5, "test": 0.5}}
        for file, content in (("result.json", result), ("args.json", {"seed": seed, "steps": 2}), ("versions.json", {}),
                              ("done", {"steps": 2, "seconds": 1.0})):
            (root / name / file).write_text(json.dumps(content))
        (root / name / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
        checkpoint.save(root / name / "last.pt", {"kind": "dann", "step": 2, "model_args": {},
                                                  "weights": {"w": torch.zeros(1)}})
    for write in (write_mnist, write_usps, write_svhn, write_lfwcrop):
        write(root / "raw")
    return root


# What breaks a world. Each returns the function that does it, in the working directory.

def put(path: str, content: bytes | str):
    def change():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content.encode() if isinstance(content, str) else content)
    return change


def remove(path: str):
    def change():
        shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()
    return change


def empty(folder: str):
    def change():
        remove(folder)()
        Path(folder).mkdir()
    return change


def cut(path: str, share: float = 0.5):
    def change():
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[:int(share * len(content))])
    return change


def copy(path: str, to: str):
    return lambda: shutil.copy(path, to)


def rewrite(path: str, **changes):
    """Change entries of a checkpoint."""
    def change():
        torch.save(torch.load(path, weights_only=True) | changes, path)
    return change


def bigger(path: str):
    def change():
        content = torch.load(path, weights_only=True)
        name = next(iter(content["weights"]))
        content["weights"][name] = torch.zeros(1, 2, 3)
        torch.save(content, path)
    return change


class Harm:
    """Unpickled, it leaves a file behind."""

    def __reduce__(self):
        return Path.touch, (Path("harmed"),)


def train_csv(text: str):
    return put("hw2_data/digits/mnistm/train.csv", text)


def mat(images: np.ndarray, labels: np.ndarray):
    content = {"X": images, "y": labels[:, None].astype(np.uint8)}
    return lambda: scipy.io.savemat("raw/SVHN/train_32x32.mat", content)


def faces_zip(members: dict[str, bytes]):
    def change():
        with zipfile.ZipFile("raw/lfwcrop/face.zip", "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    return change


def one_val_face():
    empty("hw2_data/face/val")()
    image(64, 0).save("hw2_data/face/val/0.png")


def nothing():
    pass


IMAGE = "hw2_data/face/train/2.png"
DIGIT = "hw2_data/digits/mnistm/data/03.png"
BROKEN = {"truncated": lambda path: cut(path), "zero-bytes": lambda path: put(path, b""),
          "text": lambda path: put(path, "not a picture"), "bomb": lambda path: put(path, bomb())}
HEAD = "image_name,label\n"

CASES = [
    # Data folders, for every trainer.
    *[(f"{task}-{what}", f"{task}.train", change, flags, said)
      for task, part in (("gan", "face/train"), ("diffusion", "digits/mnistm"), ("dann", "digits/usps"))
      for what, change, flags, said in (
        ("data-missing", nothing, "--data nowhere", "no data folder nowhere"),
        ("data-is-a-file", nothing, "--data gan.pt", "no data folder gan.pt"),
        ("part-missing", remove(f"hw2_data/{part}"), "", f"hw2_data has no {part}"),
        ("batch-too-large", nothing, "--batch-size 1000", "larger than the training set"),
        ("no-steps", nothing, "--steps 0", "--steps"),
        ("steps-and-epochs", nothing, "--epochs 1", "--epochs: not allowed with"),
        ("not-a-number", nothing, "--batch-size many", "--batch-size"),
        ("negative-seed", nothing, "--seed -1", "--seed"),
        ("unknown-flag", nothing, "--learning-rate 1", "--learning-rate"),
        ("unknown-device", nothing, "--device tpu", "--device"),
        ("out-holds-a-run", put("run/args.json", "{}"), "", "already holds a run"),
        ("out-is-a-file", put("run", "mine"), "", "run"),
        ("resume-missing", nothing, "--resume none.pt", "no checkpoint at none.pt"),
        ("resume-foreign", put("foreign.pt", "text"), "--resume foreign.pt", "foreign.pt is not a checkpoint"),
        ("resume-another-kind", rewrite("gan.pt", kind="else"), "--resume gan.pt", "got a checkpoint of else"),
    )],
    *[(f"config-{what}", "dann.train", change, flags, said) for what, change, flags, said in (
        ("missing", nothing, "--config nowhere", "cannot read nowhere (No such file"),
        ("empty-name", nothing, "--config=", "--config: got an empty name"),
        ("damaged", put("run-a/args.json", "{"), "--config run-a", "run-a/args.json (damaged)"),
        ("list", put("run-a/args.json", "[]"), "--config run-a/args.json", "run-a/args.json (damaged)"),
        ("of-another-command", nothing, "--config run-a", "run-a has the settings of another command or version"),
        ("no-manifest", nothing, "--config dann.pt", "cannot read manifest.json (No such file"),
        ("manifest-foreign", put("manifest.json", '{"dann.pt": 1}'), "--config dann.pt", "no settings of dann.pt"),
        ("not-released", put("manifest.json", "{}"), "--config dann.pt", "manifest.json has no settings of dann.pt"),
    )],
    *[(f"resume-released-{task}", f"{task}.train", nothing, f"--resume {task}.pt", "released file")
      for task in ("gan", "diffusion", "dann")],
    *[(f"face-{what}", "gan.train", broken(IMAGE), "", IMAGE) for what, broken in BROKEN.items()],
    *[(f"digit-{what}", "diffusion.train", broken(DIGIT), "", DIGIT) for what, broken in BROKEN.items()],
    *[("name-not-utf8", module, put(f"{folder}/\udcff.png", png()), "", r"'\udcff.png' is not UTF-8")
      for module, folder in (("gan.train", "hw2_data/face/train"), ("gan.evaluate", "faces"),
                             ("dann.inference", "usps"))],
    ("faces-empty", "gan.train", empty("hw2_data/face/train"), "", "holds no images"),
    ("faces-no-val", "gan.train", remove("hw2_data/face/val"), "", "hw2_data has no face/val"),
    ("faces-one-val", "gan.train", one_val_face, "", "1 validation faces, expected at least 2"),
    ("no-attention-dcgan", "gan.train", nothing, "--no-attention", "--no-attention is for sagan"),
    ("width-gan", "gan.train", nothing, "--model sagan --width 9", "--width"),
    ("width-diffusion", "diffusion.train", nothing, "--width 6", "--width"),
    ("generated-missing", "diffusion.adversarial", nothing, "--generated nowhere", "no folder nowhere"),
    ("generated-name", "diffusion.adversarial", put("digits/three.png", png()), "--generated digits", "three.png"),
    ("lr-nan", "diffusion.train", nothing, "--lr nan", "--lr"),
    ("domain-unknown", "diffusion.train", nothing, "--domain emnist", "emnist"),
    ("init-other-prediction", "diffusion.train", nothing, "--init diffusion.pt --prediction noise", "--prediction"),
    ("init-other-kind", "diffusion.train", nothing, "--init dann.pt", "got a checkpoint of dann"),
    ("init-other-width", "diffusion.train", nothing, "--init diffusion.pt --width 8", "--width"),
    ("lr-schedule-unknown", "diffusion.train", nothing, "--lr-schedule falling", "--lr-schedule"),
    ("same-domains", "dann.train", nothing, "--source usps", "usps twice"),
    ("same-embedded-domains", "dann.train", nothing, "--source builtin-usps --data builtin", "usps twice"),
    ("nothing-to-adapt-with", "dann.train", nothing, "--no-teacher", "--mode source"),
    ("phase-without-teacher", "dann.train", nothing, "--no-teacher --adversary --target-only 0.5", "--teacher"),
    ("teacher-without-target", "dann.train", nothing, "--mode source --teacher", "--teacher"),
    # CSV files.
    ("csv-label", "diffusion.train", train_csv(HEAD + "00.png,10\n"), "", "train.csv line 2: bad label '10'"),
    ("csv-missing", "diffusion.train", remove("hw2_data/digits/mnistm/train.csv"), "", "train.csv"),
    ("csv-alone", "diffusion.train", remove("hw2_data/digits/mnistm/data"), "", "no hw2_data/digits/mnistm/data"),
    # Checkpoints, for every inference.
    *[(f"{task}-weights-{what}", f"{task}.inference", change, flags, said) for task in ("gan", "diffusion", "dann")
      for what, change, flags, said in (
        ("missing", nothing, "--weights none.pt", "no checkpoint at none.pt"),
        ("truncated", cut(f"{task}.pt"), "", f"{task}.pt is not a checkpoint"),
        ("text", put(f"{task}.pt", "text"), "", f"{task}.pt is not a checkpoint"),
        ("malicious", put(f"{task}.pt", pickle.dumps(Harm())), "", f"{task}.pt is not a checkpoint"),
        ("older-format", rewrite(f"{task}.pt", format=0), "", "checkpoint format 0, expected 1"),
        ("other-kind", rewrite(f"{task}.pt", kind="else"), "", "got a checkpoint of else"),
        ("other-shape", bigger(f"{task}.pt"), "", "got shape (1, 2, 3)"),
        ("not-the-manifest's", put("manifest.json", json.dumps({f"{task}.pt": {"sha256": "0"}})), "",
         "is not the file that manifest.json describes"),
        ("manifest-damaged", put("manifest.json", "{"), "", "manifest.json (damaged)"),
    )],
    # Inference.
    *[(f"{task}-{what}", f"{task}.inference", change, flags, said) for task in ("gan", "diffusion")
      for what, change, flags, said in (
        ("out-is-a-file", put("out", "mine"), "", "out is a file"),
        ("out-is-somebody's", put("out/mine.png", png()), "", "out/mine.png"),
    )],
    ("picture-name", "diffusion.inference", nothing, "--grid", "a name that ends in .png"),
    ("picture-of-a-folder", "gan.inference", nothing, "--grid 2", "--grid: not allowed with argument --n"),
    ("no-images", "gan.inference", nothing, "--n 0", "--n"),
    ("digits-unknown", "diffusion.inference", nothing, "--digits 3,x", "--digits"),
    ("digits-twice", "diffusion.inference", nothing, "--digits 3,3", "--digits"),
    ("digits-more-than-ten", "diffusion.inference", nothing, "--digits 10", "--digits"),
    ("too-many-steps", "diffusion.inference", nothing, "--steps 1001", "--steps"),
    ("guidance-negative", "diffusion.inference", nothing, "--guidance -1", "--guidance"),
    ("sampler-unknown", "diffusion.inference", nothing, "--sampler no-such-sampler", "--sampler"),
    ("target-and-weights", "dann.inference", nothing, "--target usps", "not allowed with"),
    ("folder-missing", "dann.inference", remove("usps"), "", "no folder usps"),
    ("folder-empty", "dann.inference", empty("usps"), "", "holds no images"),
    ("csv-exists", "dann.inference", put("out.csv", "mine"), "", "out.csv exists already"),
    # Evaluation.
    ("faces-missing", "gan.evaluate", remove("faces"), "", "no folder faces"),
    ("faces-none", "gan.evaluate", empty("faces"), "", "holds no images"),
    ("reference-missing", "gan.evaluate", remove("hw2_data/face/val"), "", "hw2_data/face/val"),
    ("reference-is-the-training-set", "gan.evaluate", nothing, "--reference hw2_data/face/train", "face/train twice"),
    *[(f"scored-face-{what}", "gan.evaluate", broken("faces/1.png"), "", "faces/1.png")
      for what, broken in BROKEN.items()],
    *[(f"keeps-{name}", module, put(name, "mine"), flags, f"{name} exists already") for module, flags, name in (
        *[(f"{task}.evaluate", f"--{flag} {name}", name) for task in ("gan", "diffusion")
          for flag, name in (("out", "scores.json"), ("neighbours", "near.png"))],
        ("dann.evaluate", "", "table.md"), ("dann.evaluate", "", "table.json"), ("dann.tsne", "", "tsne.png"),
        ("common.compare", "", "curves.png"))],
    ("one-file-for-two", "diffusion.evaluate", nothing, "--out a.json --classifier a.json", "a.json is named for two"),
    ("over-its-classifier", "diffusion.evaluate", nothing, "--out a.json --classifier a.json --force", "named for two"),
    *[(f"{task}-{flag}", f"{task}.evaluate", nothing, f"--{flag} scores.txt", f"that ends in .{ending}")
      for task in ("gan", "diffusion") for flag, ending in (("out", "json"), ("neighbours", "png"))],
    ("digits-missing", "diffusion.evaluate", remove("digits"), "", "no folder digits"),
    ("digits-name", "diffusion.evaluate", put("digits/three.png", png()), "", "three.png"),
    ("classifier-foreign", "diffusion.evaluate", put("classifier.pt", "text"), "", "classifier.pt is not a checkpoint"),
    ("run-unfinished", "dann.evaluate", remove("run-b/result.json"), "",
     "run-b/result.json (No such file or directory): expected the scores of a run of dann.train, which --resume auto"),
    ("result-damaged", "dann.evaluate", put("run-b/result.json", "{"), "", "run-b/result.json (damaged)"),
    ("result-foreign", "dann.evaluate", put("run-b/result.json", "[]"), "", "run-b/result.json (damaged)"),
    ("result-of-another", "dann.evaluate", put("run-b/result.json", "{}"), "", "run-b/result.json does not hold"),
    ("run-twice", "dann.evaluate", copy("run-a/result.json", "run-b/result.json"), "", "same settings and seed"),
    ("confusion-unknown", "dann.evaluate", remove("run-a/last.pt"), "--confusion", "no checkpoint at run-a/last.pt"),
    ("table-name", "dann.evaluate", nothing, "--out table.txt", ".md"),
    ("plot-name", "dann.tsne", nothing, "--out tsne.jpg", ".png"),
    ("plot-weights", "dann.tsne", put("dann.pt", "text"), "", "dann.pt is not a checkpoint"),
    # Raw files.
    ("raw-missing", "common.prepare", nothing, "--raw nowhere", "no folder nowhere"),
    ("raw-empty", "common.prepare", empty("raw"), "", "holds none of the raw sets"),
    ("faces-nowhere", "common.prepare", nothing, "--faces nowhere", "nowhere"),
    ("idx-truncated", "common.prepare", cut("raw/MNIST/raw/train-images-idx3-ubyte.gz"), "", "train-images"),
    ("idx-text", "common.prepare", put("raw/MNIST/raw/train-images-idx3-ubyte.gz", "text"), "", "train-images"),
    ("usps-text", "common.prepare", put("raw/USPS/usps.bz2", bz2.compress(b"1 1:x\n")), "", "usps.bz2"),
    ("usps-truncated", "common.prepare", cut("raw/USPS/usps.bz2"), "", "usps.bz2"),
    ("mat-text", "common.prepare", put("raw/SVHN/train_32x32.mat", "text"), "", "train_32x32.mat"),
    ("mat-shape", "common.prepare", mat(np.zeros((28, 28, 3, 10), np.uint8), np.arange(10) + 1), "", "train_32x32.mat"),
    ("mat-labels", "common.prepare", mat(np.zeros((32, 32, 3, 10), np.uint8), np.full(10, 12)), "", "train_32x32.mat"),
    ("mat-counts", "common.prepare", mat(np.zeros((32, 32, 3, 9), np.uint8), np.arange(10) + 1), "", "train_32x32.mat"),
    ("zip-text", "common.prepare", put("raw/lfwcrop/face.zip", "text"), "", "face.zip"),
    ("zip-web-page", "common.prepare", put("raw/lfwcrop/face.zip", "<html>Log in"), "", "a web page, not a zip"),
    ("zip-broken-image", "common.prepare", faces_zip({"face/train/0.png": png(), "face/val/0.png": b"x"}), "",
     "face/val/0.png"),
    ("release-unfinished", "common.release", remove("run-a/done"), "", "run-a is not a finished run"),
    ("release-scores", "common.release", put("scores.json", "{"), "--scores scores.json", "scores"),
    ("release-scores-list", "common.release", put("scores.json", "[]"), "--scores scores.json", "expected scores"),
    ("release-over-another", "common.release", put("released.pt", "mine"), "", "released.pt exists already"),
    ("release-over-an-entry", "common.release", put("manifest.json", '{"released.pt": {"sha256": "0"}}'), "",
     "manifest.json has"),
    *[("release-manifest-foreign", "common.release", put("manifest.json", text), "", "is no manifest of released files")
      for text in ('{"name": "app"}', '{"icons": {}}')],
    *[("release-scores-of-another", "common.release", put("scores.json", text), "--scores scores.json",
       "scores.json does not hold scores of dann") for text in ('{"kind": "gan"}', "{}", '{"mode": "dann"}')],
    ("release-manifest-damaged", "common.release", put("manifest.json", "[]"), "", "expected a manifest"),
    ("release-of-another-step", "common.release", put("run-a/done", '{"steps": 3, "seconds": 1}'), "",
     "run-a is not finished: its checkpoint is of step 2 of 2"),
    ("curves-of-no-run", "common.compare", remove("run-b/args.json"), "", "cannot read run-b/args.json (No such file"),
    ("curves-damaged", "common.compare", put("run-b/args.json", "["), "", "run-b/args.json (damaged)"),
    ("curves-none", "common.compare", remove("run-b/metrics.jsonl"), "", "run-b/metrics.jsonl has no metrics"),
    ("curves-of-other-metrics", "common.compare", put("run-b/metrics.jsonl", '{"step": 1, "lr": 1}\n'), "",
     "run-a has no metric of another run here"),
    ("curves-name", "common.compare", nothing, "--out curves.jpg", "--out: got curves.jpg, expected a name that ends"),
    ("curves-over-a-folder", "common.compare", lambda: Path("curves.png").mkdir(), "--force", "curves.png is a folder"),
    ("release-checkpoint", "common.release", cut("run-a/last.pt"), "", "last.pt is not a checkpoint"),
]


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    shutil.copytree(world, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


def contents() -> dict[str, bytes]:
    """Every file below the working directory, but for caches of decoded images and the sets that prepare finished."""
    paths = (path for path in sorted(Path().rglob("*")) if path.is_file())
    return {str(path): path.read_bytes() for path in paths if ".cache" not in path.parts and not finished(path)}


@pytest.fixture
def fast(monkeypatch):
    """Leave out seconds that are not at stake."""
    make_small(monkeypatch.setattr)
    monkeypatch.setattr("diffusion.classifier.train", lambda *args: torch.manual_seed(0) and DigitClassifier().eval())
    monkeypatch.setattr("diffusion.classifier.MIN_ACCURACY", 0)
    monkeypatch.setattr("dann.tsne.embed", lambda features: features[:, :2])


def finished(path: Path) -> bool:
    return path.parts[0] == "made" and not any(part.startswith(".") for part in path.parts)


def run(module: str, *more: str) -> int:
    argv = [*COMMANDS[module].split(), *more]
    with pytest.raises(SystemExit) as end:
        run_main(lambda: importlib.import_module(module).main(argv))
    return end.value.code


@pytest.mark.parametrize(("module", "change", "flags", "said"), [case[1:] for case in CASES],
                         ids=[f"{case[1]}-{case[0]}" for case in CASES])
def test_a_mistake_is_one_line(module, change, flags, said, here, capfd):
    change()
    before = contents()
    code = run(module, *flags.split())
    captured = capfd.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ") and said in line
    assert code == 2
    assert contents() == before
    assert not Path("run").is_dir() or any(name.startswith("run/") for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("module", COMMANDS)
def test_without_a_mistake_each_command_works(module, here, fast):
    """So the cases above and below fail for the reason that they name."""
    assert run(module) in (0, None)


def test_names_that_lead_out_of_a_zip_stay_in(here):
    faces_zip({f"{up}face/{split}/{i}.png": png() for split in ("train", "val")
               for i, up in enumerate(("", "../", "/", "../../../"))})()
    run("common.prepare")
    outside = [path for path in Path("..").resolve().rglob("*.png") if "here" not in path.parts]
    assert not outside and not Path("/face").exists()


def test_debug_shows_where(here, monkeypatch):
    monkeypatch.setattr("sys.argv", ["gan.train", "--debug"])
    with pytest.raises(UserError, match="no data folder nowhere"):
        run_main(lambda: gan_train.main(["--model", "dcgan", "--data", "nowhere", "--debug"]))


# Disks. A trainer logs and saves each of four steps and draws two pictures; the number counts how often a file of that
# name is opened for writing.

OFTEN = "--steps 4 --log-every 1 --save-every 1 --sample-every 2"
FULL = [
    ("diffusion.train", OFTEN, "last.pt", 3),
    *[("dann.train", OFTEN, name, 3) for name in ("metrics.jsonl", "last.pt")],
    ("dann.train", OFTEN, "0000004.png", 1), ("dann.train", OFTEN, "result.json", 1),
    *[("gan.train", OFTEN, name, 3) for name in ("metrics.jsonl", "last.pt")],
    *[("gan.train", OFTEN, name, 1) for name in ("args.json", "versions.json", "metrics.jsonl", "0000002.png",
                                                 "last.pt", "done")],
    ("gan.inference", "", "0000.png", 1), ("gan.inference", "", "0002.png", 1),
    ("diffusion.inference", "", "4_001.png", 1), ("dann.inference", "", "out.csv", 1),
    ("gan.evaluate", "--out scores.json --neighbours near.png", "scores.json", 1),
    ("gan.evaluate", "--out scores.json --neighbours near.png", "near.png", 1),
    ("diffusion.evaluate", "--classifier new.pt --out scores.json", "new.pt", 1),
    ("diffusion.evaluate", "--classifier new.pt --out scores.json", "scores.json", 1),
    ("dann.evaluate", "", "table.md", 1), ("dann.evaluate", "", "table.json", 1), ("dann.tsne", "", "tsne.png", 1),
    ("common.release", "", "released.pt", 1), ("common.release", "", "manifest.json", 1),
    ("common.compare", "", "curves.png", 1),
    ("common.prepare", "", "mnist/data", 7), ("common.prepare", "", "mnist/val.csv", 1),
]


def break_disk(patch: pytest.MonkeyPatch, word: str, number: int, read_only: bool = False) -> None:
    """From the number-th time on, no file whose path holds the word can be written."""
    attempts = itertools.count(1)

    def broken_open(path, mode="r", *args, **kwargs):
        if word in str(path).replace(".partial", "") and mode[0] in "wax" and next(attempts) >= number:
            if read_only:
                raise OSError(errno.EROFS, "Read-only file system", str(path))
            Path(path).touch()  # the name has room, its content has none
            path = "/dev/full"
        return opened(path, mode, *args, **kwargs)

    opened = open
    patch.setattr("builtins.open", broken_open)
    patch.setattr("io.open", broken_open)


def left() -> dict:
    """What a command leaves, without the times, names and settings in which a broken and an unbroken run may differ."""
    def read(path: str, content: bytes):
        if path.endswith(".pt"):
            return state(torch.load(path, weights_only=True))
        if path.endswith(("args.json", "versions.json", "done", "result.json")):
            return state(json.loads(content))
        return content

    return {path: read(path, content) for path, content in contents().items()}


@pytest.fixture(scope="module")
def unbroken(world, tmp_path_factory):
    """What a command leaves that nothing disturbs, by module and flags; each is run once."""
    known = {}

    def unbroken(module: str, flags: str) -> dict:
        if (module, flags) not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(shutil.copytree(world, tmp_path_factory.mktemp("unbroken") / "here"))
                assert run(module, *flags.split()) in (0, None)
                known[module, flags] = left()
        return known[module, flags]

    return unbroken


@pytest.mark.slow
@pytest.mark.parametrize(("module", "flags", "word", "number"), FULL,
                         ids=[f"{module}-{word.replace('/', '-')}-{number}" for module, _, word, number in FULL])
def test_a_full_disk_is_one_line_and_with_room_all_is_as_if_it_had_not_been(module, flags, word, number, here, fast,
                                                                           unbroken, capfd):
    expected, before = unbroken(module, flags), contents()
    capfd.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        break_disk(patch, word, number)
        code = run(module, *flags.split())
    (line,) = capfd.readouterr().err.splitlines()
    assert code == 2
    assert line.startswith("error: ") and Path(word).parts[0] in line
    assert "No space left on device" in line and "free some space" in line
    after = contents()
    assert before.items() <= after.items()
    assert not [path for path in after if "partial" in path]
    for path in after.keys() - before.keys():
        if path.endswith((".pt", ".png", ".csv")):  # complete, though the command is not
            assert left()[path] == expected[path] or path == "run/last.pt"

    # Of two outputs, one may be written already.
    again = ["--resume", "auto"] if module.endswith(".train") else ["--force"] * (module != "common.prepare")
    assert run(module, *flags.split(), *again) in (0, None)
    assert left() == expected


@pytest.mark.slow
@pytest.mark.parametrize("module", COMMANDS)
def test_a_read_only_disk_is_one_line_and_leaves_nothing(module, here, fast, capfd):
    def refuse(path, *_):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    before = contents()
    with pytest.MonkeyPatch.context() as patch:
        break_disk(patch, "", 1, read_only=True)
        patch.setattr("os.mkdir", refuse)
        code = run(module, *("--out", "scores.json") * module.endswith(("gan.evaluate", "diffusion.evaluate")))
    (line,) = capfd.readouterr().err.splitlines()
    assert code == 2
    assert line.startswith("error: ") and "Read-only file system" in line
    assert contents() == before and not Path("run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["gan", "diffusion", "dann"])
def test_data_that_vanish_cost_no_step(task, here, fast, unbroken, capfd, monkeypatch):
    module = f"{task}.train"
    expected, record = unbroken(module, OFTEN), Run.record

    def record_and_disturb(self, metrics):
        record(self, metrics)
        if self.step == 0:
            Path("hw2_data").rename("elsewhere")  # the images are in memory: the training goes on
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "record", record_and_disturb)
        assert run(module, *OFTEN.split()) == 128 + signal.SIGTERM
    before = contents()
    capfd.readouterr()
    assert run(module, *OFTEN.split(), "--resume", "auto") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "no data folder hw2_data" in line
    assert contents() == before
    Path("elsewhere").rename("hw2_data")
    assert run(module, *OFTEN.split(), "--resume", "auto") == 0
    assert left() == expected


@pytest.mark.slow
@pytest.mark.parametrize("module", ["gan.evaluate", "diffusion.evaluate", "dann.evaluate"])
def test_scores_are_written_before_they_are_printed(module, here, fast, monkeypatch, capfd):
    def closed(text, *, file=None, **flags):
        if file is None and "training" not in text:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("builtins.print", closed)
    monkeypatch.setattr("common.cli.drop_stdout", lambda: None)
    assert run(module, *("--out", "table.json") * (module != "dann.evaluate")) == 2
    assert Path("table.json").exists()


NINE = HEAD + "".join(f"0{digit}.png,{digit}\n" for digit in range(9))


@pytest.mark.slow
@pytest.mark.parametrize(("module", "change"), [
    ("gan.train", remove(IMAGE)), ("diffusion.train", train_csv(NINE)),
    ("dann.train", put("hw2_data/digits/usps/train.csv", NINE))])
def test_other_data_under_the_same_name_are_not_resumed(module, change, here, fast, capfd):
    assert run(module) == 0
    change()
    before = contents()
    capfd.readouterr()
    assert run(module, "--steps", "4", "--resume", "auto") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "trained with another content of --data" in line
    assert contents() == before


def test_a_full_disk_under_stdout_is_one_line(here):
    project = Path(__file__).resolve().parent.parent
    env = os.environ | {"PYTHONPATH": str(project), "PYTHONUNBUFFERED": ""}  # what is buffered fails at the very end
    command = [sys.executable, "-m", "gan.train", "--model", "dcgan", "--data", "hw2_data", "--batch-size", "4",
               "--dry-run"]  # logs what it loads, and prints
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, env=env, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: standard output: cannot write (No space left on device)")
    assert done.returncode == 2
