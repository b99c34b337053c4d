"""Draw validation features of source and target before and after adaptation, by digit and by domain.

    python -m dann.tsne runs/dann-mnistm-usps-source/last.pt weights/dann-mnistm-usps.pt --out tsne.png

t-SNE (van der Maaten & Hinton 2008) of the 768 features, after PCA to 50: a column for each of the two
networks, a row for each colouring. The same command gives the same picture. Distances between clusters mean
nothing; whether the domains lie on each other, and the digits apart, does.
"""

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.cli import Parser, add_data_flag, add_device_flags, positive_int, run_main
from common.datasets import ImageSet, load_digits
from common.device import select_device
from common.errors import UserError
from common.images import save_picture
from dann.predict import load_network, predict

PCA_DIM = 50


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_data_flag(parser)
    add_device_flags(parser, precision=False)
    parser.add_argument("before", metavar="BEFORE.pt", type=Path, help="checkpoint of --mode source")
    parser.add_argument("after", metavar="AFTER.pt", type=Path, help="checkpoint of --mode dann on the same domains")
    parser.add_argument("--out", metavar="PNG", type=Path, required=True)
    parser.add_argument("--points", metavar="N", type=positive_int, default=2000, help="images a domain")
    args = parser.parse_args(argv)
    if args.out.suffix != ".png":
        parser.error(f"--out: got {args.out}, expected a name that ends in .png")
    return args


def embed(features: np.ndarray) -> np.ndarray:
    """Map features (N, D) to the plane, (N, 2), deterministically."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if features.shape[1] > PCA_DIM and len(features) > PCA_DIM:
        features = PCA(PCA_DIM, svd_solver="full").fit_transform(features)
    perplexity = min(30, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)


def draw(planes: dict[str, np.ndarray], digits: np.ndarray, domains: np.ndarray, names: tuple[str, str],
         path: Path) -> None:
    """Write the picture: a column an entry of `planes`, digits above, domains below.

    Args:
        planes: title -> (N, 2) positions.
        digits: (N,) 0..9.
        domains: (N,) 0 for source, 1 for target.
        names: what the domains are called.
        path: a PNG.
    """
    from matplotlib.figure import Figure  # no pyplot: no window, no global state

    figure = Figure(figsize=(5 * len(planes), 10), layout="constrained")
    axes = figure.subplots(2, len(planes), squeeze=False)
    order = np.random.default_rng(0).permutation(len(digits))  # neither domain is painted over the other
    for (title, plane), (top, bottom) in zip(planes.items(), axes.T, strict=True):
        for axis, colours, palette in ((top, digits, "tab10"), (bottom, domains, "coolwarm")):
            dots = axis.scatter(*plane[order].T, c=colours[order], cmap=palette, s=4, linewidths=0)
            axis.set_xticks([])
            axis.set_yticks([])
            handles, labels = dots.legend_elements()
            axis.legend(handles, names if axis is bottom else labels, fontsize=8, ncols=10, handletextpad=0,
                        columnspacing=1, loc="upper center", bbox_to_anchor=(0.5, 0))  # beside the points, not on them
        top.set_title(f"{title}, by digit")
        bottom.set_title(f"{title}, by domain")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    save_picture(Image.open(drawn), path)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device = select_device(args.device)
    networks = {title: load_network(path, device)
                for title, path in (("before adaptation", args.before), ("after adaptation", args.after))}
    pairs = [(model_args["source"], model_args["target"]) for _, model_args in networks.values()]
    if pairs[0] != pairs[1]:
        raise UserError(f"{args.before} is of {' -> '.join(pairs[0])}, {args.after} of {' -> '.join(pairs[1])}: "
                        "name two networks of the same domains")

    sets = [_some(load_digits(args.data, domain, "val"), args.points) for domain in pairs[0]]
    images = torch.cat([images for images, _ in sets])
    digits = torch.cat([labels for _, labels in sets]).numpy()
    domains = np.repeat([0, 1], [len(images) for images, _ in sets])
    planes = {title: embed(predict(model, images, model_args["standardise"], device)[0].numpy())
              for title, (model, model_args) in networks.items()}
    draw(planes, digits, domains, pairs[0], args.out)
    print(f"wrote {args.out}: {len(sets[0][0])} {pairs[0][0]} and {len(sets[1][0])} {pairs[0][1]} images")
    return 0


def _some(digits: ImageSet, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = torch.randperm(len(digits.images), generator=torch.Generator().manual_seed(0))[:count]
    return digits.images[chosen], digits.labels[chosen]


if __name__ == "__main__":
    run_main(main)
