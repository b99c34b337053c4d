"""Predict the digits of a folder of images, and write them to a CSV file: `image_name,label`, sorted by name.

    python -m dann.inference hw2_data/digits/usps/data OUT.csv

The path of the folder names the target domain, svhn or usps, and so selects the released network. An image that cannot
be read is reported and left out of the CSV file; the exit code is then 2.
"""

import argparse
import csv
import os
import re
import sys
from pathlib import Path

from common.checkpoint import RELEASED
from common.cli import Parser, add_device_flags, add_force_flag, run_main
from common.data.folder import load_readable
from common.device import select_device
from common.distributed import rank
from common.errors import UserError
from common.files import atomic_path, require_new
from common.images import DIGIT_SIZE
from dann.predict import load_network, predict

SUITED = {"usps": " (handwriting)", "svhn": " (printed and street numbers)"}  # what a released network can read


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    released = {}
    for path in sorted(RELEASED.glob("dann-*.pt")):
        released.setdefault(path.stem.rpartition("-")[2], []).append(path)
    parser = Parser(__doc__)
    parser.add_argument("test_dir", metavar="TEST_DIR", type=Path, help="folder of images of the target domain")
    parser.add_argument("out", metavar="OUT.csv", type=Path)
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--target", choices=released, help="target domain (default: from the path of TEST_DIR)")
    network.add_argument("--weights", metavar="PATH", type=Path,
                         help="a checkpoint of dann.train (default: the target domain's released network)")
    add_device_flags(parser, precision=False)
    add_force_flag(parser)
    args = parser.parse_args(argv)
    if args.weights is None:
        args.weights, *others = released[args.target or target_of(args.test_dir, list(released))]
        if others:
            raise UserError(f"{args.weights} and {others[0]} are for one target: choose with --weights")
    return args


def target_of(folder: Path, targets: list[str]) -> str:
    """Return the target that the path names, as typed or else as an absolute path; UserError for none or several."""
    for path in (str(folder), os.path.abspath(folder)):  # links keep their names
        named = [target for target in targets if re.search(f"(?<![a-z]){target}(?![a-z])", path.lower())]
        if named:
            break
    if len(named) != 1:
        choices = " or ".join(f"--target {target}{SUITED.get(target, '')}" for target in targets)
        raise UserError(f"{folder} names {' and '.join(named) or 'no target domain'}: choose with {choices}, or "
                        "name your own network with --weights")
    return named[0]


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    if rank():
        return 0  # one process is enough: most of the time goes into decoding, which uses threads
    require_new(args.force, args.out)
    device = select_device(args.device)
    model, model_args = load_network(args.weights, device)
    readable, broken = load_readable(args.test_dir, DIGIT_SIZE)
    digits = predict(model, readable.images, device)[1].argmax(1)
    with atomic_path(args.out) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("image_name", "label"), *zip(readable.names, digits.tolist(), strict=True)])
    print(f"{len(digits)} digits in {args.out}, predicted by {args.weights} "
          f"({model_args['source']} -> {model_args['target']} {model_args['mode']})")
    target = model_args["target"].removeprefix("builtin-")
    if target != model_args["target"]:
        print(f"note: it was trained on the embedded stand-in for {target}; "
              f"python -m dann.train --target {target} trains on the real one")
    for name, reason in broken:
        print(f"error: {args.test_dir / name}: {reason}: replace it or remove it", file=sys.stderr)
    return 2 if broken else 0


if __name__ == "__main__":
    run_main(main)
