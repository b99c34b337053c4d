"""Draw faces from a trained GAN into a folder: 1000 images, `0000.png` .. `0999.png`, 64x64 RGB.

    python -m gan.inference OUT

Image i depends on the seed and on i alone: the averaged weights run in float32 and eval mode. Convolutions
can round differently in batches of different sizes, so image i always comes from the same whole block of 50,
however many are asked for. Images that the same settings already wrote into OUT are kept, so a stopped run
is finished by the next. `--grid 32` draws the report's picture of the first 32 into the file OUT instead.
"""

import argparse
from itertools import groupby
from pathlib import Path

import torch
from tqdm import tqdm

from common.checkpoint import RELEASED, load_into, load_weights, sha256
from common.cli import Parser, add_device_flags, non_negative_int, positive_int, run_main
from common.device import place, select_device
from common.images import grid, save_image, save_picture, seeded_normal, still_missing, to_uint8
from gan.models import KINDS, build_generator

DEFAULT_MODEL = "dcgan"  # the better of the released ones (report, GAN 2)
BLOCK = 50
GRID_COLUMNS = 8


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the PNGs, or a .png with --grid")
    parser.add_argument("--model", choices=KINDS, default=DEFAULT_MODEL, help="(default: %(default)s)")
    parser.add_argument("--weights", metavar="PATH", type=Path,
                        help="(default: the model's file in weights/)")
    parser.add_argument("--n", metavar="N", type=positive_int, default=1000,
                        help="images (default: %(default)s)")
    parser.add_argument("--grid", metavar="N", type=positive_int, help="draw one picture of the first N")
    parser.add_argument("--seed", metavar="N", type=non_negative_int, default=0)
    add_device_flags(parser, precision=False)
    args = parser.parse_args(argv)
    if args.weights is None:
        args.weights = RELEASED / f"{args.model}.pt"
    if args.grid and args.out.suffix != ".png":
        parser.error(f"OUT: got {args.out}, expected a name that ends in .png with --grid")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device = select_device(args.device)
    model_args, weights = load_weights(args.weights, KINDS[args.model])
    generator = build_generator(model_args)
    load_into(generator, weights, args.weights)
    generator = place(generator, device).eval()

    @torch.inference_mode()
    def draw(block: int) -> torch.Tensor:
        numbers = range(block * BLOCK, (block + 1) * BLOCK)
        z = seeded_normal([(args.seed, i) for i in numbers], (generator.z_dim,))
        return to_uint8(generator(z.to(device))).cpu()

    if args.grid:
        images = torch.cat([draw(block) for block in range(-(-args.grid // BLOCK))])
        save_picture(grid(images[:args.grid], GRID_COLUMNS), args.out)
        print(f"wrote {args.out}")
        return 0

    names = [f"{i:04d}.png" for i in range(args.n)]
    stamp = f"{KINDS[args.model]} weights={sha256(args.weights)[:16]} seed={args.seed}"
    missing = still_missing(args.out, names, stamp)
    with tqdm(total=args.n, initial=args.n - len(missing), unit="image", disable=None) as bar:
        for block, numbers in groupby(missing, lambda i: i // BLOCK):
            images = draw(block)
            for i in numbers:
                save_image(images[i % BLOCK], args.out / names[i], stamp)
                bar.update()
    print(f"{args.n} images in {args.out}, {len(missing)} of them made now")
    return 0


if __name__ == "__main__":
    run_main(main)
