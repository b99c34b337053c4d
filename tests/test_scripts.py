"""The scripts: which environment they take, what they pass on, and each task end to end on embedded data."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import checkpoint
from common.data import domains, synthetic_faces
from common.data.folder import fingerprint, load_digits
from diffusion import classifier

PROJECT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((PROJECT / "scripts").glob("*.sh"))
COMMANDS = [path for path in SCRIPTS if path.name != "setup.sh"]
# The embedded sets, cut down so that the tests' seconds go to the commands.
COUNTS = {"DIGIT_COUNTS": {"train": 32, "val": 24, "test": 8}, "FACE_COUNTS": {"train": 16, "val": 16}}
SITE = f"""
try:
    from common.data import domains, synthetic_faces
except ImportError:  # before setup.sh has told Python where the project is
    pass
else:
    domains.DIGIT_COUNTS, synthetic_faces.FACE_COUNTS = {COUNTS["DIGIT_COUNTS"]}, {COUNTS["FACE_COUNTS"]}
"""
# So is the chain that draws the preview of a diffusion run.
SHORT_CHAIN = """
    from diffusion import samplers
    times = samplers.ddim_times
    samplers.ddim_times = lambda num_timesteps, num_steps: times(num_timesteps, min(num_steps, 2))
"""


def bash(script, *args, cwd, **env):
    """Run a script; return (exit code, stdout, stderr). An entry of `env` that is None is taken out."""
    env = {name: value for name, value in (dict(os.environ) | env).items() if value is not None}
    done = subprocess.run(["bash", str(script), *map(str, args)], cwd=cwd, env=env, capture_output=True,
                          text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def script(name):
    return PROJECT / "scripts" / name


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


# Without running anything


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_syntax(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_every_script_says_what_it_does_and_calls_setup(path):
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[1].startswith("# ")
    code = [line for line in lines if not line.startswith("#")]
    assert code[0] == 'source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"'


def test_continuous_integration_runs_the_test_script():
    assert (PROJECT / ".ci" / "run").read_text().strip() == "bash scripts/test.sh"


# With a stand-in for Python that writes down how it is called


@pytest.fixture
def recorded(tmp_path):
    """Return a function: run a script; return the (cwd, PYTHONPATH, arguments) of each call of Python."""
    log = tmp_path / "calls"
    # A call is its working directory, PYTHONPATH and arguments, each ended by \\x1f, and a line end.
    write_program(tmp_path / "venv" / "bin" / "python", f"""[[ $1 == -c ]] && exit 0
        printf '%s\\x1f' "$PWD" "$PYTHONPATH" "$@" >>"{log}"; echo >>"{log}" """)

    def record(path, *args, **env):
        here = tmp_path / "some where"
        here.mkdir(exist_ok=True)
        log.unlink(missing_ok=True)
        assert bash(path, *args, cwd=here, VIRTUAL_ENV=str(tmp_path / "venv"), **env)[0] == 0
        calls = [line.split("\x1f")[:-1] for line in log.read_text().splitlines()]
        return [(Path(cwd), python_path, rest) for cwd, python_path, *rest in calls]

    return record


@pytest.mark.parametrize(("name", "expected"), [
    ("train_gan.sh", [["-m", "gan.train", "--model", "dcgan"], ["-m", "gan.train", "--model", "sagan"]]),
    ("train_diffusion.sh", [["-m", "diffusion.train"]]),
    ("train_dann.sh", [["-m", "dann.train", "--source", "mnistm", "--target", "usps", "--mode", *row.split()]
                       for row in ("source", "dann --recipe plain", "dann --recipe plus", "target")]),
    ("infer_gan.sh", [["-m", "gan.inference"]]),
    ("infer_diffusion.sh", [["-m", "diffusion.inference"]]),
    ("infer_dann.sh", [["-m", "dann.inference"]]),
    ("prepare_data.sh", [["-m", "common.prepare"]]),
    ("report.sh", [["-m", "scripts.report"]]),
    ("test.sh", [["-m", "pytest", "tests/", "--numprocesses", "2", "--dist", "worksteal"]]),
])
def test_arguments_are_passed_on_as_they_are(recorded, tmp_path, name, expected):
    more = ["two words", "*", "$HOME", "", "--flag"]
    calls = recorded(script(name), *more)
    assert [arguments for _, _, arguments in calls] == [[*first, *more] for first in expected]
    # Paths that a user types mean what they mean where he stands; the tests have none.
    assert {cwd for cwd, _, _ in calls} == {PROJECT if name == "test.sh" else tmp_path / "some where"}


@pytest.mark.parametrize(("name", "flag"), [
    *(("train_gan.sh", flag) for flag in ("--out X", "--out=X", "--model sagan", "--no-attention",
                                          "--resume x.pt", "--resume=auto.pt")),
    *(("train_dann.sh", flag) for flag in ("--out X", "--mode dann", "--recipe=plus", "--no-adversary", "--no-teacher",
                                           "--resume x.pt"))])
def test_a_flag_that_does_not_suit_all_trainings_of_a_script_is_one_line_before_the_first(tmp_path, name, flag):
    python = write_program(tmp_path / "venv" / "bin" / "python", "[[ $1 == -c ]] || echo trains")
    code, out, err = bash(script(name), "--steps", "2", *flag.split(), "--width", "8", cwd=tmp_path,
                          VIRTUAL_ENV=str(python.parent.parent))
    assert (code, out) == (2, "")
    named = re.split("[ =]", flag)[0]
    assert re.fullmatch(rf"error: {named} is for one of the networks .*: use python -m (gan|dann)\.train --m.*\n", err)


def test_flags_that_suit_all_trainings_of_a_script_pass(recorded):
    for flags in (["--resume", "auto"], ["--seeds", "0", "1", "--resume=auto", "--target", "svhn"], ["--no-geometry"]):
        for name, trainings in (("train_gan.sh", 2), ("train_dann.sh", 4)):
            assert [call[-len(flags):] for _, _, call in recorded(script(name), *flags)] == trainings * [flags]


def test_modules_are_found_first_in_the_project(recorded):
    for before, expected in ((None, str(PROJECT)), ("/a:/b", f"{PROJECT}:/a:/b")):
        ((_, path, _),) = recorded(script("infer_gan.sh"), "x", PYTHONPATH=before)
        assert path == expected


def test_every_command_of_the_demo_is_one(recorded):
    calls = recorded(script("demo.sh"))
    modules = [arguments[1] for _, _, arguments in calls]
    for task in ("gan", "diffusion", "dann"):
        assert f"{task}.train" in modules and f"{task}.evaluate" in modules
    for cwd, _, (flag, module, *arguments) in calls:
        assert (cwd, flag) == (PROJECT, "-m")
        importlib.import_module(module).parse_args(arguments)  # an unknown flag would be a UserError


MODULES = [f"{task}.{command}" for task in ("gan", "diffusion", "dann") for command in
           ("train", "inference", "evaluate")] + ["common.prepare", "common.release"]


@pytest.mark.parametrize("module", MODULES)
def test_help_explains_each_command(module, capsys):
    command = importlib.import_module(module)
    with pytest.raises(SystemExit) as end:
        command.parse_args(["--help"])
    assert end.value.code == 0
    assert command.__doc__.strip() in capsys.readouterr().out
    assert f"\n    python -m {module} " in command.__doc__


# Which environment


def test_an_active_environment_that_lacks_packages_is_one_line(tmp_path):
    write_program(tmp_path / "venv" / "bin" / "python", "exit 1")
    code, out, err = bash(script("infer_gan.sh"), "x", cwd=tmp_path, VIRTUAL_ENV=str(tmp_path / "venv"))
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: the active environment \S+/venv lacks packages: pip install -r \S+\n", err)
    code, _, err = bash(script("infer_gan.sh"), "x", cwd=tmp_path, VIRTUAL_ENV=str(tmp_path / "gone"))
    assert (code, err.count("\n"), "gone lacks packages" in err) == (2, 1, True)


@pytest.mark.parametrize(("version", "noted"), [
    ("2.10.0+cu128", True), ("2.11.0", False), ("2.12.1+cpu", False), ("2.13.0a0+git1f2e3d4", True), ("3.0.0", True)])
def test_another_pytorch_in_the_active_environment_is_a_note(tmp_path, version, noted):
    """The stand-in answers the question after the packages with the Python that runs this, and another version."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(f"import importlib.metadata\nimportlib.metadata.version = "
                                           f"lambda name: {version!r}\n")
    write_program(tmp_path / "venv" / "bin" / "python", f"""[[ $1 == -c ]] || {{ echo "[$*]"; exit; }}
        PYTHONPATH="{site}" exec "{sys.executable}" "$@" """)
    code, out, err = bash(script("infer_gan.sh"), "x", cwd=tmp_path, VIRTUAL_ENV=str(tmp_path / "venv"))
    assert (code, out) == (0, "[-m gan.inference x]\n")
    note = f"note: the active environment has PyTorch {version}; tested are 2.11 to 2.12\n" * noted
    assert err == f"{note}+ python -m gan.inference x\n"


