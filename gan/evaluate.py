"""Score a folder of drawn faces against real ones.

    python -m gan.evaluate OUT --reference hw2_data/face/val

Sliced Wasserstein distance of patches at three scales (Karras et al. 2018, arXiv:1710.10196, sec. 5), and
variety, the pixel distance between images of the folder, which falls when G repeats itself. Both stand beside
the figure for real images: the reference is shuffled and two disjoint sets are taken; the folder is measured
against the second, and so is the first, with the same number of images each. That number is at most half the
reference. The distance rises as it falls, so compare scores of equal counts only.

Near-duplicates are images whose nearest neighbour in the folder is at less than half the distance that is
usual between real neighbours. Copies of training faces, or of their mirror images, show as images closer to
the training set than nearly all unseen faces come; `--neighbours PNG` draws the most suspicious ones.

FID and the share of images with exactly one face are added where `gan.extras` finds their packages.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.cli import Parser, non_negative_int, run_main
from common.datasets import FACE_SIZE, default_data, load_faces, load_folder
from common.errors import UserError
from common.files import write_json
from common.images import grid, save_picture
from common.metrics import mean_pairwise_distance, memorisation, nearest
from gan.extras import PADDING, extra_scores

SCALES = 3  # 64, 32 and 16 px
# Patches an image and their side (Karras et al. 2018, sec. 5), and directions (their code).
PATCHES, PATCH_SIZE, DIRECTIONS = 128, 7, 512
NEAR = 0.5  # near-duplicates: share of the usual distance


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of 64x64 images")
    parser.add_argument("--reference", metavar="DIR|builtin",
                        default="builtin" if default_data() == "builtin" else f"{default_data()}/face/val",
                        help="real faces (default here: %(default)s)")
    parser.add_argument("--train", metavar="DIR|builtin",
                        help="what the network was trained on (default: the folder train beside the reference)")
    parser.add_argument("--neighbours", metavar="PNG", type=Path,
                        help="draw the ten images closest to a training face there, each before its nearest ones")
    parser.add_argument("--out", metavar="PATH", type=Path, help="write the scores there as JSON as well")
    parser.add_argument("--seed", metavar="N", type=non_negative_int, default=0)
    args = parser.parse_args(argv)
    if args.train is None:
        args.train = "builtin" if args.reference == "builtin" else str(Path(args.reference).parent / "train")
    return args


def blur(x: Tensor, gain: float = 1.0) -> Tensor:
    """Convolve (N, 3, H, W) with the binomial filter of Burt & Adelson 1983, times `gain`, mirrored edges."""
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (gain * line[:, None] * line).expand(3, 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """Split (N, 3, H, W) into SCALES bands, fine to coarse; the last one is what is left."""
    bands = []
    for _ in range(SCALES - 1):
        coarse = blur(images)[:, :, ::2, ::2]
        spread = torch.zeros_like(images)
        spread[:, :, ::2, ::2] = coarse
        bands.append(images - blur(spread, gain=4.0))
        images = coarse
    return [*bands, images]


def patches(images: Tensor, generator: torch.Generator) -> Tensor:
    """Cut 128 random 7x7 patches from each of (N, 3, H, W) and normalise each channel over all of them.

    Returns:
        (128 N, 147) float32; each channel has mean 0 and standard deviation 1.
    """
    n, _, height, width = images.shape
    top, left = (torch.randint(0, size - PATCH_SIZE + 1, (n, PATCHES, 1, 1), generator=generator)
                 for size in (height, width))
    offset = torch.arange(PATCH_SIZE)
    rows, columns = top + offset[:, None], left + offset
    cut = images[torch.arange(n)[:, None, None, None], :, rows, columns]  # (N, 128, 7, 7, 3)
    std, mean = torch.std_mean(cut, dim=(0, 1, 2, 3))
    return ((cut - mean) / std.clamp(min=1e-8)).flatten(2).flatten(0, 1)


def sliced_wasserstein(a: Tensor, b: Tensor, generator: torch.Generator) -> float:
    """Return the mean distance of two equal-sized sets of vectors, sorted along random directions.

    Args:
        a, b: (M, D) float32.
    """
    directions = F.normalize(torch.randn(DIRECTIONS, a.shape[1], generator=generator), dim=1)

    def projected(vectors: Tensor, part: Tensor) -> np.ndarray:
        return np.sort((part @ vectors.T).numpy(), axis=1)  # many times as fast as PyTorch's sort

    parts = directions.split(64)  # to save memory
    return float(np.mean([np.abs(projected(a, part) - projected(b, part)).mean() for part in parts]))


def swd(a: Tensor, b: Tensor, seed: int) -> list[float]:
    """Return the sliced Wasserstein distance, times 1000, at 64, 32 and 16 px.

    Args:
        a, b: (N, 3, 64, 64) uint8, equally many.
    """
    generator = torch.Generator().manual_seed(seed)
    bands = zip(laplacian_pyramid(a.float()), laplacian_pyramid(b.float()), strict=True)
    return [1000 * sliced_wasserstein(patches(band_a, generator), patches(band_b, generator), generator)
            for band_a, band_b in bands]


def variety(images: Tensor) -> float:
    """Return the root mean squared pixel difference between two images, in 0..255, over all pairs.

    Args:
        images: (N, 3, H, W) uint8.
    """
    features = images.flatten(1)
    return mean_pairwise_distance(features.numpy()) / features.shape[1] ** 0.5


def near_duplicates(images: Tensor, real: Tensor) -> float:
    """Return the share of images with another one at less than half the usual distance of real neighbours.

    Args:
        images: (N, 3, H, W) uint8, N >= 2.
        real: (N, 3, H, W) uint8.
    """
    def to_nearest(images: Tensor) -> np.ndarray:
        return nearest(images.numpy(), images.numpy(), 2)[0][:, 1]  # the nearest of all is the image itself

    return float((to_nearest(images) < NEAR * np.median(to_nearest(real))).mean())


def equal_sets(fake: Tensor, real: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return as many generated images, real ones, and other real ones, drawn from the seed.

    Args:
        fake, real: (N, 3, 64, 64) and (M, 3, 64, 64) uint8.

    Raises:
        UserError: there are not enough for two each.
    """
    n = min(len(fake), len(real) // 2)
    if n < 2:
        raise UserError(f"got {len(fake)} images and {len(real)} real ones: at least 2 and 4 are needed")
    generator = torch.Generator().manual_seed(seed)
    fake = fake[torch.randperm(len(fake), generator=generator)[:n]]
    return fake, *real[torch.randperm(len(real), generator=generator)[:2 * n]].split(n)


def score(fake: Tensor, first: Tensor, second: Tensor, seed: int) -> dict:
    """Return all scores that need no other package.

    Args:
        fake: (N, 3, 64, 64) uint8.
        first, second: as many real ones each, disjoint.
    """
    return {"images": len(fake), "swd": swd(fake, second, seed), "swd_real": swd(first, second, seed),
            "variety": variety(fake), "variety_real": variety(second),
            "near_duplicates": near_duplicates(fake, second), "near_duplicates_real": near_duplicates(second, second)}


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    fake = load_folder(args.folder, FACE_SIZE).images
    real = _faces(args.reference, "val")
    train = _faces(args.train, "train")
    if len(train) < 2:
        raise UserError(f"{args.train}: got 1 image, expected the training set: name it with --train")
    sets = equal_sets(fake, real, args.seed)
    scores = {"reference": args.reference, "seed": args.seed, **score(*sets, args.seed)}
    extra, missing = extra_scores(*sets)
    scores |= extra
    train = torch.cat([train, train.flip(-1)])  # training mirrors faces, so a mirrored copy is one too
    copies, rows = memorisation(fake.numpy(), real.numpy(), train.numpy())
    scores |= copies

    print(f"{scores['images']} of {len(fake)} images against {args.reference}")
    print("SWD x1000            64 px   32 px   16 px    mean")
    for name, key in (("images", "swd"), ("real against real", "swd_real")):
        values = [*scores[key], sum(scores[key]) / SCALES]
        print(f"  {name:17}" + "".join(f"{value:8.2f}" for value in values))
    print(f"variety              {scores['variety']:.1f}  (real: {scores['variety_real']:.1f})")
    print(f"near-duplicates      {scores['near_duplicates']:.1%}  (real: {scores['near_duplicates_real']:.1%})")
    print(f"closest to training  {scores['closest']:.2f}  (real: {scores['closest_real']:.2f}; 0 is a copy); "
          f"suspiciously close: {scores['suspicious']:.1%} (by chance: 1%)")
    if "one_face" in scores:
        print(f"exactly one face     {scores['one_face']:.1%}  (real: {scores['one_face_real']:.1%}; "
              f"dlib's HOG detector, padded by {PADDING} px)")
    if "fid" in scores:
        print(f"FID                  {scores['fid']:.1f}  (real: {scores['fid_real']:.1f}; "
              f"{scores['images']} images bias both upwards: compare equal counts only)")
    for line in missing:
        print(line)
    if args.neighbours:
        shown = [image for i, *others in rows.tolist() for image in (fake[i], *train[others])]
        save_picture(grid(torch.stack(shown), rows.shape[1]), args.neighbours)
    if args.out:
        write_json(args.out, scores)
    return 0


def _faces(where: str, split: str) -> Tensor:
    return (load_faces("builtin", split) if where == "builtin" else load_folder(where, FACE_SIZE)).images


if __name__ == "__main__":
    run_main(main)
