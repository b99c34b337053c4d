"""The shared command line: what numbers it takes, and how a command ends."""

import argparse
import errno

import pytest
import torch

from common import cli
from common.errors import UserError


@pytest.mark.parametrize(("parse", "text", "value"), [
    (cli.positive_int, "1", 1), (cli.positive_int, "15000", 15_000),
    (cli.non_negative_int, "0", 0), (cli.non_negative_int, "4294967295", 2**32 - 1),
    (cli.positive_float, "2e-4", 2e-4), (cli.non_negative_float, "0", 0.0),
    (cli.fraction, "0", 0.0), (cli.fraction, "1", 1.0), (cli.fraction, ".999", 0.999),
])
def test_good_numbers(parse, text, value):
    got = parse(text)
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(("parse", "text", "expected"), [
    (cli.positive_int, "0", "an integer >= 1"), (cli.positive_int, "-3", "an integer >= 1"),
    (cli.positive_int, "1.5", "an integer >= 1"), (cli.positive_int, "", "an integer >= 1"),
    (cli.positive_int, "ten", "an integer >= 1"), (cli.positive_int, "inf", "an integer >= 1"),
    (cli.non_negative_int, "-1", "an integer >= 0 and <= 4294967295"),
    (cli.non_negative_int, "4294967296", "an integer >= 0 and <= 4294967295"),
    (cli.positive_float, "0", "a number > 0"), (cli.positive_float, "nan", "a number > 0"),
    (cli.positive_float, "inf", "a number > 0"), (cli.positive_float, "1e999", "a number > 0"),
    (cli.non_negative_float, "-0.1", "a number >= 0"), (cli.non_negative_float, "inf", "a number >= 0"),
    (cli.fraction, "1.01", "a number >= 0 and <= 1"), (cli.fraction, "-0.01", "a number >= 0 and <= 1"),
    (cli.fraction, "nan", "a number >= 0 and <= 1"),
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
        "save_every": 1000, "resume": None, "dry_run": False, "debug": False}


@pytest.mark.parametrize("argv", [["--batch", "3"], ["--step", "3"], ["--nonsense"], ["stray"], ["--seed"],
                                  ["--seed", "-1"], ["--device", "tpu"], ["--lr-schedule", "falling"],
                                  ["--steps", "2", "--epochs", "2"]])
def test_bad_flags_are_one_line_that_names_the_flag(argv):
    with pytest.raises(UserError) as mistake:
        training_parser().parse_args(argv)
    message = str(mistake.value)
    assert argv[0] in message and "--help" in message and "\n" not in message


def test_help_is_the_docstring_as_written(capsys):
    with pytest.raises(SystemExit) as end:
        training_parser().parse_args(["--help"])
    assert end.value.code == 0
    assert "Train something.\n\n    python -m thing --flag\n\nWith 100% care.\n" in capsys.readouterr().out


def test_inference_commands_may_do_without_precision():
    parser = cli.Parser("Infer.")
    cli.add_device_flags(parser, precision=False)
    assert vars(parser.parse_args([])) == {"device": "auto", "debug": False}


def settings(**more):
    return argparse.Namespace(batch_size=8, steps=100, epochs=None, **more)


def test_epochs_become_steps_of_whole_batches():
    args = settings()
    cli.resolve_steps(args, 8)
    assert args.steps == 100
    args.epochs = 3
    cli.resolve_steps(args, 30)
    assert args.steps == 3 * 3
    with pytest.raises(UserError, match=r"--batch-size 8 is larger than the training set \(7 images\)"):
        cli.resolve_steps(settings(), 7)


def test_settings_are_one_sorted_line():
    assert cli.describe({"b": 1, "a": "x"}) == "a=x b=1"


@pytest.mark.parametrize(("result", "code"), [(0, 0), (None, None), (2, 2)])
def test_a_command_exits_with_its_result(result, code):
    with pytest.raises(SystemExit) as end:
        cli.run_main(lambda: result)
    assert end.value.code == code


@pytest.mark.parametrize(("error", "line"), [
    (UserError("no folder x: give another"), "error: no folder x: give another\n"),
    (OSError(errno.ENOSPC, "No space left on device", "/x/y"),
     "error: [Errno 28] No space left on device: '/x/y'\n"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
     "error: the GPU's memory is full: use a smaller --batch-size, or --precision bf16\n"),
])
def test_a_mistake_is_one_line_on_stderr_and_code_2(capsys, error, line):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        cli.run_main(main)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", line)


def test_ctrl_c_is_silent(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        cli.run_main(main)
    assert end.value.code == 130
    assert capsys.readouterr() == ("", "")


def test_our_own_mistakes_keep_their_traceback():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run_main(main)
