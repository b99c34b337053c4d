"""The shared command line: what numbers it takes, and how a command ends."""

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import cli
from common.errors import UserError


@pytest.mark.parametrize(("parse", "text", "value"), [
    (cli.positive_int, "1", 1), (cli.positive_int, "15000", 15_000),
    (cli.seed_number, "0", 0), (cli.seed_number, "4294967295", 2**32 - 1),
    (cli.positive_float, "2e-4", 2e-4), (cli.non_negative_float, "0", 0.0),
    (cli.fraction, "0", 0.0), (cli.fraction, ".999", 0.999),
])
def test_good_numbers(parse, text, value):
    got = parse(text)
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(("parse", "text", "expected"), [
    (cli.positive_int, "0", "an integer >= 1"), (cli.positive_int, "-3", "an integer >= 1"),
    (cli.positive_int, "1.5", "an integer >= 1"), (cli.positive_int, "", "an integer >= 1"),
    (cli.positive_int, "ten", "an integer >= 1"), (cli.positive_int, "inf", "an integer >= 1"),
    (cli.seed_number, "-1", "an integer >= 0 and <= 4294967295"),
    (cli.seed_number, "4294967296", "an integer >= 0 and <= 4294967295"),
    (cli.positive_float, "0", "a number > 0"), (cli.positive_float, "nan", "a number > 0"),
    (cli.positive_float, "inf", "a number > 0"), (cli.positive_float, "1e999", "a number > 0"),
    (cli.non_negative_float, "-0.1", "a number >= 0"), (cli.non_negative_float, "inf", "a number >= 0"),
    (cli.fraction, "1", "a number >= 0 and < 1"), (cli.fraction, "-0.01", "a number >= 0 and < 1"),
    (cli.fraction, "nan", "a number >= 0 and < 1"),
])
def test_bad_numbers_say_what_was_got_and_expected(parse, text, expected):
    with pytest.raises(argparse.ArgumentTypeError) as mistake:
        parse(text)
    assert str(mistake.value) == f"got {text!r}, expected {expected}"


def training_parser():
    parser = cli.Parser("Train something.\n\n    python -m thing --flag\n\nWith 100% care.\n")
    cli.add_training_flags(parser, steps=100, batch_size=8, lr_schedule="linear")
    return parser


def test_training_flags_and_their_defaults():
    args = training_parser().parse_args(["--data", "x"])
    assert vars(args) == {
        "data": "x", "device": "auto", "precision": "auto", "out": None, "steps": 100, "epochs": None,
        "batch_size": 8, "lr_schedule": "linear", "seed": 0, "log_every": 50, "sample_every": 1000,
        "save_every": 1000, "resume": None, "config": None, "tensorboard": False, "dry_run": False, "debug": False}


@pytest.mark.parametrize("argv", [["--batch", "3"], ["--step", "3"], ["--nonsense"], ["stray"], ["--seed"],
                                  ["--seed", "-1"], ["--device", "tpu"], ["--lr-schedule", "falling"],
                                  ["--steps", "2", "--epochs", "2"]])
def test_bad_flags_are_one_line_that_names_the_flag(argv):
    with pytest.raises(UserError) as mistake:
        training_parser().parse_args(argv)
    message = str(mistake.value)
    assert argv[0] in message and "--help" in message and "\n" not in message


