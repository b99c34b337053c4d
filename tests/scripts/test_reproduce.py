"""The reproduction: its lines are the recipes of what is shipped, a run continues, and a wrong score is marked."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common import release
from common.errors import UserError
from common.files import write_json
from dann.evaluate import build_table
from dann.recipes import changes_of
from gan import train as gan_train
from scripts import reproduce
from tests.trainers import make_small

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "scripts" / "reproduce.sh"
# Writes down its arguments, and what `plan` reads; a training leaves a finished run folder. $FAIL and $STOP name calls.
STAND_IN = """#!/bin/bash
[[ $1 != -c ]] || exit 0
printf '%s\\x1f' "$@" >>"$LOG"; echo >>"$LOG"
[[ "$2 $3" != "scripts.reproduce plan" ]] || cat >"$LOG.lines"
[[ -z $FAIL || " $* " != *" $FAIL "* ]] || { echo "error: $FAIL is wrong"; exit 2; }
[[ -z $STOP || " $* " != *" $STOP "* ]] || exit 143
[[ $2 != common.release ]] || { mkdir -p "${4%/*}" && touch "$4"; }
while [[ $2 != *.evaluate && $# -gt 2 ]]; do
    [[ $1 != --out ]] || { mkdir -p "$2" && touch "$2/done"; }
    shift
done
"""


def bash(*args, cwd, **env):
    done = subprocess.run(["bash", str(SCRIPT), *map(str, args)], cwd=cwd, env=os.environ | env, capture_output=True,
                          text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def recorded(tmp_path):
    """Return a function: run the script with the stand-in; return its exit code, output, errors, and calls."""
    python, log = tmp_path / "venv/bin/python", tmp_path / "log"
    python.parent.mkdir(parents=True)
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def run(*args, fail="", stop=""):
        log.write_text("")
        result = bash(*args, cwd=tmp_path, VIRTUAL_ENV=str(tmp_path / "venv"), LOG=str(log), FAIL=fail, STOP=stop)
        return *result, [line.split("\x1f")[1:-1] for line in log.read_text().splitlines()]

    return run


@pytest.fixture
def lines(recorded, tmp_path):
    code, _, err, _ = recorded("--dry-run", "--out", "some where")
    assert code == 0, err
    return (tmp_path / "log.lines").read_text().splitlines()


def settings_of(lines, *flags):
    return {name: args for name, _, args in (reproduce.read_line(line, ["--data", "hw2_data", *flags])
                                             for line in lines)}


# Its lines


def test_every_released_file_has_a_line_with_its_recipe(lines):
    settings = settings_of(lines)
    for name, entry in json.loads((reproduce.RELEASED / "manifest.json").read_text()).items():
        args = settings[name.removesuffix(".pt")]
        own = {"step": args.steps, "args": {key: value for key, value in vars(args).items() if value is not None}}
        assert (name, reproduce.differences(entry, own)) == (name, "")


def test_every_cell_of_the_table_has_a_line(lines):
    every = [(name, vars(args), seed) for name, args in settings_of(lines).items() if "seeds" in args
             for seed in args.seeds]
    found = [settings | {"seed": seed, "changes": changes_of(settings), "oracle": None, "val": 0.5, "test": 0.5,
                         "inputs": {}, "parts": {}, "run_dir": name} for name, settings, seed in every]

    def key(cell):
        return cell["row"], cell["column"], cell["steps"], cell["seeds"]

    assert sorted(map(key, build_table(found))) == sorted(
        map(key, json.loads((reproduce.REPORT / "dann.json").read_text())))


def test_every_command_parses(recorded):
    code, _, err, calls = recorded("--data", "builtin", "--out", "out", "--steps", "20")
    assert code == 0, err
    for module, *arguments in calls:
        importlib.import_module(module).parse_args(arguments)
        if arguments[0] == "until":
            importlib.import_module(arguments[2]).parse_args(arguments[3:])
    modules = [module for module, *_ in calls]
    assert modules.count("common.release") == len(json.loads((reproduce.RELEASED / "manifest.json").read_text()))
    assert modules.count("gan.evaluate") == modules.count("diffusion.evaluate") == 2
    generated = "diffusion.inference out/images/diffusion-8 --weights out/runs/diffusion-8/last.pt --per-digit 1200"
    (first,) = (i for i, call in enumerate(calls) if " ".join(call).startswith(generated))
    (second,) = (i for i, call in enumerate(calls) if call[0] == "diffusion.adversarial")
    assert first < second and calls[second][calls[second].index("--generated") + 1] == "out/images/diffusion-8"


@pytest.mark.parametrize(("wanted", "count"),
                         [("faces", 2), ("digits", 5), ("dann-mnistm-svhn", 1), ("sagan faces", 2)])
def test_parts_and_names_choose_lines(recorded, tmp_path, wanted, count):
    assert recorded(*wanted.split(), "--dry-run")[0] == 0
    assert len((tmp_path / "log.lines").read_text().splitlines()) == count


# What they take


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A project with one released file of each kind and round rates; return its folder."""
    monkeypatch.setattr(reproduce, "RELEASED", tmp_path / "weights")
    monkeypatch.setattr(reproduce, "REPORT", tmp_path / "report")
    write_json(tmp_path / "weights" / "manifest.json", {
        "dcgan.pt": {"kind": "gan/dcgan", "step": 8000, "args": {"batch_size": 64}, "sha256": "a", "seconds": 42,
                     "versions": {"machine": "NVIDIA H200"},
                     "scores": {"swd": [10.0, 12.0, 14.0], "one_face": 0.8}},
        "dann-mnistm-svhn.pt": {"kind": "dann", "step": 8000, "sha256": "b", "seconds": 1,
                                "args": {"batch_size": 128, "lr": 1e-3, "out": "runs/a"},
                                "versions": {"machine": "Intel Xeon, 1 core"}, "scores": result(0.91)}})
    rates = {name: {"ours": 100} for costs in reproduce.COSTS.values() for name in costs}
    for name, machine in (("benchmark", "Xeon, 2 cores"), ("benchmark-gpu", "NVIDIA H200")):
        write_json(tmp_path / "report" / f"{name}.json", {"machine": machine, "images_per_second": rates})
    write_json(tmp_path / "report" / "dann.json", [
        {"row": "plus", "column": "mnistm -> svhn", "steps": 8000, "seeds": [0, 1, 2],
         "test": {"mean": 0.915, "std": 0.01}},
        {"row": "trained on source", "column": "mnistm -> svhn", "steps": 8000, "seeds": [0],
         "test": {"mean": 0.44, "std": None}}])
    return tmp_path


def result(test, **changes):
    return {"data": "hw2_data", "source": "mnistm", "target": "svhn", "mode": "dann", "recipe": "plus", "seed": 0,
            "changes": [], "steps": 8000, "batch_size": 128, "precision": "fp32", "inputs": {}, "parts": {},
            "oracle": None, "test": test} | changes


def test_the_plan_says_what_was_measured_and_what_is_computed(shipped, lines):
    table = reproduce.plan(lines, ["--data", "builtin", "--dry-run"])
    for name, cpu, gpu in (("dcgan", "1:25:20 computed", "0:00:42 measured"),
                           ("sagan", "0:51:31 computed", "0:51:31 computed"),  # 4600 x 32 x 2.1 / 100 s
                           ("dann-mnistm-svhn", "17:04:00 computed", "17:04:00 computed"),
                           ("target-mnistm", "2:50:40 computed", "2:50:40 computed")):
        assert f"| {name} | {cpu} | {gpu} | " in table
    assert len(re.findall(r"^\| (?!line|---|all)", table, re.MULTILINE)) == len(lines)
    assert "throughput of Xeon, 2 cores and NVIDIA H200" in table and "--data builtin" in table
    assert "| dcgan | 0:00:13 computed | 0:00:13 computed |" in reproduce.plan(
        lines[:1], ["--data", "builtin", "--dry-run", "--steps", "20"])


# Mistakes


def test_an_unknown_flag_ends_before_anything_is_trained(lines):
    with pytest.raises(UserError, match="unrecognized arguments: --stesp"):
        reproduce.plan(lines, ["--data", "builtin", "--stesp", "3"])


def test_a_gpu_that_is_missing_ends_before_anything_is_trained(lines, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    flags = ["--data", "builtin", "--device", "cuda"]
    with pytest.raises(UserError, match="no GPU"):
        reproduce.plan(lines, flags)
    reproduce.plan(lines, [*flags, "--dry-run"])


@pytest.mark.parametrize(("words", "message"), [
    ("nothing", "nothing: expected all, faces, digits, domains, or the name of a line"),
    ("--out", "--out: expected a value"),
    ("--steps 3 --data builtin", "--data: write it before the flags of the trainings"),
    ("--steps 3 --device=cpu", "--device=cpu: write it before the flags of the trainings"),
    ("--seeds 3", "--seeds is for one of the networks that this script trains: use the command of its line"),
    ("--resume runs/last.pt", "--resume is for one of .*"),
    ("--data nowhere", "no data folder nowhere: build it with .*, or use `--data builtin`")])
def test_a_mistake_is_one_line(recorded, tmp_path, words, message):
    code, _, err, calls = recorded(*words.split())
    assert code == 2 and re.fullmatch(rf"(\+ .*plan.*\n)?error: {message}\n", err)
    assert all(call[:2] == ["scripts.reproduce", "plan"] for call in calls)
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_written_is_one_line(recorded, tmp_path):
    (tmp_path / "out").write_text("a file")
    code, _, err, _ = recorded(*START)
    assert code == 2 and err.endswith("\nerror: cannot write out: name another --out\n")


# A run of several lines, stopped and continued

START = ("faces", "--data", "builtin", "--out", "out")


def test_a_second_run_skips_what_is_done(recorded):
    assert recorded(*START)[0] == 0
    code, out, err, calls = recorded(*START, "--device", "cpu")  # a device does not change what is trained
    assert (code, [call[1] for call in calls]) == (0, ["plan", "compare"]), err
    assert "dcgan: done already\nsagan: done already\n" in out


def test_a_line_that_fails_does_not_stop_the_others_and_is_tried_again(recorded, tmp_path):
    code, _, err, calls = recorded(*START, fail="dcgan")
    assert code == 2 and "\nerror: dcgan: error: dcgan is wrong\n" in err
    assert err.splitlines()[-1].startswith("error: not finished: dcgan: ")
    assert [call[:2] for call in calls][-1] == ["scripts.reproduce", "compare"]
    assert any(call[0] == "common.release" and "out/weights/sagan.pt" in call for call in calls)
    assert "error: dcgan is wrong" in (tmp_path / "out/logs/dcgan.log").read_text()
    code, out, _, calls = recorded(*START)
    assert (code, "sagan: done already\n" in out) == (0, True)
    assert [call[0] for call in calls] == ["scripts.reproduce", "gan.train", "gan.inference", "gan.evaluate",
                                           "common.release", "scripts.reproduce"]


def test_a_stop_ends_the_script_and_the_same_command_continues(recorded):
    code, _, err, calls = recorded(*START, stop="gan.evaluate")
    assert (code, calls[-1][0], len(calls)) == (143, "gan.evaluate", 4)
    assert err.endswith("stopped in dcgan: the same command continues\n")
    code, _, err, calls = recorded(*START)
    assert (code, [call[0] for call in calls].count("common.release")) == (0, 2), err
    assert all(call[call.index("--resume") + 1] == "auto" for call in calls if "gan.train" in call)


def test_a_folder_keeps_one_command_per_line(recorded):
    assert recorded(*START, "--steps", "20")[0] == 0
    code, _, err, calls = recorded(*START)
    assert (code, [call[1] for call in calls]) == (2, ["plan", "compare"])
    assert "error: out holds dcgan by another command (out/logs/dcgan.command): name another --out\n" in err


def test_a_student_waits_for_its_teacher(recorded):
    code, _, err, calls = recorded("digits", "--data", "builtin", "--out", "out", fail="--steps 750")
    assert code == 2 and "error: diffusion-4: out/runs/diffusion-8 is not finished\n" in err
    assert sum(call[0] == "diffusion.distill" for call in calls) == 1


def test_a_student_waits_for_the_released_teacher(recorded):
    code, _, err, calls = recorded("digits", "--data", "builtin", "--out", "out", fail="--steps 7800")
    assert code == 2 and "error: diffusion-8: out/weights/diffusion.pt is not released\n" in err
    assert not any(call[0] == "diffusion.distill" for call in calls)


# A training that ends before its plan


@pytest.mark.slow
def test_until_ends_a_plan_early_and_continues(tmp_path, monkeypatch):
    make_small(monkeypatch.setattr)
    monkeypatch.setattr(gan_train, "Run", gan_train.Run)  # to be restored
    flags = (f"--model dcgan --data builtin --device cpu --width 8 --batch-size 4 --steps 6 --out {tmp_path}/run "
             "--log-every 1 --resume auto").split()
    reproduce.until(3, "gan.train", *flags)
    reproduce.until(5, "gan.train", *flags)  # 3 was not the end
    assert json.loads((tmp_path / "run/done").read_text())["steps"] == 5
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["g_lr"] / 2e-4 for row in rows] == pytest.approx([1, 1, 1, 1, 2 / 3])  # a plan of 6 steps
    release.main([f"{tmp_path}/run", f"{tmp_path}/dcgan.pt"])
    assert json.loads((tmp_path / "manifest.json").read_text())["dcgan.pt"]["step"] == 5


# The comparison


def write_run(shipped, name, **content):
    write_json(shipped / "out/runs" / name / "result.json", result(**content))


def write_here(shipped, name, scores, **changes):
    path = shipped / "out/weights/manifest.json"
    entry = json.loads((shipped / "weights/manifest.json").read_text())[name]
    before = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, before | {name: entry | {"scores": scores} | changes})


def test_a_wrong_score_is_marked(shipped, capsys):
    write_here(shipped, "dcgan.pt", {"swd": [10.0, 12.0, 17.0]})
    write_here(shipped, "dann-mnistm-svhn.pt", result(0.925))
    for seed, test in enumerate((0.88, 0.89, 0.90)):
        write_run(shipped, f"plus-seed{seed}", test=test, seed=seed)
    write_run(shipped, "source-seed0", test=0.45, mode="source", recipe=None)
    assert reproduce.main(["compare", str(shipped / "out")]) == 0
    out = capsys.readouterr().out
    assert out == (shipped / "out/comparison.md").read_text()
    assert out.splitlines()[2:] == [
        "| dann-mnistm-svhn.pt | accuracy on test | 91.0% | 1.0% | 92.5% | yes |",
        "| dcgan.pt | SWD x1000 | 12.0 | - | 13.0 | no spread stated |",
        "| dcgan.pt | exactly one face | 80.0% | - | - | not scored here |",
        "| mnistm -> svhn, trained on source, 1 of 1 seeds | accuracy on test | 44.0% | - | 45.0% | no spread stated |",
        "| mnistm -> svhn, plus, 3 of 3 seeds | accuracy on test | 91.5% | 1.0% | 89.0% | NO |"]


def test_what_was_trained_otherwise_is_named(shipped, capsys):
    write_here(shipped, "dann-mnistm-svhn.pt", result(0.5), step=20, args={"lr": 2e-3, "out": "elsewhere"})
    write_run(shipped, "plus-seed1", test=0.9, seed=1, steps=20)
    reproduce.compare(shipped / "out")
    out = capsys.readouterr().out
    assert "| 50.0% | NO |" in out
    assert "\ndann-mnistm-svhn.pt was trained with step 20 (shipped: 8000), lr 0.002 (shipped: 0.001).\n" in out
    assert "\nmnistm -> svhn, plus, 1 of 3 seeds: 20 steps (shipped: 8000).\n" in out


def test_nothing_trained_yet_is_an_empty_table(shipped, capsys):
    reproduce.compare(shipped / "out")
    assert capsys.readouterr().out.count("\n") == 2


@pytest.mark.parametrize("words", ["", "compare", "compare a b", "until", "until 3", "until x gan.train"])
def test_a_wrong_action_is_named(words):
    with pytest.raises(UserError, match="action|expected"):
        reproduce.parse_args(words.split())


# For real

SITE = """
try:
    from common.data import synthetic_faces
except ImportError:  # before setup.sh has told Python where the project is
    pass
else:
    synthetic_faces.FACE_COUNTS = {"train": 16, "val": 16}
"""


@pytest.mark.slow
def test_a_line_end_to_end(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    env = {"VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path / "site")}
    code, out, err = bash("dcgan", *START[1:], "--device", "cpu", "--steps", "2", "--batch-size", "4", "--width", "8",
                          cwd=tmp_path, **env)
    assert code == 0, err
    assert re.search(r"^\| dcgan.pt \| SWD x1000 \| [0-9.]+ \| .* \| [0-9.]+ \| ", out, re.MULTILINE)
    assert "dcgan.pt was trained with step 2 (shipped: " in out and "data builtin (shipped: hw2_data)" in out
    assert list(json.loads((tmp_path / "out/weights/manifest.json").read_text())) == ["dcgan.pt"]