def test_the_first_page_names_the_same_versions_of_pytorch():
    named = re.search(r"tested are (.*)'\)", script("setup.sh").read_text())[1]
    assert f"PyTorch {named}" in (PROJECT / "README.md").read_text()


@pytest.fixture
def copy(tmp_path):
    """A copy of the scripts in a project of their own, beside a stand-in for the system's Python."""
    project = tmp_path / "a project"
    shutil.copytree(PROJECT / "scripts", project / "scripts")
    shutil.copy(PROJECT / "requirements.txt", project)
    write_program(tmp_path / "bin" / "python3", """case "$1 $2" in
        -c*) exit ${TOO_OLD:-0} ;;
        --version*) echo Python 3.9.1 ;;
        "-m venv") mkdir -p "$3/bin" && cp "$(dirname "$0")/venv_python" "$3/bin/python" ;;
        esac""")
    write_program(tmp_path / "bin" / "venv_python", """echo "[$*]"
        [[ "$1 $2" != "-m pip" ]] || exit ${PIP_FAILS:-0}""")
    return project


def bare(copy, **env):
    path = f"{copy.parent / 'bin'}:{os.environ['PATH']}"
    env = {"VIRTUAL_ENV": None, "CONDA_DEFAULT_ENV": None, "PATH": path} | env
    return bash(copy / "scripts" / "infer_gan.sh", "x", cwd=copy, **env)


