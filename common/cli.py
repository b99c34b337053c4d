"""The command line that all commands share: typed flags, and one way to end on a user's mistake."""

import argparse
import inspect
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from common.data.folder import default_data
from common.distributed import destroy_process_group, rank, world_size
from common.errors import UserError
from common.files import cannot_write
from common.lr_schedule import LR_SCHEDULES

PATIENCE = 3.0  # seconds; torchrun needs a tenth of one to end the other processes of a job


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line and shows a module's docstring as help."""

    def __init__(self, doc: str) -> None:
        super().__init__(description=inspect.cleandoc(doc),
                         formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show the traceback of a mistake")

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
    try:
        code = main()
        sys.stdout.flush()
        destroy_process_group()
    except (UserError, OSError, torch.OutOfMemoryError) as mistake:  # OSError: an unreadable folder, a full disk
        if "--debug" in sys.argv:
            raise
        if isinstance(mistake, torch.OutOfMemoryError):
            mistake = "the GPU's memory is full: use a smaller --batch-size, or --precision bf16"
        if isinstance(mistake, OSError) and mistake.filename is None:
            mistake = cannot_write("standard output", mistake)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # otherwise Python fails at exit on what is still buffered
        if rank():
            time.sleep(PATIENCE)
        print(f"error: {mistake}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


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
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    if precision:
        parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                            help="auto: bf16 where the hardware supports it")


def add_data_flag(parser: Parser) -> None:
    """Add --data: a data folder, or the word `builtin`."""
    parser.add_argument("--data", metavar="DIR", default=default_data(),
                        help="a folder made by common.prepare, or `builtin` (default here: %(default)s)")


def add_training_flags(parser: Parser, *, steps: int, batch_size: int, lr_schedule: str | None) -> None:
    """Add the flags that all trainers share, with these defaults; None leaves the schedule to the trainer's recipe."""
    add_data_flag(parser)
    add_device_flags(parser)
    parser.add_argument("--out", metavar="DIR", type=Path, help="run folder (default: a name under runs/)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", metavar="N", type=positive_int, default=steps,
                        help="optimizer updates (default: %(default)s)")
    length.add_argument("--epochs", metavar="N", type=positive_int, help="length in passes over the training set")
    parser.add_argument("--batch-size", metavar="N", type=positive_int, default=batch_size,
                        help="of all processes together (default: %(default)s)")
    parser.add_argument("--lr-schedule", choices=LR_SCHEDULES, default=lr_schedule,
                        help=f"how learning rates fall over the run (default: {lr_schedule or 'by recipe'})")
    parser.add_argument("--seed", metavar="N", type=non_negative_int, default=0)
    parser.add_argument("--log-every", metavar="STEPS", type=positive_int, default=50)
    parser.add_argument("--sample-every", metavar="STEPS", type=positive_int, default=1000)
    parser.add_argument("--save-every", metavar="STEPS", type=positive_int, default=1000)
    parser.add_argument("--resume", metavar="auto|PATH",
                        help="auto: continue from the run folder's checkpoint, if there is one")
    parser.add_argument("--dry-run", action="store_true", help="print the settings and stop")


def resolve_steps(args: argparse.Namespace, num_items: int) -> None:
    """Convert --epochs to --steps. Raises UserError if the batch is too large or not divisible among the processes."""
    if args.batch_size > num_items:
        raise UserError(f"--batch-size {args.batch_size} is larger than the training set ({num_items} images)")
    if args.batch_size % world_size():
        raise UserError(f"--batch-size {args.batch_size} is not a multiple of the {world_size()} processes that share "
                        "it: use a multiple")
    if args.epochs is not None:
        args.steps = args.epochs * (num_items // args.batch_size)


def describe(settings: dict[str, Any]) -> str:
    """Return the settings as one line of `name=value` pairs."""
    return " ".join(f"{name}={value}" for name, value in sorted(settings.items()))
