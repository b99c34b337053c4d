"""The command line shared by all commands: typed flags, and one way to end on a user's mistake."""

import argparse
import inspect
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from common.datasets import default_data
from common.distributed import leave, rank, world_size
from common.errors import UserError
from common.files import cannot_write

PATIENCE = 3.0  # seconds; torchrun needs a tenth of one to end the other processes of a job


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line and shows a module's docstring as help."""

    def __init__(self, doc: str) -> None:
        super().__init__(description=inspect.cleandoc(doc),
                         formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show where in the code a mistake was found")

    def error(self, message: str) -> NoReturn:
        """Report a bad flag as any other mistake of the user."""
        raise UserError(f"{message} (--help lists the flags)")


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit: 0 on success, 2 with one line on stderr for a mistake the user can mend.

    Of several processes the first one speaks. Another one that fails speaks only if the first one goes on.
    """
    if rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    logging.getLogger("common").setLevel(logging.INFO)  # what was loaded, and how fast
    logging.raiseExceptions = False  # a full disk under stdout is reported below, in one line
    try:
        code = main()
        sys.stdout.flush()
        leave()
    except (UserError, OSError) as mistake:  # OSError: a folder that may not be read, a full disk under stdout
        if "--debug" in sys.argv:
            raise
        if isinstance(mistake, OSError) and mistake.filename is None:
            mistake = cannot_write("standard output", mistake)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python fails over what is left of it at its end
        if rank():
            time.sleep(PATIENCE)
        print(f"error: {mistake}", file=sys.stderr)
        code = 2
    except torch.OutOfMemoryError:
        if "--debug" in sys.argv:
            raise
        print("error: the GPU's memory is full: take a smaller --batch-size, or --precision bf16", file=sys.stderr)
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
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {what} {bounds}")
        return value

    return parse


positive_int = _number(int, 1, float("inf"), low_open=False)
non_negative_int = _number(int, 0, 2**32 - 1, low_open=False)  # a seed: 32 bits, as NumPy's
positive_float = _number(float, 0, float("inf"), low_open=True)
non_negative_float = _number(float, 0, float("inf"), low_open=False)
fraction = _number(float, 0, 1, low_open=False)


def add_device_flags(parser: Parser, *, precision: bool = True) -> None:
    """Add --device, and --precision for commands that do not always compute in float32."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    if not precision:
        return
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto",
                        help="auto: bf16 where the hardware has it")


def add_data_flag(parser: Parser) -> None:
    """Add --data, the folder of images or the word `builtin`."""
    parser.add_argument("--data", metavar="DIR", default=default_data(),
                        help="a folder made by common.prepare, or `builtin` (default here: %(default)s)")


def add_training_flags(parser: Parser, *, steps: int, batch_size: int) -> None:
    """Add the flags of a training run; `steps` and `batch_size` are the trainer's own defaults."""
    add_data_flag(parser)
    add_device_flags(parser)
    parser.add_argument("--out", metavar="DIR", type=Path, help="run folder (default: runs/ and the run's name)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", metavar="N", type=positive_int, default=steps,
                        help="optimiser updates (default: %(default)s)")
    length.add_argument("--epochs", metavar="N", type=positive_int, help="passes over the training set instead")
    parser.add_argument("--batch-size", metavar="N", type=positive_int, default=batch_size)
    parser.add_argument("--seed", metavar="N", type=non_negative_int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile the networks")
    parser.add_argument("--log-every", metavar="STEPS", type=positive_int, default=50)
    parser.add_argument("--sample-every", metavar="STEPS", type=positive_int, default=1000)
    parser.add_argument("--save-every", metavar="STEPS", type=positive_int, default=1000)
    parser.add_argument("--resume", metavar="auto|PATH",
                        help="auto: go on from the run folder's checkpoint, if it has one")
    parser.add_argument("--dry-run", action="store_true", help="print the settings and stop")


def add_sync_bn_flag(parser: Parser) -> None:
    """Add --sync-bn, for networks with batch normalisation."""
    parser.add_argument("--sync-bn", action="store_true",
                        help="with several GPUs: batch normalisation over the whole batch, not each GPU's share")


def resolve_steps(args: argparse.Namespace, num_items: int) -> None:
    """Turn --epochs into --steps; refuse a batch larger than the training set or not to be shared equally."""
    if args.batch_size > num_items:
        raise UserError(f"--batch-size {args.batch_size} is larger than the training set ({num_items} images)")
    if args.batch_size % world_size():
        raise UserError(f"--batch-size {args.batch_size} does not divide among {world_size()} processes: "
                        "it is that of all together, take a multiple")
    if args.epochs is not None:
        args.steps = args.epochs * (num_items // args.batch_size)


def describe(args: argparse.Namespace) -> str:
    """Return the settings as one `name=value` line."""
    return " ".join(f"{name}={value}" for name, value in sorted(vars(args).items()))
