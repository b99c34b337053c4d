"""Plot features of source and target digits before and after adaptation.

    python -m dann.tsne runs/dann-mnistm-usps-source/last.pt weights/dann-mnistm-usps.pt --out tsne.png

t-SNE (van der Maaten & Hinton 2008) of the 768 features, after PCA to 50, on validation digits. There is one column per
network; the upper row is coloured by digit, the lower one by domain. What counts is whether digits are apart and
domains overlap: distances between clusters mean nothing. The same command always gives the same picture.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.cli import Parser, add_data_flag, add_device_flags, add_force_flag, ending, positive_int, run_main
from common.data.folder import default_data, load_digits
from common.device import select_device
from common.errors import UserError
from common.files import atomic_path, require_new
from dann.predict import load_network, predict

PCA_DIM = 50


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_data_flag(parser)
    add_device_flags(parser, precision=False)
    parser.add_argument("before", metavar="BEFORE.pt", type=Path, help="checkpoint of --mode source")
    parser.add_argument("after", metavar="AFTER.pt", type=Path, help="checkpoint of --mode dann for the same domains")
    parser.add_argument("--out", metavar="PNG", type=ending(".png"), required=True)
    parser.add_argument("--points", metavar="N", type=positive_int, default=2000, help="images per domain, at most")
    add_force_flag(parser)
    args = parser.parse_args(argv)
    args.data = args.data or default_data()
    require_new(args.force, args.out)
    return args


def embed(features: np.ndarray) -> np.ndarray:
    """Map features (N, D) to points in the plane (N, 2), always in the same way."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(features) > PCA_DIM:
        features = PCA(PCA_DIM, svd_solver="full").fit_transform(features)
    perplexity = min(30, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)


def draw(planes: dict[str, np.ndarray], digits: np.ndarray, domains: np.ndarray, names: tuple[str, str],
         path: Path) -> None:
    """Write a PNG with one column per entry of `planes`: title -> (N, 2) points.

    `digits` are (N,) in 0..9; `domains` are (N,) indices of `names`, which are those of source and target.
    """
    from matplotlib.figure import Figure  # not pyplot, which opens windows and keeps global state

    figure = Figure(figsize=(5 * len(planes), 10), layout="constrained")
    axes = figure.subplots(2, len(planes), squeeze=False)
    order = np.random.default_rng(0).permutation(len(digits))  # so that neither domain hides the other
    for (title, plane), (top, bottom) in zip(planes.items(), axes.T, strict=True):
        for axis, colours, palette in ((top, digits, "tab10"), (bottom, domains, "coolwarm")):
            dots = axis.scatter(*plane[order].T, c=colours[order], cmap=palette, s=4, linewidths=0)
            axis.set(xticks=[], yticks=[], title=f"{title}, by {'digit' if axis is top else 'domain'}")
            handles, labels = dots.legend_elements()
            axis.legend(handles, names if axis is bottom else labels, fontsize=8, ncols=10, handletextpad=0,
                        columnspacing=1, loc="upper center", bbox_to_anchor=(0.5, 0))  # below the points
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def by_digit(picture: Image.Image, column: int) -> Image.Image:
    """Cut one network's panel by digit out of what `draw` wrote for two; column 0 is before adaptation, 1 after."""
    width, height = picture.width // 2, picture.height // 2
    return picture.crop((column * width, 0, (column + 1) * width, height))


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device = select_device(args.device)
    networks = {}
    for title, path, mode in (("before adaptation", args.before, "source"), ("after adaptation", args.after, "dann")):
        networks[title] = load_network(path, device)
        if (got := networks[title][1]["mode"]) != mode:
            raise UserError(f"{path} was trained with --mode {got}, expected {mode}: name BEFORE.pt, then AFTER.pt")
    pairs = [(model_args["source"], model_args["target"]) for _, model_args in networks.values()]
    if pairs[0] != pairs[1]:
        raise UserError(f"{args.before} is for {' -> '.join(pairs[0])}, {args.after} for {' -> '.join(pairs[1])}: "
                        "name two networks for the same domains")

    sets = [load_digits(args.data, domain, "val").sample(args.points) for domain in pairs[0]]
    images = torch.cat([digits.images for digits in sets])
    labels = torch.cat([digits.labels for digits in sets])
    counts = [len(digits.labels) for digits in sets]
    planes = {title: embed(predict(model, images, device)[0].numpy())
              for title, (model, model_args) in networks.items()}
    draw(planes, labels.numpy(), np.repeat([0, 1], counts), pairs[0], args.out)
    print(f"wrote {args.out}: {counts[0]} {pairs[0][0]} and {counts[1]} {pairs[0][1]} images")
    return 0


if __name__ == "__main__":
    run_main(main)
