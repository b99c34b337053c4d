"""The command line that all commands share: typed flags, and one way to end on a user's mistake."""

import argparse
import inspect
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from common.data.folder import default_data
from common.device import select_device, select_dtype
from common.distributed import destroy_process_group, rank, world_size
from common.errors import UserError
from common.files import cannot_write, read_json
from common.lr_schedule import LR_SCHEDULES

PATIENCE = 3.0  # seconds; torchrun needs a tenth of one to end the other processes of a job
# What a resumed run does not take from its args.json. Its number of steps is there, and a device is not a setting.
OF_THIS_START = {"out", "resume", "epochs", "device", "dry_run", "debug"}


class _Help(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if any(action.default is none for none in (None, False, argparse.SUPPRESS)) or "default" in text:
            return text
        return f"{text} (default: %(default)s)".lstrip()


class Settings(argparse.Namespace):
    """The flags of a command. `defaults`, which is not one of them, has the values of those that are not given."""

    __slots__ = ("defaults",)


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line and shows a module's docstring as help."""

    def __init__(self, doc: str) -> None:
        super().__init__(description=inspect.cleandoc(doc), formatter_class=_Help, allow_abbrev=False)
        self._complete = False

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> Settings:
        """Parse the command line."""
        if not self._complete:  # here, so that it is the last one of --help
            self.add_argument("--debug", action="store_true", help="show the traceback of a mistake")
            self._complete = True
        settings = super().parse_args(args, Settings())
        if getattr(settings, "data", "") is None and not getattr(settings, "resume", None):
            settings.data = default_data()
        settings.defaults = {name: self.get_default(name) for name in vars(settings)}
        return settings

    def error(self, message: str) -> NoReturn:
        """Report a bad flag like any other mistake of the user."""
        raise UserError(f"{message} (--help lists the flags)")


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit: 0 on success, 2 with one line on stderr for a mistake that the user can correct.

    Of several processes only the first one prints. Another one prints its error only if the first one continues.
    """
    if rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
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
    except (UserError, OSError, torch.OutOfMemoryError) as mistake:  # OSError: an unreadable folder, a full disk
        if "--debug" in sys.argv:
            raise
        if isinstance(mistake, torch.OutOfMemoryError):
            mistake = "the GPU's memory is full: use --precision bf16, --device cpu, or a smaller --batch-size to train"
        elif isinstance(mistake, OSError) and mistake.filename is None:
            mistake = _blame(mistake)
        if rank():
            time.sleep(PATIENCE)
        print(f"error: {mistake}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt as interrupt:
        print(f"interrupted{f': {interrupt}' if str(interrupt) else ''}", file=sys.stderr)
        code = 130
    sys.exit(code)


def _blame(error: OSError) -> UserError:
    """Return the error for an OSError without a file name: of standard output, if it still cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        drop_stdout()
        return cannot_write("standard output", error)
    return UserError(f"input or output failed: {error}")


def drop_stdout() -> None:
    """Send standard output, which is closed or full, nowhere; otherwise Python fails at exit on what is buffered."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _number(kind: type, low: float, high: float, low_open: bool) -> Callable[[str], float]:
    bounds = f"{'>' if low_open else '>='} {low:g}" + (f" and <= {high}" if high < float("inf") else "")

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not (low < value <= high or (value == low and not low_open)) or value == float("inf"):
            what = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {what} {bounds}")
        return value

    return parse


positive_int = _number(int, 1, float("inf"), low_open=False)
non_negative_int = _number(int, 0, 2**32 - 1, low_open=False)
positive_float = _number(float, 0, float("inf"), low_open=True)
non_negative_float = _number(float, 0, float("inf"), low_open=False)
fraction = _number(float, 0, 1, low_open=False)


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
    parser.add_argument("--data", metavar="DIR",
                        help="a folder made by common.prepare, or `builtin` (default: hw2_data)")


def add_training_flags(parser: Parser, *, steps: int, batch_size: int, lr_schedule: str | None) -> None:
    """Add the flags that all trainers share, with these defaults; None leaves the schedule to the trainer's recipe."""
    add_data_flag(parser)
    add_device_flags(parser)
    parser.add_argument("--out", metavar="DIR", type=Path, help="run folder (default: a name under runs/)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", metavar="N", type=positive_int, default=steps, help="optimizer updates")
    length.add_argument("--epochs", metavar="N", type=positive_int, help="length in passes over the training set")
    parser.add_argument("--batch-size", metavar="N", type=positive_int, default=batch_size,
                        help="of all processes together")
    parser.add_argument("--lr-schedule", choices=LR_SCHEDULES, default=lr_schedule,
                        help="how learning rates fall over the steps" + (" (default: by recipe)" * (not lr_schedule)))
    parser.add_argument("--seed", metavar="N", type=non_negative_int, default=0, help="of all random numbers")
    for name, default, what in (("log", 50, "write and print a row of metrics"), ("sample", 1000, "write a preview"),
                                ("save", 1000, "write the checkpoint")):
        parser.add_argument(f"--{name}-every", metavar="STEPS", type=positive_int, default=default, help=what)
    parser.add_argument("--resume", metavar="auto|PATH",
                        help="auto: continue from the run folder's checkpoint, if there is one; flags that are not "
                             "given are those of the run")
    parser.add_argument("--dry-run", action="store_true",
                        help="print the settings, time a few steps, and stop; nothing is written")


def parse_training_args(parser: Parser, argv: list[str] | None, default_out: Callable[[Settings], Path]) -> Settings:
    """Parse the flags of a trainer; a resumed run takes those that are not given from its args.json.

    `default_out` returns the run folder, whose settings a resume takes, from the flags, if --out is not given.
    """
    args = parser.parse_args(argv)
    defaults = args.defaults
    out = args.out or default_out(args)
    source = (out if args.resume == "auto" else Path(args.resume).parent) / "args.json" if args.resume else None
    if source and source.exists():
        before = read_json(source, "the settings of a run")
        parser.set_defaults(**{name: before[name] for name in vars(args).keys() & before.keys() - OF_THIS_START})
        args = parser.parse_args(argv)
    args.data = args.data or default_data()
    args.out, args.defaults = out, defaults
    return args


def select(args: Settings) -> tuple[torch.device, torch.dtype]:
    """Return the device and dtype of --device and --precision, and put what `auto` stands for into `args`."""
    device = select_device(args.device)
    dtype = select_dtype(device, args.precision)
    args.device, args.precision = device.type, "bf16" if dtype == torch.bfloat16 else "fp32"
    return device, dtype


def settle(args: Settings, num_items: int) -> None:
    """Convert --epochs to --steps, and print the settings.

    Raises UserError if the batch is too large or not divisible among the processes.
    """
    if args.batch_size > num_items:
        raise UserError(f"--batch-size {args.batch_size} is larger than the training set ({num_items} images)")
    if args.batch_size % world_size():
        raise UserError(f"--batch-size {args.batch_size} is not a multiple of the {world_size()} processes that share "
                        "it: use a multiple")
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