def test_without_an_environment_one_is_made_once(copy):
    code, out, _ = bare(copy)
    assert code == 0
    assert re.search(r"\[-m pip install .*-r .*requirements\.txt\]\n\[-m gan\.inference x\]\n$", out)
    assert bare(copy)[:2] == (0, "[-m gan.inference x]\n")
    (copy / "requirements.txt").write_text("another\n")
    assert "pip install" in bare(copy)[1]


def test_an_interrupted_installation_is_taken_up_again(copy):
    code, out, _ = bare(copy, PIP_FAILS="1")
    assert code == 1 and "gan.inference" not in out
    code, out, _ = bare(copy)
    assert code == 0 and "[-m pip install" in out and "[-m gan.inference x]" in out


def test_an_old_python_is_one_line(copy):
    error = "error: Python 3.11 or newer is needed, python3 is Python 3.9.1\n"
    assert bare(copy, TOO_OLD="1") == (2, "", error)
    assert not (copy / ".venv").exists()


def test_an_environment_of_conda_is_used_unless_it_is_the_base_of_all(copy):
    write_program(copy.parent / "conda" / "bin" / "python", """[[ $1 == -c ]] || echo conda""")
    conda = {"CONDA_PREFIX": str(copy.parent / "conda"), "CONDA_DEFAULT_ENV": "faces"}
    assert bare(copy, **conda)[:2] == (0, "conda\n")
    assert "[-m gan.inference x]" in bare(copy, **conda | {"CONDA_DEFAULT_ENV": "base"})[1]


# For real, with the Python that runs this, from another folder


@pytest.fixture
def real(tmp_path):
    """Return a function that runs a script in `tmp_path` on the small embedded sets."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)

    def run(name, *args):
        return bash(script(name), *args, cwd=tmp_path, VIRTUAL_ENV=sys.prefix, OMP_NUM_THREADS="1",
                    PYTHONPATH=str(tmp_path / "site"))

    return run


@pytest.fixture
def few(monkeypatch, tmp_path):
    """The same small sets and the same working directory in this process."""
    monkeypatch.setattr(domains, "DIGIT_COUNTS", COUNTS["DIGIT_COUNTS"])
    monkeypatch.setattr(synthetic_faces, "FACE_COUNTS", COUNTS["FACE_COUNTS"])
    monkeypatch.chdir(tmp_path)


def evaluate(task, *args):
    """Run a task's evaluate in this process."""
    assert importlib.import_module(f"{task}.evaluate").main([str(arg) for arg in args]) == 0


SMALL = ["--data", "builtin", "--device", "cpu", "--steps", "2", "--batch-size", "4"]


def finite(scores, *names):
    return all(np.isfinite(scores[name]).all() for name in names)