def test_tensorboard_without_its_package_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UserError, match=r"--tensorboard needs a package \(.*tensorboard.*\): pip install tensorboard"):
        cli.parse_training_args(training_parser(), ["--data", "x", "--tensorboard"], lambda args: tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_help_is_the_docstring_as_written(capsys):
    with pytest.raises(SystemExit) as end:
        training_parser().parse_args(["--help"])
    assert end.value.code == 0
    assert "Train something.\n\n    python -m thing --flag\n\nWith 100% care.\n" in capsys.readouterr().out


def test_inference_commands_may_do_without_precision():
    parser = cli.Parser("Infer.")
    cli.add_device_flags(parser, precision=False)
    assert vars(parser.parse_args([])) == {"device": "auto", "debug": False}


def test_help_shows_defaults(capsys):
    with pytest.raises(SystemExit):
        training_parser().parse_args(["--help"])
    text = capsys.readouterr().out
    for flag, default in (("--seed N", "0"), ("--log-every STEPS", "50"), ("--batch-size N", "8"),
                          ("--device {auto,cpu,cuda}", "auto"), ("--lr-schedule", "linear"),
                          ("--data DIR", "hw2_data")):
        part = " ".join(text[text.rindex(f"  {flag}"):].split("  --")[1].split())
        assert f"default: {default})" in part, flag


def test_epochs_become_steps_of_whole_batches_and_settings_are_printed(capsys):
    args = training_parser().parse_args(["--data", "x", "--out", "y"])
    cli.finalize_settings(args, 8)
    assert args.steps == 100
    args = training_parser().parse_args(["--data", "x", "--out", "y", "--epochs", "3", "--seed", "0"])
    cli.finalize_settings(args, 30)
    assert args.steps == 3 * 3
    chosen, default = capsys.readouterr().out.splitlines()[-2:]
    assert chosen == "chosen: data=x epochs=3 out=y steps=9"
    assert "batch_size=8" in default and "seed=0" in default and "debug" not in default
    with pytest.raises(UserError, match=r"--batch-size 8 is larger than the training set \(7 images\)"):
        cli.finalize_settings(args, 7)


def test_auto_is_replaced_by_what_it_stands_for(monkeypatch):
    args = training_parser().parse_args(["--data", "x", "--device", "cpu"])
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert cli.select_device_and_dtype(args) == (torch.device("cpu"), torch.bfloat16)
    assert (args.device, args.precision) == ("cpu", "bf16")


def test_a_resumed_run_takes_its_settings_and_flags_win(tmp_path):
    def parse(*argv):
        return cli.parse_training_args(training_parser(), [*argv, "--resume", "auto"], lambda args: tmp_path)

    (tmp_path / "args.json").write_text(json.dumps({"steps": 9, "epochs": 3, "batch_size": 2, "data": "y", "out": "old",
                                                    "resume": None, "device": "cuda", "foreign": 1}))
    args = parse("--batch-size", "4")
    assert (args.steps, args.batch_size, args.data) == (9, 4, "y")
    assert (args.epochs, args.out, args.resume, args.device) == (None, tmp_path, "auto", "auto")
    assert "steps=9" in cli.describe(args).splitlines()[0]  # chosen once
    assert not hasattr(args, "foreign")
    assert parse("--epochs", "2").epochs == 2
    for name, value in (("batch_size", None), ("steps", 7.5), ("seed", -1), ("lr_schedule", "none"), ("steps", [])):
        (tmp_path / "args.json").write_text(json.dumps({"data": "y", name: value}))
        if value is None:
            assert parse().batch_size == 8
            continue
        with pytest.raises(UserError, match=rf"args\.json: argument --{name.replace('_', '-')}"):
            parse()
    (tmp_path / "args.json").write_text("[]")
    with pytest.raises(UserError, match="expected the settings of a run"):
        parse()


@pytest.mark.parametrize(("result", "code"), [(0, 0), (None, None), (2, 2)])
def test_a_command_exits_with_its_result(result, code):
    with pytest.raises(SystemExit) as end:
        cli.run_main(lambda: result)
    assert end.value.code == code


@pytest.mark.parametrize(("error", "line"), [
    (UserError("no folder x: give another"), "error: no folder x: give another\n"),
    (OSError(errno.ENOSPC, "No space left on device", "/x/y"),
     "error: /x/y: No space left on device: check the path and its permissions\n"),
    (OSError(errno.ENOSPC, "No space left on device"),
     "error: standard output: cannot write (No space left on device): free some space, or write elsewhere\n"),
    (OSError(errno.EIO, "Input/output error"), "error: input or output failed: [Errno 5] Input/output error\n"),
    (MemoryError(),
     "error: there is not enough memory: ask for fewer images or steps, or a smaller network or batch\n"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
     "error: the GPU's memory is full: use --precision bf16, --device cpu, or a smaller --batch-size to train\n"),
])
def test_a_mistake_is_one_line_on_stderr_and_code_2(capsys, error, line):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        cli.run_main(main)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", line)


@pytest.mark.parametrize("flag", ["--data", "--out", "--resume"])
def test_an_empty_name_is_refused(flag):
    with pytest.raises(UserError, match=f"{flag}: got an empty name"):
        training_parser().parse_args([flag, ""])


def test_a_run_is_not_written_among_the_images(tmp_path):
    args = training_parser().parse_args(["--data", str(tmp_path), "--out", str(tmp_path / "face" / "train")])
    with pytest.raises(UserError, match="is among the images of --data"):
        cli.finalize_settings(args, 8)


def test_a_run_that_is_resumed_by_its_path_stays_in_its_folder(tmp_path):
    args = cli.parse_training_args(training_parser(), ["--data", "x", "--resume", str(tmp_path / "last.pt")],
                                   lambda args: Path("runs/other"))
    assert args.out == tmp_path


def test_closed_streams_and_names_that_no_terminal_shows_end_no_command():
    code = ("import os, sys; from common.cli import run_main\n"
            "def main():\n    print('\\udcff'); print('fine', file=sys.stderr)\n"
            "run_main(main)")
    project = Path(cli.__file__).resolve().parent.parent
    env = os.environ | {"PYTHONPATH": str(project), "PYTHONIOENCODING": "ascii:strict"}
    for closing in (">&-", "2>&-", "<&-"):
        done = subprocess.run(["bash", "-c", f'exec "$0" -c "$1" {closing}', sys.executable, code], env=env,
                              capture_output=True, text=True, check=False)
        assert done.returncode == 0, (closing, done.stderr)


def test_ctrl_c_is_one_line(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        cli.run_main(main)
    assert end.value.code == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_ctrl_c_during_the_imports_of_a_command_shows_no_traceback(tmp_path):
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")  # imported first
    project = Path(cli.__file__).resolve().parent.parent
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "gan.train"], cwd=project, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_our_own_mistakes_keep_their_traceback():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run_main(main)
