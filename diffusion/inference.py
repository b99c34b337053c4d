"""Draw digits from a trained diffusion model into a folder: 100 a digit, `0_001.png` .. `9_100.png`.

    python -m diffusion.inference OUT

The released distilled network draws them in few steps; with `--full`, or any other flag about steps or guidance, the
one that it learnt from does.

The noise of an image depends on the seed, its digit and its number alone. Images that the same settings
already wrote into OUT are kept, so a stopped run is finished by the next; several processes share the batches.
`--grid` draws the report's 10x10 picture (a row a digit) instead, `--gif` the same as it comes out of the noise,
and `--process` the report's six frames of the first image (t = 0, 200, ..., 1000).
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from common.checkpoint import RELEASED, sha256
from common.cli import Parser, add_device_flags, non_negative_float, non_negative_int, positive_int, run_main
from common.device import select_device, select_dtype
from common.distributed import join, rank, wait_for_all, world_size
from common.images import grid, save_gif, save_image, save_picture, still_missing, to_uint8
from diffusion.generate import DISTILLED, FULL, SAMPLERS, chain, load_network
from diffusion.samplers import State

FRAME_TIMES = (0, 200, 400, 600, 800, 1000)  # the report's; time t of the chain is index t - 1 here
GIF_FRAMES = 40  # about as many as four seconds show
# Pictures of the way out of the noise take a chain with many moments, unless other flags say so.
MOMENTS = {"process": {"sampler": FULL}, "gif": {"sampler": "ddim", "steps": GIF_FRAMES}}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_device_flags(parser)
    parser.add_argument("out", metavar="OUT", type=Path,
                        help="folder for the PNGs, or the file to draw with --grid, --gif, --process")
    picture = parser.add_mutually_exclusive_group()
    picture.add_argument("--grid", dest="picture", action="store_const", const="grid",
                         help="draw one picture, a row of each digit, as OUT.png")
    picture.add_argument("--gif", dest="picture", action="store_const", const="gif",
                         help="draw that picture's way out of the noise as OUT.gif")
    picture.add_argument("--process", dest="picture", action="store_const", const="process",
                         help="draw six moments of the first image's as OUT.png")
    parser.add_argument("--weights", metavar="PATH", type=Path,
                        help="(default: the released network, distilled where no flag asks for other steps)")
    sampler = parser.add_mutually_exclusive_group()
    sampler.add_argument("--full", dest="sampler", action="store_const", const=FULL,
                         help="the whole chain of 1000 steps, the same as --sampler ddpm")
    sampler.add_argument("--sampler", choices=(FULL, *SAMPLERS), help="(default: the network's own)")
    parser.add_argument("--steps", metavar="N", type=positive_int,
                        help="of the chain (default: the network's own); ddpm always takes 1000")
    parser.add_argument("--guidance", metavar="SCALE", type=non_negative_float, help="(default: the network's own)")
    parser.add_argument("--guidance-interval", metavar=("LOW", "HIGH"), type=non_negative_int, nargs=2,
                        help="guide only at these times, at half the cost elsewhere (default: all)")
    parser.add_argument("--digits", metavar="D,D,...", type=digit_list, default=list(range(10)),
                        help="draw only these, e.g. 3,5 (default: all ten)")
    parser.add_argument("--per-digit", metavar="N", type=positive_int,
                        help="images of each digit (default: 100; 10 in a picture)")
    parser.add_argument("--batch-size", metavar="N", type=positive_int, default=100)
    parser.add_argument("--seed", metavar="N", type=non_negative_int, default=0)
    args = parser.parse_args(argv)
    if args.steps is not None and args.steps > 1000:
        parser.error(f"--steps: got {args.steps}, expected at most the chain's 1000")
    if args.guidance_interval is not None:
        args.guidance_interval = tuple(args.guidance_interval)
    if args.per_digit is None:
        args.per_digit = 10 if args.picture else 100
    suffix = {"grid": ".png", "gif": ".gif", "process": ".png", None: args.out.suffix}[args.picture]
    if args.out.suffix != suffix:
        parser.error(f"OUT: got {args.out}, expected a name that ends in {suffix} with --{args.picture}")
    return args


def digit_list(text: str) -> list[int]:
    """Read `3,5`: different digits, in the order they are given."""
    parts = text.split(",")
    if not all(part in set("0123456789") for part in parts) or len(set(parts)) < len(parts):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected different digits such as 3,5")
    return [int(part) for part in parts]


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device = select_device(args.device)
    dtype = select_dtype(device, args.precision)
    join(device)
    if rank() and args.picture:
        return 0  # a picture is the work of one process
    given = {"sampler": args.sampler, "steps": args.steps, "guidance": args.guidance,
             "interval": args.guidance_interval}
    given = {name: value for name, value in given.items() if value is not None}
    weights = args.weights or RELEASED / ("diffusion.pt" if given or args.picture in MOMENTS else DISTILLED)
    network = load_network(weights, device)
    longer = {} if network.distilled or {"sampler", "steps"} & given.keys() else MOMENTS.get(args.picture, {})
    setting = network.setting._replace(**longer | given)
    network.check_guidance(setting.guidance, weights)

    def states(pairs: list[tuple[int, int]]) -> Iterator[State]:
        return chain(network, setting, args.seed, pairs, device, dtype)

    def draw(pairs: list[tuple[int, int]]) -> torch.Tensor:
        *_, last = states(pairs)
        return to_uint8(last.x).cpu()

    if args.picture == "process":
        frames = {state.t + 1: state.x for state in states([(args.digits[0], 1)])}
        nearest = [min(frames, key=lambda t: abs(t - wanted)) for wanted in FRAME_TIMES]
        save_picture(grid(torch.cat([to_uint8(frames[t]).cpu() for t in nearest]), len(nearest), scale=4), args.out)
        print(f"wrote {args.out}: t = {', '.join(map(str, nearest))} (0 is the finished image)")
        return 0
    pairs = [(digit, number) for digit in args.digits for number in range(1, args.per_digit + 1)]
    if args.picture:
        *_, last = moments = [to_uint8(state.x).cpu() for state in states(pairs)]
        if args.picture == "grid":
            save_picture(grid(last, args.per_digit, scale=2), args.out)
        else:
            shown = [*moments[:-1:max(1, len(moments) // GIF_FRAMES)], last]
            save_gif([grid(images, args.per_digit, scale=2) for images in shown], args.out)
        print(f"wrote {args.out}")
        return 0

    names = [f"{digit}_{number:03d}.png" for digit, number in pairs]
    stamp = (f"diffusion weights={sha256(weights)[:16]} seed={args.seed} sampler={setting.sampler} "
             f"steps={setting.steps} guidance={setting.guidance:g} "
             f"interval={setting.interval[0]}-{setting.interval[1]} dtype={dtype}")
    missing = still_missing(args.out, names, stamp)
    wait_for_all()  # before one of them writes what another would not miss
    mine = [i for i in missing if i // args.batch_size % world_size() == rank()]
    done = len(names) - len(missing)
    with tqdm(total=done + len(mine), initial=done, unit="image", disable=rank() > 0 or None) as bar:
        for batch in (mine[i:i + args.batch_size] for i in range(0, len(mine), args.batch_size)):
            for i, image in zip(batch, draw([pairs[i] for i in batch]), strict=True):
                save_image(image, args.out / names[i], stamp)
            bar.update(len(batch))
    wait_for_all()
    print(f"{len(names)} images in {args.out}, {len(missing)} of them made now")
    return 0


if __name__ == "__main__":
    run_main(main)
