"""`--config`: a new run with the settings of another one, for every trainer."""

import json
from pathlib import Path

import pytest

from common import cli
from common.errors import UserError
from dann import train as dann_train
from diffusion import adversarial, distill
from diffusion import train as diffusion_train
from gan import train as gan_train

SHARED = "--data mine --steps 7 --batch-size 4 --seed 5 --precision bf16 --log-every 3 --sample-every 2 --save-every 9"
TRAINERS = {  # each with flags other than their defaults
    "gan.train": (gan_train.parse_args, "--model sagan --width 32 --g-lr 3e-4 --augment --no-attention"),
    "diffusion.train": (diffusion_train.parse_args, "--width 8 --lr 1e-3 --no-min-snr --prediction noise --init a.pt"),
    "diffusion.adversarial": (adversarial.parse_args, "--student s.pt --teacher t.pt --generated a --lr 1e-3"),
    "diffusion.distill": (distill.parse_args, "--teacher t.pt --lr-schedule constant"),
    "dann.train": (dann_train.parse_args, "--target svhn --lr 0.1 --no-geometry --alignment --dropout 0.3"),
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("hw2_data").mkdir()


def parse(module: str, flags: str) -> cli.Settings:
    return TRAINERS[module][0](flags.split())


def stored(module: str, flags: str) -> dict:
    """Return what args.json has of a run."""
    settings = {name: value for name, value in vars(parse(module, flags)).items() if name not in cli.NOT_STORED}
    return json.loads(json.dumps(settings, default=str))


def write(module: str, flags: str = "", **changes) -> dict:
    """Make the folder and the released file of a run; return its settings."""
    settings = stored(module, f"{TRAINERS[module][1]} {SHARED} --device cpu --out old {flags}") | changes
    Path("old").mkdir(exist_ok=True)
    Path("old/args.json").write_text(json.dumps(settings))
    Path("manifest.json").write_text(json.dumps({"net.pt": {"args": settings}}))
    return settings


@pytest.mark.parametrize("module", TRAINERS)
def test_settings_are_those_of_the_run_but_not_its_place(module):
    before = write(module)
    assert [before[name] for name in ("data", "steps", "batch_size", "seed", "precision", "log_every")] == [
        "mine", 7, 4, 5, "bf16", 3]
    for path in ("old", "old/args.json"):
        assert stored(module, f"--config {path} --out new") == before | {"out": "new", "device": "auto"}
    # A released file comes from any machine.
    assert stored(module, "--config net.pt --out new") == before | {
        "out": "new", "device": "auto", "data": "hw2_data", "precision": "auto"}
    write(module, data="builtin")
    assert stored(module, "--config net.pt")["data"] == "builtin"


@pytest.mark.parametrize("module", TRAINERS)
def test_flags_beside_it_win(module, capsys):
    before = write(module)
    args = parse(module, "--config old --seed 0 --batch-size=2 --data else --device cpu --out new")
    assert {name: value for name, value in vars(args).items() if name in before and value != before[name]
            and str(value) != before[name]} == {"seed": 0, "batch_size": 2, "data": "else", "out": Path("new")}
    assert "config" not in vars(args)
    chosen, default = cli.describe(args).splitlines()
    assert " steps=7" in chosen and " batch_size=2 " in chosen and " seed=0" in default
    epochs = parse(module, "--config old --epochs 3")
    assert epochs.epochs == 3 and epochs.steps != 7


def test_seeds_are_given_instead_of_the_seed():
    write("dann.train")
    args = parse("dann.train", "--config old --seeds 3 4 --out new")
    assert (args.seeds, args.seed, args.lr) == ([3, 4], 0, 0.1)


def test_another_model_or_recipe_brings_its_own_defaults():
    write("gan.train")
    same = parse("gan.train", "--config old --model sagan")
    other = parse("gan.train", "--config old --model dcgan")
    assert (same.loss, same.g_lr, same.d_lr, same.width) == ("hinge", 3e-4, 4e-4, 32)
    assert (other.loss, other.g_lr, other.d_lr, other.width) == ("non-saturating", 2e-4, 2e-4, 32)
    assert (other.data, other.seed) == ("mine", 5)

    write("dann.train")
    plus, plain, source = (parse("dann.train", f"--config old {flags}")
                           for flags in ("--recipe plus", "--recipe=plain", "--mode source"))
    assert (plus.teacher, plus.adversary, plus.geometry, plus.lr) == (True, False, False, 0.1)
    assert (plain.teacher, plain.adversary, plain.geometry, plain.lr, plain.seed) == (False, True, True, 1e-3, 5)
    assert (source.teacher, source.adversary, source.recipe, source.lr, source.target) == (
        False, False, None, 1e-3, "svhn")


def test_a_folder_that_is_not_named_is_that_of_its_settings():
    write("dann.train")
    assert parse("dann.train", "--config old").out == Path("runs/dann-mnistm-svhn-dann-plus")
    write("gan.train")
    assert parse("gan.train", "--config old").out == Path("runs/gan-sagan")


@pytest.mark.parametrize("resume", ["auto", "old/last.pt"])
def test_a_resumed_run_keeps_its_own_settings(resume):
    write("diffusion.train", lr=0.25)
    other = stored("diffusion.train", "--lr 0.5 --warmup 3 --data other")
    Path("other.json").write_text(json.dumps(other))
    args = parse("diffusion.train", f"--config other.json --out old --seed 1 --resume {resume}")
    assert (args.lr, args.warmup, args.data, args.seed, args.resume) == (0.25, 500, "mine", 1, resume)
    started = parse("diffusion.train", "--config other.json --out new --resume auto")  # nothing there yet
    assert (started.lr, started.warmup, started.data) == (0.5, 3, "other")


@pytest.mark.parametrize("module", TRAINERS)
def test_another_version_is_one_line_that_names_what_differs(module):
    settings = write(module)
    older = {name: settings[name] for name in settings.keys() - {"seed"}}
    for content, said in ((older, "seed"), (settings | {"sync_bn": False}, "sync_bn"),
                          (settings | dict.fromkeys("abcd"), "a, b, c, ...")):
        Path("old/args.json").write_text(json.dumps(content))
        Path("manifest.json").write_text(json.dumps({"net.pt": {"args": content}}))
        for path in ("old", "old/args.json", "net.pt"):
            with pytest.raises(UserError) as mistake:
                parse(module, f"--config {path}")
            assert str(mistake.value) == (f"{path} has the settings of another command or version, which differ in "
                                          f"{said}: start without --config")


def test_a_value_that_no_flag_would_take_names_the_file():
    write("diffusion.train", width="wide")
    with pytest.raises(UserError, match=r"^old/args\.json: argument --width: got 'wide', expected an integer"):
        parse("diffusion.train", "--config old")
