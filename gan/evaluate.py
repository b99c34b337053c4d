"""Score folders of generated faces against real ones.

    python -m gan.evaluate OUT --reference hw2_data/face/val

Each score stands beside that of real images: the reference is shuffled and split into two disjoint sets, and both the
folder and the first set are measured against the second. All have equally many images, at most half the reference; most
scores depend on their number. Several folders, one per training or seed, give means and standard deviations. Each has a
split of its own, so a folder that is named several times shows how much the choice of real images matters.

    swd              sliced Wasserstein distance of patches at three scales (Karras et al. 2018, arXiv:1710.10196,
                     sec. 5), lower is better
    precision, recall, density, coverage
                     see common.scores; bad images lower precision and density, missing ones recall and coverage
    kernel           kernel distance, unbiased; like the four above in the features of gan.features
    near_duplicates  share of images whose nearest neighbour is less than half as far as is usual among real ones
    suspicious       share of images that come closer to a training face or its mirror image than 99% of the reference
    one_face, fid    need packages of their own, see gan.extras
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.cli import Parser, add_force_flag, ending, run_main
from common.data.folder import default_data, load_faces, load_folder
from common.errors import UserError
from common.files import require_new, write_json
from common.images import FACE_SIZE, grid, save_picture
from common.scores import (
    fidelity_and_diversity,
    frechet_distance,
    kernel_distance,
    memorisation,
    near_duplicates,
    small_sample_note,
)
from gan.extras import inception_features, one_face_share, optional_scores
from gan.features import features

SCALES = 3  # 64, 32 and 16 px
# Patches per image and their side (Karras et al. 2018, sec. 5), and directions (their code).
PATCHES, PATCH_SIZE, DIRECTIONS = 128, 7, 512
# How a score is printed, and what it means; one line per number.
PRINTED = {"swd": (".2f", ("x1000, 64 px", "x1000, 32 px", "x1000, 16 px")), "swd_mean": (".2f", ("x1000",)),
           **{name: (".3f", ("",)) for name in ("precision", "recall", "density", "coverage")},
           "kernel": (".2f", ("x1000",)), "near_duplicates": (".1%", ("",)),
           "suspicious": (".1%", ("closer to a training face than 99% of unseen real faces",)),
           "one_face": (".1%", ("exactly one face for dlib's HOG detector",)),
           "fid": (".1f", ("biased upwards: compare equal numbers of images only",))}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("folders", metavar="DIR", type=Path, nargs="+", help="folder of 64x64 images")
    parser.add_argument("--reference", metavar="DIR|builtin", help="real faces (default: hw2_data/face/val)")
    parser.add_argument("--train", metavar="DIR|builtin",
                        help="training set of the network (default: the folder `train` beside the reference)")
    parser.add_argument("--neighbours", metavar="PNG", type=ending(".png"),
                        help="show the ten images of the first folder that are closest to training faces")
    parser.add_argument("--out", metavar="JSON", type=ending(".json"), help="also write the scores to this file")
    add_force_flag(parser)
    args = parser.parse_args(argv)
    require_new(args.force, args.neighbours, args.out)
    if args.reference is None:
        try:
            args.reference = f"{default_data()}/face/val"
        except UserError:
            parser.error("there is no hw2_data: name real faces with --reference DIR, or type --reference builtin")
    if args.train is None:
        args.train = "builtin" if args.reference == "builtin" else str(Path(args.reference).parent / "train")
    if args.train != "builtin" and Path(args.train).resolve() == Path(args.reference).resolve():
        parser.error(f"--reference and --train: got {args.train} twice, expected unseen faces and the training set")
    return args


def blur(x: Tensor) -> Tensor:
    """Convolve (N, 3, H, W) with the binomial filter of Burt & Adelson 1983; edges are mirrored."""
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (line[:, None] * line).expand(3, 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """Split (N, 3, H, W) into SCALES bands, fine to coarse, each of half the size of the one before."""
    bands = []
    for _ in range(SCALES - 1):
        coarse = blur(images)[:, :, ::2, ::2]
        spread = torch.zeros_like(images)
        spread[:, :, ::2, ::2] = coarse
        bands.append(images - 4 * blur(spread))  # three of four pixels of `spread` are 0
        images = coarse
    return [*bands, images]


def patches(images: Tensor, generator: torch.Generator) -> Tensor:
    """Cut 128 random 7x7 patches from each of (N, 3, H, W) images: (128 N, 147) float32.

    Each channel is normalised over all patches to mean 0 and standard deviation 1.
    """
    top, left = (torch.randint(0, size - PATCH_SIZE + 1, (len(images), PATCHES), generator=generator)
                 for size in images.shape[-2:])
    windows = images.unfold(2, PATCH_SIZE, 1).unfold(3, PATCH_SIZE, 1).permute(0, 2, 3, 4, 5, 1)
    cut = windows[torch.arange(len(images))[:, None], top, left]  # (N, 128, 7, 7, 3)
    std, mean = torch.std_mean(cut, dim=(0, 1, 2, 3))
    return ((cut - mean) / std.clamp(min=1e-8)).flatten(2).flatten(0, 1)


def sliced_wasserstein(a: Tensor, b: Tensor, generator: torch.Generator) -> float:
    """Return the mean distance between two (M, D) float32 sets of vectors, sorted along random directions."""
    directions = F.normalize(torch.randn(DIRECTIONS, a.shape[1], generator=generator), dim=1)

    def projected(vectors: Tensor, part: Tensor) -> np.ndarray:
        return np.sort((part @ vectors.T).numpy(), axis=1)  # many times as fast as PyTorch's sort

    parts = directions.split(64)  # to save memory
    return float(np.mean([np.abs(projected(a, part) - projected(b, part)).mean() for part in parts]))


def swd(a: Tensor, b: Tensor, seed: int) -> list[float]:
    """Return the SWD of two (N, 3, 64, 64) uint8 sets, times 1000, at 64, 32 and 16 px."""
    generator = torch.Generator().manual_seed(seed)
    bands = zip(laplacian_pyramid(a.float()), laplacian_pyramid(b.float()), strict=True)
    return [1000 * sliced_wasserstein(patches(band_a, generator), patches(band_b, generator), generator)
            for band_a, band_b in bands]


def equal_sets(fake: Tensor, real: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose n generated images, n real ones and n other real ones at random, n as large as possible.

    Raises:
        UserError: n < 2.
    """
    n = min(len(fake), len(real) // 2)
    if n < 2:
        raise UserError(f"got {len(fake)} images and {len(real)} real ones, expected at least 2 and 4")
    generator = torch.Generator().manual_seed(seed)
    fake = fake[torch.randperm(len(fake), generator=generator)[:n]]
    return fake, *real[torch.randperm(len(real), generator=generator)[:2 * n]].split(n)


def measure(sets: Sequence[Tensor], real: Tensor, seed: int, optional: set[str]) -> list[dict]:
    """Return the scores of each set of (N, 3, 64, 64) uint8 images against as many real ones, with the `optional`."""
    real_vectors = features(real)
    real_inception = inception_features(real) if "fid" in optional else None
    rows = []
    for images in sets:
        distances, vectors = swd(images, real, seed), features(images)
        row = {"swd": distances, "swd_mean": sum(distances) / SCALES,
               **fidelity_and_diversity(vectors, real_vectors),
               "kernel": 1000 * kernel_distance(vectors, real_vectors),
               "near_duplicates": near_duplicates(images.numpy(), real.numpy())}
        if "one_face" in optional:
            row["one_face"] = one_face_share(images)
        if "fid" in optional:
            row["fid"] = frechet_distance(inception_features(images), real_inception)
        rows.append(row)
    return rows


def compare(fake: Tensor, real: Tensor, seed: int, optional: set[str]) -> dict:
    """Return the scores of one random choice of images; a name with `_real` is that of real images."""
    chosen, first, second = equal_sets(fake, real, seed)
    scores, of_real = measure((chosen, first), second, seed, optional)
    return {"images": len(chosen), **scores, **{f"{name}_real": value for name, value in of_real.items()}}


def summary(runs: list[dict]) -> dict:
    """Return the mean of each score over folders, and as "std" their standard deviations if there are several."""
    values = {name: np.array([run[name] for run in runs]) for name in runs[0]}
    scores = {name: value.mean(0).tolist() for name, value in values.items()} | {"images": runs[0]["images"]}
    if len(runs) > 1:
        scores["std"] = {name: value.std(0, ddof=1).tolist() for name, value in values.items()}
    return scores


def table(scores: dict) -> list[str]:
    """Return one line per number: its name, of the images, of real ones, and what it means."""
    width = 18 if "std" in scores else 10

    def texts(name: str, form: str) -> list[str]:
        values = [np.atleast_1d(of[name]) for of in (scores, scores.get("std")) if of]
        return [" ± ".join(format(value, form) for value in pair) for pair in zip(*values, strict=True)]

    return [f"{'':17}{'images':>{width}}{'real':>{width}}",
            *(f"{name:17}{images:>{width}}{real:>{width}}  {meaning}".rstrip()
              for name, (form, meanings) in PRINTED.items() if name in scores
              for images, real, meaning in zip(texts(name, form), texts(f"{name}_real", form), meanings, strict=True))]


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    folders = [load_folder(folder, FACE_SIZE).images for folder in args.folders]
    count = min(map(len, folders))
    real, train = _faces(args.reference, "val"), _faces(args.train, "train")
    if len(train) < 2:
        raise UserError(f"{args.train}: got 1 image, expected the training set: name its folder with --train")
    train = torch.cat([train, train.flip(-1)])  # training mirrors faces, so a mirrored copy is a copy
    optional, notes = optional_scores()
    runs, closest = [], []  # of each folder: its scores, and the rows of a picture
    for seed, images in enumerate(folders):
        fake = images[:count]
        copies, rows = memorisation(fake.numpy(), real.numpy(), train.numpy())
        closest.append(rows)
        scores = compare(fake, real, seed, optional)
        runs.append(scores | {"suspicious": copies["suspicious"], "suspicious_real": 0.01})  # real: by its definition
    scores = {"kind": "gan", "reference": args.reference, "folders": len(folders), **summary(runs)}

    if args.neighbours:
        tiles = [image for i, *others in closest[0].tolist() for image in (folders[0][i], *train[others])]
        save_picture(grid(torch.stack(tiles), closest[0].shape[1]), args.neighbours)
    if args.out:
        write_json(args.out, scores)
    print(f"{scores['images']} of {count} images{' per folder' * (len(folders) > 1)} against {args.reference}")
    print("\n".join([*table(scores), *notes, *small_sample_note(scores["images"])]))
    return 0


def _faces(where: str, split: str) -> Tensor:
    return (load_faces("builtin", split) if where == "builtin" else load_folder(where, FACE_SIZE)).images


if __name__ == "__main__":
    run_main(main)
