"""Generate faces with a trained GAN: 1000 images, `0000.png` .. `0999.png`, 64x64 RGB, in the folder OUT.

    python -m gan.inference OUT

Image i depends on the seed and i alone. The averaged weights run in eval mode and float32, TF32 on a GPU. Convolutions
may round differently in batches of another size, so image i always comes from the same whole batch: of 50, or of 500 on
a GPU. A stopped command continues: images that the same settings wrote into OUT are kept. Several processes share the
work.

Instead of the folder, `--grid 32` writes one picture of the first 32 images, and `--interpolate` an endless animation
of eight walks from face to face.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from common.checkpoint import RELEASED, load_into, load_weights, sha256
from common.cli import Parser, add_device_flags, add_force_flag, positive_int, run_main, seed_number
from common.device import Captured, allow_tf32, place, select_device, send
from common.distributed import init_process_group, rank
from common.files import require_new
from common.image_folder import generate_folder
from common.images import grid, save_gif, save_picture, to_uint8
from common.randomness import seeded_normal
from gan.models import MODELS, build_generator

DEFAULT_MODEL = "dcgan"  # whose faces are CelebA's; those of the released SAGAN are LFWcrop's
BATCH_SIZE, GPU_BATCH_SIZE = 50, 500
GRID_COLUMNS = 8
STOPS, FRAMES_BETWEEN, FRAME_MS = 4, 12, 80  # of the animation


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the images, or name of the .png or .gif")
    parser.add_argument("--model", choices=MODELS, help=f"network (default: that of --weights, or {DEFAULT_MODEL})")
    parser.add_argument("--weights", metavar="PATH", type=Path, help="(default: the released weights/MODEL.pt)")
    picture = parser.add_mutually_exclusive_group()
    picture.add_argument("--n", metavar="N", type=positive_int, default=1000, help="number of images in the folder")
    picture.add_argument("--grid", metavar="N", type=positive_int, help="write the first N images as one .png")
    picture.add_argument("--interpolate", action="store_true", help="write walks between faces as an animated .gif")
    parser.add_argument("--seed", metavar="N", type=seed_number, default=0, help="of the noise")
    add_device_flags(parser, precision=False)
    add_force_flag(parser)
    args = parser.parse_args(argv)
    args.weights = args.weights or RELEASED / f"{args.model or DEFAULT_MODEL}.pt"
    for flag, given, suffix in (("--grid", args.grid, ".png"), ("--interpolate", args.interpolate, ".gif")):
        if given and args.out.suffix != suffix:
            parser.error(f"OUT: got {args.out}, expected a name that ends in {suffix} with {flag}")
    return args


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Return the point `share` of the way from a to b, (N, z_dim) each, along great circles (Shoemake 1985).

    A straight line would pass near the origin, far from every z of training (White 2016, arXiv:1609.04468).
    """
    cos = torch.nn.functional.cosine_similarity(a, b, dim=1)[:, None]
    angle = cos.clamp(-1 + 1e-6, 1 - 1e-6).acos()
    return (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()


def walk(z: Tensor) -> Iterator[Tensor]:
    """Yield the points of a closed walk through z, (stops, N, z_dim): one (N, z_dim) per frame."""
    for here, there in zip(z, z.roll(-1, 0), strict=True):
        for frame in range(FRAMES_BETWEEN):
            yield slerp(here, there, frame / FRAMES_BETWEEN)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device = select_device(args.device)
    allow_tf32(True)  # on average, pixels change by a hundredth of a level
    batch_size = BATCH_SIZE if device.type == "cpu" else GPU_BATCH_SIZE
    init_process_group(device)
    if args.grid or args.interpolate:
        if rank():
            return 0  # one process writes the picture
        require_new(args.force, args.out)
    kinds = [model.kind for name, model in MODELS.items() if args.model in (None, name)]
    model_args, weights = load_weights(args.weights, *kinds)
    generator = build_generator(model_args)
    load_into(generator, weights, args.weights)
    generator = place(generator, device).eval()

    def noise(numbers: range) -> Tensor:
        return seeded_normal([(args.seed, i) for i in numbers], (generator.z_dim,))

    @torch.no_grad()
    def draw(z: Tensor) -> Tensor:
        return to_uint8(generator(z))

    captured = Captured(draw, device)

    def generate(z: Tensor) -> Tensor:
        return captured(send(z, device)).cpu()

    def generate_batch(indices: range) -> Tensor:  # a whole batch, even where fewer images are wanted
        return generate(noise(range(indices.start, indices.start + batch_size)))

    if args.interpolate:
        stops = noise(range(STOPS * GRID_COLUMNS)).unflatten(0, (STOPS, GRID_COLUMNS))
        frames = [grid(generate(z), GRID_COLUMNS) for z in walk(stops)]
        save_gif(frames, args.out, last_ms=FRAME_MS, frame_ms=FRAME_MS)
        print(f"wrote {args.out}")
    elif args.grid:
        batches = [generate_batch(range(start, args.grid)) for start in range(0, args.grid, batch_size)]
        save_picture(grid(torch.cat(batches)[:args.grid], GRID_COLUMNS), args.out)
        print(f"wrote {args.out}")
    else:
        names = [f"{i:04d}.png" for i in range(args.n)]
        stamp = f"{MODELS[model_args['model']].kind} weights={sha256(args.weights)[:16]} seed={args.seed}"
        num_new = generate_folder(args.out, names, stamp, generate_batch, batch_size)
        print(f"{args.n} images in {args.out}, {num_new} of them made now")
    return 0


if __name__ == "__main__":
    run_main(main)
