"""Draw faces from a trained GAN into a folder: 1000 images, `0000.png` .. `0999.png`, 64x64 RGB.

    python -m gan.inference OUT

Image i depends on the seed and on i alone: the averaged weights run in float32 and eval mode. Convolutions
can round differently in batches of different sizes, so image i always comes from the same whole block of 50,
however many are asked for. Images that the same settings already wrote into OUT are kept, so a stopped run
is finished by the next; several processes share the blocks. `--grid 32` draws the report's picture of the first
32 into the file OUT instead, and `--interpolate` eight walks from face to face as an endless animation.

`--truncation T` keeps every number of z within T (Brock et al. 2019, arXiv:1809.11096, sec. 3.1): more usual
faces, less variety.
"""

import argparse
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from common.checkpoint import RELEASED, load_into, load_weights, sha256
from common.cli import Parser, add_device_flags, non_negative_int, positive_float, positive_int, run_main
from common.device import place, select_device
from common.distributed import join, rank, wait_for_all, world_size
from common.images import grid, save_gif, save_image, save_picture, seeded_normal, still_missing, to_uint8
from gan.models import KINDS, build_generator

DEFAULT_MODEL = "dcgan"  # the better of the released ones (report, GAN 2)
BLOCK = 50
GRID_COLUMNS = 8
STOPS, FRAMES_BETWEEN, FRAME_MS = 4, 12, 80  # of the animation


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("out", metavar="OUT", type=Path,
                        help="folder for the PNGs, or the file to draw with --grid, --interpolate")
    parser.add_argument("--model", choices=KINDS, default=DEFAULT_MODEL, help="(default: %(default)s)")
    parser.add_argument("--weights", metavar="PATH", type=Path,
                        help="(default: the model's file in weights/)")
    parser.add_argument("--n", metavar="N", type=positive_int, default=1000,
                        help="images (default: %(default)s)")
    picture = parser.add_mutually_exclusive_group()
    picture.add_argument("--grid", metavar="N", type=positive_int, help="draw one picture of the first N as OUT.png")
    picture.add_argument("--interpolate", action="store_true", help="draw walks between the first faces as OUT.gif")
    parser.add_argument("--truncation", metavar="T", type=positive_float, default=float("inf"),
                        help="largest number in z, e.g. 1 (default: no limit)")
    parser.add_argument("--seed", metavar="N", type=non_negative_int, default=0)
    add_device_flags(parser, precision=False)
    args = parser.parse_args(argv)
    if args.weights is None:
        args.weights = RELEASED / f"{args.model}.pt"
    if args.grid and args.out.suffix != ".png":
        parser.error(f"OUT: got {args.out}, expected a name that ends in .png with --grid")
    if args.interpolate and args.out.suffix != ".gif":
        parser.error(f"OUT: got {args.out}, expected a name that ends in .gif with --interpolate")
    return args


def truncate(z: Tensor, limit: float) -> Tensor:
    """Map standard normal numbers, of any shape, to the normal distribution truncated at +-limit, order kept.

    By the quantile, where Brock et al. draw again: so image i stays recognisably image i.
    """
    if limit == float("inf"):
        return z
    tail = torch.special.ndtr(torch.tensor(-limit, dtype=torch.float64))
    return torch.special.ndtri(tail + torch.special.ndtr(z.double()) * (1 - 2 * tail)).float()


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Return the point `share` of the way from a to b, (N, z_dim) each, along great circles (Shoemake 1985).

    The straight line would pass near the origin, where no z of training ever was (White 2016,
    arXiv:1609.04468).
    """
    cos = torch.nn.functional.cosine_similarity(a, b, dim=1)[:, None]
    angle = cos.clamp(-1 + 1e-6, 1 - 1e-6).acos()
    return (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()


def walk(z: Tensor) -> Iterator[Tensor]:
    """Yield points of a closed walk through z, (stops, N, z_dim): one (N, z_dim) a frame."""
    for here, there in zip(z, z.roll(-1, 0), strict=True):
        for frame in range(FRAMES_BETWEEN):
            yield slerp(here, there, frame / FRAMES_BETWEEN)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device = select_device(args.device)
    join(device)
    if rank() and (args.grid or args.interpolate):
        return 0  # a picture is the work of one process
    model_args, weights = load_weights(args.weights, KINDS[args.model])
    generator = build_generator(model_args)
    load_into(generator, weights, args.weights)
    generator = place(generator, device).eval()

    def noise(numbers: range) -> Tensor:
        z = seeded_normal([(args.seed, i) for i in numbers], (generator.z_dim,))
        return truncate(z, args.truncation)

    @torch.inference_mode()
    def decode(z: Tensor) -> Tensor:
        return to_uint8(generator(z.to(device))).cpu()

    def draw(block: int) -> Tensor:
        return decode(noise(range(block * BLOCK, (block + 1) * BLOCK)))

    if args.interpolate:
        stops = noise(range(STOPS * GRID_COLUMNS)).unflatten(0, (STOPS, GRID_COLUMNS))
        save_gif([grid(decode(z), GRID_COLUMNS) for z in walk(stops)], args.out, last_ms=FRAME_MS, frame_ms=FRAME_MS)
        print(f"wrote {args.out}")
        return 0
    if args.grid:
        images = torch.cat([draw(block) for block in range(-(-args.grid // BLOCK))])
        save_picture(grid(images[:args.grid], GRID_COLUMNS), args.out)
        print(f"wrote {args.out}")
        return 0

    names = [f"{i:04d}.png" for i in range(args.n)]
    stamp = f"{KINDS[args.model]} weights={sha256(args.weights)[:16]} seed={args.seed} truncation={args.truncation:g}"
    missing = still_missing(args.out, names, stamp)
    wait_for_all()  # before one of them writes what another would not miss
    mine = [i for i in missing if i // BLOCK % world_size() == rank()]
    done = args.n - len(missing)
    with tqdm(total=done + len(mine), initial=done, unit="image", disable=rank() > 0 or None) as bar:
        for block, numbers in groupby(mine, lambda i: i // BLOCK):
            images = draw(block)
            for i in numbers:
                save_image(images[i % BLOCK], args.out / names[i], stamp)
                bar.update()
    wait_for_all()
    print(f"{args.n} images in {args.out}, {len(missing)} of them made now")
    return 0


if __name__ == "__main__":
    run_main(main)
