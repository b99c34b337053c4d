"""Score a folder of generated digits, `0_001.png` .. `9_100.png`, against the real validation digits.

    python -m diffusion.evaluate OUT --data hw2_data

Accuracy of a separate classifier (trained once on the real training digits and kept), Frechet distance of
its features beside the distance between real digits of the same count, and variety within a digit beside
that of real digits: a generator that draws one perfect 3 a hundred times has accuracy 1 and variety 0.
Copies of training digits would pass all that, so the nearest training digits are looked up too, and
`--neighbours PNG` shows those of the most suspicious images.
"""

import argparse
import re
from pathlib import Path

import numpy as np
import torch

from common.cli import Parser, add_data_flag, add_device_flags, run_main
from common.datasets import DIGIT_SIZE, load_digits, load_folder
from common.device import select_device, select_dtype
from common.errors import UserError
from common.files import write_json
from common.images import grid, save_picture
from common.metrics import frechet_distance, mean_pairwise_distance, memorisation
from diffusion.classifier import default_path, load_or_train, predict


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_data_flag(parser)
    add_device_flags(parser)
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of <digit>_<number>.png")
    parser.add_argument("--domain", default="mnistm")
    parser.add_argument("--classifier", metavar="PATH", type=Path,
                        help="where the classifier is kept (default: runs/classifier-<data>-<domain>.pt)")
    parser.add_argument("--neighbours", metavar="PNG", type=Path,
                        help="draw the ten images closest to a training digit there, each before its nearest ones")
    parser.add_argument("--out", metavar="PATH", type=Path, help="write the scores there as JSON as well")
    args = parser.parse_args(argv)
    if args.classifier is None:
        args.classifier = default_path(args.data, args.domain)
    return args


def digits_of(names: list[str]) -> torch.Tensor:
    """Return the digit that each file name starts with, (N,) int64.

    Raises:
        UserError: a name that is not a digit, an underscore and a number.
    """
    for name in names:
        if not re.fullmatch(r"[0-9]_\d+\.png", name):
            raise UserError(f"{name}: expected names like 3_042.png, the digit first")
    return torch.tensor([int(name[0]) for name in names])


def variety(features: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Return the mean distance between images of the same digit, a digit; those with fewer than two are left out.

    Args:
        features: (N, D) floating point.
        labels: (N,) digits.
    """
    groups = {digit: features[labels == digit] for digit in range(10)}
    return {digit: mean_pairwise_distance(group) for digit, group in groups.items() if len(group) > 1}


def score(fake: np.ndarray, fake_labels: np.ndarray, predicted: np.ndarray,
          real: np.ndarray, real_labels: np.ndarray) -> dict:
    """Return all scores.

    Args:
        fake: (N, D) classifier features of generated images.
        fake_labels: (N,) the digits they should show.
        predicted: (N,) the digits the classifier sees.
        real: (M, D) features of real images, M >= 2 N for the floor.
        real_labels: (M,) their digits.
    """
    # The floor takes two disjoint sets of real images with as many of each digit as the folder has.
    order = np.random.default_rng(0).permutation(len(real))
    first, second = [], []
    for digit in range(10):
        own = order[real_labels[order] == digit]
        count = min(int((fake_labels == digit).sum()), len(own) // 2)
        first.extend(own[:count])
        second.extend(own[count:])
    if len(first) < 2 or len(fake) < 2:
        raise UserError(f"got {len(fake)} images and {len(real)} real ones: at least 2 and 2 a digit are needed")
    fake_variety, real_variety = variety(fake, fake_labels), variety(real, real_labels)
    ratios = {digit: value / real_variety[digit] for digit, value in fake_variety.items() if digit in real_variety}
    correct = predicted == fake_labels
    return {
        "images": len(fake),
        "accuracy": float(correct.mean()),
        "accuracy_by_digit": {d: float(correct[fake_labels == d].mean()) for d in np.unique(fake_labels).tolist()},
        "frechet": frechet_distance(fake, real[second]),
        "frechet_real": frechet_distance(real[first], real[second]),
        "variety": float(np.mean(list(ratios.values()))) if ratios else 0.0,
        "variety_by_digit": ratios,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device = select_device(args.device)
    dtype = select_dtype(device, args.precision)
    made = load_folder(args.folder, DIGIT_SIZE)
    labels = digits_of(made.names)
    real = load_digits(args.data, args.domain, "val")
    train_set = load_digits(args.data, args.domain, "train")
    classifier = load_or_train(args.classifier, train_set, device, dtype)

    features, predicted = predict(classifier, made.images, device, dtype)
    real_features, real_predicted = predict(classifier, real.images, device, dtype)
    scores = score(features.numpy(), labels.numpy(), predicted.numpy(), real_features.numpy(), real.labels.numpy())
    scores["classifier_accuracy_on_val"] = float((real_predicted == real.labels).float().mean())

    copies, rows = memorisation(made.images.numpy(), real.images.numpy(), train_set.images.numpy())
    scores |= copies

    print(f"{scores['images']} digits; the classifier reads {scores['classifier_accuracy_on_val']:.2%} of real ones")
    print(f"accuracy           {scores['accuracy']:.2%}")
    print("  by digit         " + " ".join(f"{d}:{v:.0%}" for d, v in scores["accuracy_by_digit"].items()))
    print(f"Frechet distance   {scores['frechet']:.2f}  (real against real: {scores['frechet_real']:.2f})")
    print(f"variety in a digit {scores['variety']:.2f}  (real: 1)")
    print(f"closest to training {scores['closest']:.2f} (real: {scores['closest_real']:.2f}; 0 is a copy); "
          f"suspiciously close: {scores['suspicious']:.1%} (by chance: 1%)")
    if args.neighbours:
        shown = [image for i, *others in rows.tolist() for image in (made.images[i], *train_set.images[others])]
        save_picture(grid(torch.stack(shown), rows.shape[1], scale=2), args.neighbours)
    if args.out:
        write_json(args.out, scores)
    return 0


if __name__ == "__main__":
    run_main(main)
