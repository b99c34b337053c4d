"""Read the digits of a folder of images into a CSV file, `image_name,label`, sorted by name.

    python -m dann.inference hw2_data/digits/usps/data OUT.csv

The released network is chosen by the word svhn or usps in the folder's path. An image that cannot be read
is named on stderr and left out of the CSV; the others are predicted, and the exit code is 2.
"""

import argparse
import csv
import sys
from pathlib import Path

from common.checkpoint import RELEASED
from common.cli import Parser, add_device_flags, run_main
from common.datasets import DIGIT_SIZE, load_readable
from common.device import select_device
from common.distributed import rank
from common.errors import UserError
from common.files import whole
from dann.predict import load_network, predict

TARGETS = ("svhn", "usps")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("test_dir", metavar="TEST_DIR", type=Path, help="folder of target-domain images")
    parser.add_argument("out", metavar="OUT.csv", type=Path, help="a new file")
    parser.add_argument("--target", choices=TARGETS, help="default: the one that the path of TEST_DIR names")
    parser.add_argument("--weights", metavar="PATH", type=Path,
                        help="a checkpoint of dann.train (default: the released one of the target)")
    add_device_flags(parser, precision=False)
    args = parser.parse_args(argv)
    if args.weights is None:
        args.weights = RELEASED / f"dann-mnistm-{args.target or target_of(args.test_dir)}.pt"
    return args


def target_of(folder: Path) -> str:
    """Return the one target domain that the path names."""
    named = [target for target in TARGETS if target in str(folder).lower()]
    if len(named) != 1:
        what = "both svhn and usps" if named else "neither svhn nor usps"
        raise UserError(f"{folder} names {what}: say which with --target")
    return named[0]


def write_csv(path: Path, names: list[str], labels: list[int]) -> None:
    """Write the rows under a temporary name and rename it, so that a file that exists is whole."""
    with whole(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("image_name", "label"))
        writer.writerows(zip(names, labels, strict=True))


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    if rank():
        return 0  # one process reads them all: decoding takes most of the time, and has threads
    if args.out.exists():
        raise UserError(f"{args.out} exists already: remove it or name another file")
    device = select_device(args.device)
    model, model_args = load_network(args.weights, device)
    readable, broken = load_readable(args.test_dir, DIGIT_SIZE)
    _, digits = predict(model, readable.images, model_args["standardise"], device)
    write_csv(args.out, readable.names, digits.tolist())
    print(f"{len(digits)} digits in {args.out}, read by {args.weights} "
          f"({model_args['source']} -> {model_args['target']} {model_args['mode']})")
    if model_args["target"].startswith("builtin-"):
        print(f"note: it was trained on embedded data in the place of {model_args['target'].removeprefix('builtin-')}; "
              "python -m dann.train makes one for the real set")
    for name, reason in broken:
        print(f"error: {args.test_dir / name}: {reason}: replace it or remove it", file=sys.stderr)
    return 2 if broken else 0


if __name__ == "__main__":
    run_main(main)
