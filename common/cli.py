"""The command line that all commands share: typed flags, and one way to end on a user's mistake."""

import argparse
import contextlib
import errno
import inspect
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from common.data.folder import default_data
from common.device import select_device, select_dtype
from common.distributed import destroy_process_group, rank, world_size
from common.errors import UserError
from common.files import cannot_write, drop_stdout, read_json
from common.lr_schedule import LR_SCHEDULES
from common.metrics_log import require_tensorboard
from common.run_folder import NOT_STORED, OF_THIS_START, read_config

PATIENCE = 3.0  # seconds; torchrun needs a tenth of one to end the other processes of a job
INSTEAD = {"epochs": "steps", "seeds": "seed"}  # flags that stand for a stored setting
LEADING = {"model", "mode", "recipe"}  # after a change, settings with the default None or False do not follow --config


class _Help(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        default = action.default
        if default is None or default is False or default is argparse.SUPPRESS or "default" in action.help:
            return action.help
        return f"{action.help} (default: %(default)s)"


class Settings(argparse.Namespace):
    """The flags of a command. `defaults`, which is not one of them, has the values of those that are not given."""

    __slots__ = ("defaults",)


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line and shows a module's docstring as help."""

    def __init__(self, doc: str) -> None:
        super().__init__(description=inspect.cleandoc(doc), formatter_class=_Help, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show the traceback of a mistake")

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> Settings:
        """Parse the command line."""
        settings = super().parse_args(args, Settings())
        settings.defaults = {name: self.get_default(name) for name in vars(settings)}
        return settings

    def error(self, message: str) -> NoReturn:
        """Report a bad flag like any other mistake of the user."""
        raise UserError(f"{message} (--help lists the flags)")


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit: 0 on success, 2 with one line on stderr for a mistake that the user can correct.

    Of several processes only the first one prints. Another one prints its error only if the first one continues.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None or (name == "stdout" and rank()):  # closed, or not the first process
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # of another kind of stream
            stream.reconfigure(errors="backslashreplace")  # a name that a terminal cannot show ends no command
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    logging.getLogger("common").setLevel(logging.INFO)  # what was loaded, and how fast
    logging.raiseExceptions = False  # a full disk under stdout is reported below, in one line
    signal.signal(signal.SIGINT, signal.default_int_handler)  # see common/__init__.py
    try:
        try:
            code = main()
        except SystemExit as end:  # of a stopped training, a dry run, or --help
            code = end.code
        sys.stdout.flush()
        destroy_process_group()
    except (UserError, OSError, MemoryError, OverflowError, RuntimeError) as error:
        mistake = _explain(error)
        if mistake is None or "--debug" in sys.argv:
            raise
        if rank():
            time.sleep(PATIENCE)
        print(f"error: {mistake}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt as interrupt:
        if not rank():
            print(f"interrupted{f': {interrupt}' if str(interrupt) else ''}", file=sys.stderr)
        code = 130
    sys.exit(code)


def _explain(error: Exception) -> str | UserError | None:
    """Return one line for an error that a user or a machine can cause, or None for one of our own."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory is full: use --precision bf16, --device cpu, or a smaller --batch-size to train"
    if isinstance(error, MemoryError | OverflowError) or "DefaultCPUAllocator" in str(error):
        return "there is not enough memory: ask for fewer images or steps, or a smaller network or batch"
    if isinstance(error, UserError):
        return error
    if not isinstance(error, OSError):
        return None
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}: check the path and its permissions"
    if error.errno in (errno.EPIPE, errno.ENOSPC, errno.EBADF):  # files are written with a name
        drop_stdout()
        return cannot_write("standard output", error)
    return f"input or output failed: {error}"


def _number(kind: type, expected: str, accepts: Callable[[float], bool]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not accepts(value):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")
        return value

    return parse


def nonempty(text: str) -> str:
    """Refuse an empty name, which most often is a variable of the shell that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("got an empty name")
    return text


def ending(suffix: str) -> Callable[[str], Path]:
    """Return the type of a flag that names a file whose name ends in `suffix`, e.g. ".png"."""
    def parse(text: str) -> Path:
        if Path(text).suffix != suffix:
            raise argparse.ArgumentTypeError(f"got {text}, expected a name that ends in {suffix}")
        return Path(text)

    return parse


positive_int = _number(int, "an integer >= 1", lambda n: n >= 1)
seed_number = _number(int, "an integer >= 0 and <= 4294967295", lambda n: 0 <= n < 2**32)
positive_float = _number(float, "a number > 0", lambda x: 0 < x < math.inf)
non_negative_float = _number(float, "a number >= 0", lambda x: 0 <= x < math.inf)
fraction = _number(float, "a number >= 0 and < 1", lambda x: 0 <= x < 1)  # 1 would leave nothing to learn


def add_device_flags(parser: Parser, *, precision: bool = True) -> None:
    """Add --device and, for commands that may compute in bfloat16, --precision."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPU, if any")
    if precision:
        parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                            help="auto: bf16 where the hardware supports it")


def add_force_flag(parser: Parser) -> None:
    """Add --force, for `common.files.require_new`."""
    parser.add_argument("--force", action="store_true", help="replace files that exist already")


def add_data_flag(parser: Parser) -> None:
    """Add --data: a data folder, or the word `builtin`."""
    parser.add_argument("--data", metavar="DIR", type=nonempty,
                        help="a folder made by common.prepare, or `builtin` (default: hw2_data)")


def add_training_flags(parser: Parser, *, steps: int, batch_size: int, lr_schedule: str | None) -> None:
    """Add the flags that all trainers share, with these defaults; None leaves the schedule to the trainer's recipe."""
    add_data_flag(parser)
    add_device_flags(parser)
    parser.add_argument("--out", metavar="DIR", type=lambda text: Path(nonempty(text)),
                        help="run folder (default: a name under runs/)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", metavar="N", type=positive_int, default=steps, help="optimizer updates")
    length.add_argument("--epochs", metavar="N", type=positive_int, help="length in passes over the training set")
    parser.add_argument("--batch-size", metavar="N", type=positive_int, default=batch_size,
                        help="of all processes together")
    parser.add_argument("--lr-schedule", choices=LR_SCHEDULES, default=lr_schedule,
                        help="how learning rates fall over the steps" + (" (default: by recipe)" * (not lr_schedule)))
    parser.add_argument("--seed", metavar="N", type=seed_number, default=0, help="of all random numbers")
    for name, default, what in (("log", 50, "write and print a row of metrics"), ("sample", 1000, "write a preview"),
                                ("save", 1000, "write the checkpoint")):
        parser.add_argument(f"--{name}-every", metavar="STEPS", type=positive_int, default=default, help=what)
    parser.add_argument("--resume", metavar="auto|PATH", type=nonempty,
                        help="auto: continue from the run folder's checkpoint, if there is one; flags that are not "
                             "given are those of the run")
    parser.add_argument("--config", metavar="RUN", type=lambda text: Path(nonempty(text)),
                        help="a new run with the settings of another one: its folder, its args.json, or a released "
                             "weights/NAME.pt. Flags that are given win; another --model, --mode or --recipe brings "
                             "its own defaults. Not taken are --out, --device and, from a released file, --data DIR "
                             "and --precision. A resumed run keeps its own settings")
    parser.add_argument("--tensorboard", action="store_true", help="write the metrics as TensorBoard event files too")
    parser.add_argument("--dry-run", action="store_true",
                        help="print the settings, time a few steps, and stop, without a run folder")


def parse_training_args(parser: Parser, argv: list[str] | None, default_out: Callable[[Settings], Path],
                        folder: Callable[[Settings, Path], Path] = lambda args, out: out) -> Settings:
    """Parse the flags of a trainer; those that are not given are those of a resumed run, else those of --config.

    `default_out` maps the flags to --out if it is not given, and `folder` maps both to the folder of the (first) run.
    """
    argv = sys.argv[1:] if argv is None else argv
    typed = {text.split("=")[0][2:].replace("-", "_") for text in argv if text.startswith("--")}
    args = parser.parse_args(argv)

    def parse_after(before: dict[str, Any], source: Path) -> Settings:
        replaced = {name for flag, name in INSTEAD.items() if flag in typed}
        stored = [flag for name in vars(args).keys() & before.keys() - OF_THIS_START - replaced
                  for flag in _as_flags(name, before[name], args.defaults[name])]
        try:
            return parser.parse_args([*stored, *argv])
        except UserError as mistake:  # edited by hand
            raise UserError(f"{source}: {mistake}") from None

    if args.config:
        before, source = read_config(args.config, vars(args).keys() - NOT_STORED)
        if any(before[name] != getattr(args, name) for name in LEADING & typed):
            by_recipe = {name for name, default in args.defaults.items() if default is None or default is False}
            before = {name: value for name, value in before.items() if name not in by_recipe - {"data"}}
        args = parse_after(before, source)
    resumed = Path(args.resume).parent if args.resume not in (None, "auto") else None
    out = args.out or resumed or default_out(args)
    source = (resumed or folder(args, out)) / "args.json"
    if args.resume and source.exists():
        args = parse_after(read_json(source, "the settings of a run"), source)
    args.data = args.data or default_data()
    args.out = out
    del args.config  # versions.json has the command
    if args.tensorboard:
        require_tensorboard()
    return args


def _as_flags(name: str, value: Any, default: Any) -> list[str]:
    """Return the flags that give a setting its value."""
    name = name.replace("_", "-")
    if value is None or (value is False and default is False):  # nothing to type; such a flag may have no --no- form
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}={value}"]


def select_device_and_dtype(args: Settings) -> tuple[torch.device, torch.dtype]:
    """Return the device and dtype of --device and --precision, and put what `auto` stands for into `args`."""
    device = select_device(args.device)
    dtype = select_dtype(device, args.precision)
    args.device, args.precision = device.type, "bf16" if dtype == torch.bfloat16 else "fp32"
    return device, dtype


def finalize_settings(args: Settings, num_items: int) -> None:
    """Convert --epochs to --steps, and print the settings.

    Raises UserError if the batch is too large or not divisible among the processes, or --out is among the images.
    """
    if args.batch_size > num_items:
        raise UserError(f"--batch-size {args.batch_size} is larger than the training set ({num_items} images)")
    if args.batch_size % world_size():
        raise UserError(f"--batch-size {args.batch_size} is not a multiple of the {world_size()} processes that share "
                        "it: use a multiple")
    if any(args.out.resolve().is_relative_to(Path(args.data, part).resolve()) for part in ("face", "digits")):
        raise UserError(f"--out {args.out} is among the images of --data {args.data}: name another --out")
    if args.epochs is not None:
        args.steps = args.epochs * (num_items // args.batch_size)
    print(describe(args))


def describe(args: Settings) -> str:
    """Return two lines of `name=value` pairs: what differs from the defaults, and the defaults."""
    lines = {"chosen": [], "default": []}
    for name, value in sorted(vars(args).items()):
        if name not in ("debug", "dry_run"):
            lines["default" if value == args.defaults[name] else "chosen"].append(f"{name}={value}")
    return "\n".join(f"{title}: {' '.join(pairs)}" for title, pairs in lines.items())