@pytest.mark.slow
def test_a_dry_run_prints_the_command_and_the_settings(real, tmp_path):
    flags = ["--data", "builtin", "--dry-run", "--width", "8", "--batch-size", "4"]
    code, out, err = real("train_diffusion.sh", *flags)
    assert (code, err) == (0, f"+ python -m diffusion.train {' '.join(flags)}\n")
    _, chosen, defaults, costs = out.splitlines()  # after what was loaded
    assert {"width=8", "batch_size=4", "data=builtin"} < set(chosen.split()) and "warmup=500" in defaults.split()
    assert " parameters, " in costs
    assert os.listdir(tmp_path) == ["site"]


def test_an_unknown_flag_ends_all_in_one_line(real, tmp_path):
    code, out, err = real("train_gan.sh", "--no-such-flag")
    assert (code, out) == (2, "")
    assert err == ("+ python -m gan.train --model dcgan --no-such-flag\n"
                   "error: unrecognized arguments: --no-such-flag (--help lists the flags)\n")
    assert os.listdir(tmp_path) == ["site"]


def test_only_one_process_of_the_suite_has_the_gpu(recorded):
    ((_, _, arguments),) = recorded(script("test.sh"), "--device", "cuda", "-x")
    assert arguments == ["-m", "pytest", "tests/", "--device", "cuda", "-x"]


def test_the_test_script_runs_pytest_in_the_project(real):
    code, out, _ = real("test.sh", "--version")
    assert code == 0 and out.startswith("pytest")


@pytest.mark.slow
def test_faces_end_to_end(real, few, tmp_path):
    code, out, err = real("train_gan.sh", *SMALL, "--width", "8")
    assert code == 0, err
    for model in ("dcgan", "sagan"):
        run = tmp_path / "runs" / f"gan-{model}"
        assert sorted(path.name for path in run.iterdir()) == [
            ".lock", "args.json", "curves.png", "done", "last.pt", "metrics.jsonl", "samples", "versions.json"]
        assert f"done: runs/gan-{model}/last.pt" in out
    code, _, err = real("infer_gan.sh", "faces", "--weights", "runs/gan-dcgan/last.pt", "--n", "10")
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "faces").iterdir()) == [f"{i:04d}.png" for i in range(10)]
    evaluate("gan", "faces", "--reference", "builtin", "--out", "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["images"] == 8 and finite(scores, "swd", "swd_real", "recall")


@pytest.mark.slow
def test_digits_end_to_end(real, few, tmp_path, monkeypatch):
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE + SHORT_CHAIN)
    code, out, err = real("train_diffusion.sh", *SMALL, "--width", "8", "--out", "out")
    assert code == 0, err
    assert (tmp_path / "out" / "done").exists() and "done: out/last.pt" in out
    code, _, err = real("infer_diffusion.sh", "digits", "--weights", "out/last.pt", "--per-digit", "3",
                        "--steps", "2")
    assert code == 0, err
    assert len(list((tmp_path / "digits").iterdir())) == 30
    # Training the classifier takes longer than all the rest; its own test trains it. This one has learnt nothing.
    monkeypatch.setattr(classifier, "MIN_ACCURACY", 0)
    data = fingerprint(load_digits("builtin", "mnistm", "train"))
    checkpoint.save(tmp_path / "classifier.pt", {"kind": classifier.KIND, "model_args": {"data": data},
                                                 "weights": classifier.DigitClassifier().state_dict()})
    evaluate("diffusion", "digits", "--data", "builtin", "--classifier", "classifier.pt",
             "--out", "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["images"] == 30 and finite(scores, "accuracy", "frechet", "frechet_real", "variety")


@pytest.mark.slow
def test_adaptation_end_to_end(real, few, tmp_path):
    code, out, err = real("train_dann.sh", *SMALL)
    assert code == 0, err
    assert [line.split(":")[0] for line in out.splitlines() if " -> " in line] == [
        f"mnistm -> usps {row}" for row in ("source", "dann plain", "dann plus", "target")]
    images, _ = domains.embedded_digits("usps", "test")
    (tmp_path / "usps").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "usps" / f"{i}.png")
    code, _, err = real("infer_dann.sh", "usps", "OUT.csv", "--weights", "runs/dann-mnistm-usps-dann-plus/last.pt")
    assert code == 0, err
    rows = (tmp_path / "OUT.csv").read_text().splitlines()
    assert rows[0] == "image_name,label"
    assert [row.split(",")[0] for row in rows[1:]] == [f"{i}.png" for i in range(len(images))]
    evaluate("dann", *sorted((tmp_path / "runs").iterdir()), "--out", "table.md")
    table = (tmp_path / "table.md").read_text()
    assert all(row in table for row in ("trained on source", "DANN", "plus", "trained on target"))
