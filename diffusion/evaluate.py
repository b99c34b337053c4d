"""Score a folder of generated digits, `0_001.png` .. `9_100.png`, against real validation digits.

    python -m diffusion.evaluate OUT --data hw2_data

The scores are the accuracy of a classifier (trained once on real digits, then stored), the Frechet distance of its
features, and the variety among images of one digit. Values of real digits are printed beside them. Accuracy alone
would reward one perfect 3 repeated a hundred times. A poor distance may mean bad digits, which lower precision and
density, or missing ones, which lower recall and coverage (see common.scores). None of these detects copies of training
digits, so the nearest training digits are searched too (Carlini et al. 2023, arXiv:2301.13188); `--neighbours` shows
them. `--cas` asks whether a classifier can learn from the images (Ravuri & Vinyals 2019, arXiv:1905.10887).
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from common import cli
from common.data.folder import default_data, load_digits
from common.errors import UserError
from common.files import require_new, write_json
from common.images import grid, save_picture, stamp_of
from common.scores import (
    fidelity_and_diversity,
    frechet_distance,
    mean_pairwise_distance,
    memorisation,
    small_sample_note,
)
from diffusion.classifier import classification_accuracy, classify_real, load_or_train, predict
from diffusion.pipeline import load_generated

ENOUGH_FOR_CAS = 1000  # digits to train on
MEANING = {"precision": "bad digits lower it", "recall": "missing kinds of digits lower it",
           "density": "as precision, but odd real digits hardly matter",
           "coverage": "as recall, but odd generated digits do not raise it"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(__doc__)
    cli.add_data_flag(parser)
    cli.add_device_flags(parser)
    cli.add_force_flag(parser)
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of images named DIGIT_NUMBER.png")
    parser.add_argument("--domain", default="mnistm", help="real digits to compare with")
    parser.add_argument("--classifier", metavar="PATH", type=Path,
                        help="where the classifier is stored (default: a name under runs/)")
    parser.add_argument("--cas", action="store_true",
                        help="also train a classifier on the images, and one on as many real digits")
    parser.add_argument("--neighbours", metavar="PNG", type=cli.ending(".png"),
                        help="write a picture: the ten images closest to a training digit, beside their nearest ones")
    parser.add_argument("--out", metavar="JSON", type=cli.ending(".json"), help="also write the scores to this file")
    args = parser.parse_args(argv)
    args.data = args.data or default_data()
    require_new(True, args.classifier, args.neighbours, args.out)  # a classifier may be stored already
    require_new(args.force, args.neighbours, args.out)
    return args


def variety(features: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Return, by digit, the mean distance between the features of two of its images; digits with one are left out."""
    groups = {digit: features[labels == digit] for digit in range(10)}
    return {digit: mean_pairwise_distance(group) for digit, group in groups.items() if len(group) > 1}


def score(fake: np.ndarray, fake_labels: np.ndarray, predicted: np.ndarray,
          real: np.ndarray, real_labels: np.ndarray) -> dict:
    """Return all scores of features: those of memorisation and `--cas` need images.

    Args:
        fake, real: classifier features of generated images (N, D), and of real ones (M, D); UserError for too few.
        fake_labels, predicted: (N,) the digits that generated images should show, and those that are predicted.
        real_labels: (M,) the digits of the real images.
    """
    # Real against real: per digit, the first set has as many images as `fake`, at most half; the second has the rest.
    rng = np.random.default_rng(0)
    order = rng.permutation(len(real))
    first, second = [], []
    for digit in range(10):
        own = order[real_labels[order] == digit]
        count = min(int((fake_labels == digit).sum()), len(own) // 2)
        first.extend(own[:count])
        second.extend(own[count:])
    if len(first) < 2 or len(fake) < 2:
        raise UserError(f"got {len(fake)} generated and {len(real)} real images, expected at least 2, and 2 per digit")
    # Balls need equal numbers: those of the first set.
    some, others = (x[rng.permutation(len(x))[:len(first)]] for x in (fake, real[second]))
    fake_variety, real_variety = variety(fake, fake_labels), variety(real, real_labels)
    ratios = {digit: value / real_variety[digit] for digit, value in fake_variety.items() if digit in real_variety}
    correct = predicted == fake_labels
    return {
        "images": len(fake),
        "accuracy": float(correct.mean()),
        "accuracy_by_digit": {d: float(correct[fake_labels == d].mean()) for d in np.unique(fake_labels).tolist()},
        "frechet": frechet_distance(fake, real[second]),
        "frechet_real": frechet_distance(real[first], real[second]),
        **fidelity_and_diversity(some, others),
        **{f"{name}_real": value for name, value in fidelity_and_diversity(real[first], others).items()},
        "variety": float(np.mean(list(ratios.values()))) if ratios else 0.0,
        "variety_by_digit": ratios,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device, dtype = cli.select_device_and_dtype(args)
    fake = load_generated(args.folder)
    real = load_digits(args.data, args.domain, "val")
    train_set = load_digits(args.data, args.domain, "train")
    classifier = load_or_train(args.classifier, args.domain, train_set, device, dtype)

    real_features, accuracy = classify_real(classifier, real, device, dtype)
    features, predicted = predict(classifier, fake.images, device, dtype)
    scores = score(features.numpy(), fake.labels.numpy(), predicted.numpy(), real_features.numpy(), real.labels.numpy())
    copies, rows = memorisation(fake.images.numpy(), real.images.numpy(), train_set.images.numpy())
    scores |= {"kind": "diffusion", "made": stamp_of(args.folder / fake.names[0]),
               "classifier_accuracy_on_val": accuracy, **copies}
    if args.cas:
        print("training two classifiers for --cas", flush=True)
        scores |= classification_accuracy(fake, train_set, real, device, dtype)

    if args.neighbours:
        shown = [image for i, *others in rows.tolist() for image in (fake.images[i], *train_set.images[others])]
        save_picture(grid(torch.stack(shown), rows.shape[1], scale=2), args.neighbours)
    if args.out:
        write_json(args.out, scores)
    print(f"{scores['images']} digits against the validation digits of {args.domain}")
    print(f"accuracy             {scores['accuracy']:.2%}  (real: {scores['classifier_accuracy_on_val']:.2%})")
    print("  by digit           " + " ".join(f"{d}:{v:.0%}" for d, v in scores["accuracy_by_digit"].items()))
    print(f"Frechet distance     {scores['frechet']:.2f}  (real against real: {scores['frechet_real']:.2f})")
    for name, meaning in MEANING.items():
        print(f"{name:20} {scores[name]:.2f}  (real against real: {scores[f'{name}_real']:.2f}; {meaning})")
    print(f"variety per digit    {scores['variety']:.2f}  (real: 1)")
    print(f"closest to training  {scores['closest']:.2f}  (real: {scores['closest_real']:.2f}; 0 is a copy)")
    print(f"suspiciously close   {scores['suspicious']:.1%}  (real: 1%)")
    if args.cas:
        print(f"trained on them      {scores['cas']:.2%}  (on as many real digits: {scores['cas_real']:.2%})")
        if (count := min(len(fake.labels), len(train_set.labels))) < ENOUGH_FOR_CAS:
            print(f"note: --cas on {count} digits says little: train on at least {ENOUGH_FOR_CAS}")
    for note in small_sample_note(len(fake.images)):
        print(note)
    return 0


if __name__ == "__main__":
    cli.run_main(main)
