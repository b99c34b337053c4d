"""Generate digits with a trained diffusion model: a folder with 100 per digit, `0_001.png` .. `9_100.png`.

    python -m diffusion.inference OUT

The default is the released distilled network, which needs the fewest evaluations. With --sampler, --steps, --guidance,
--gif or --process, it is the released network that is not distilled.

The noise of an image depends only on the seed, the digit and the image's number. Images that are already in OUT are
kept if their settings are the same, so the same command continues a stopped one. Several processes share the images.
"""

import argparse
from functools import partial
from pathlib import Path

import torch

from common import cli
from common.checkpoint import RELEASED, sha256
from common.device import avoid_cudnn_attention
from common.distributed import init_process_group, rank
from common.files import require_new
from common.image_folder import generate_folder
from common.images import grid, save_gif, save_picture, to_uint8
from diffusion.pipeline import DDPM, DISTILLED, SAMPLERS, STANDARD, Setting, generate, load_pipeline, sample
from diffusion.schedule import NUM_TIMESTEPS

PROCESS_TIMES = (0, 200, 400, 600, 800, 1000)  # as hw2_report.md counts them: 0 is the finished image, here t = -1
GIF_FRAMES = 40  # four seconds
# Pictures of the denoising need many states. --sampler and --steps take precedence.
MANY_STATES = {"process": {"sampler": DDPM, "steps": NUM_TIMESTEPS}, "gif": {"sampler": "ddim", "steps": GIF_FRAMES}}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(__doc__)
    cli.add_device_flags(parser)
    cli.add_force_flag(parser)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the images, or file for the picture")
    picture = parser.add_mutually_exclusive_group()
    for name, what in (("grid", "one picture, OUT.png, with one row per digit"),
                       ("gif", "an animation, OUT.gif, of how that picture is denoised"),
                       ("process", "a picture, OUT.png, of the first image at six stages of the denoising")):
        picture.add_argument(f"--{name}", dest="picture", action="store_const", const=name, help=f"write {what}")
    parser.add_argument("--weights", metavar="CKPT", type=Path, help="the network (default: see above)")
    parser.add_argument("--sampler", choices=(DDPM, *SAMPLERS),
                        help=f"(default: as distilled, or {STANDARD.sampler}; --process: {DDPM}; --gif: ddim)")
    parser.add_argument("--steps", metavar="N", type=cli.positive_int,
                        help=f"(default: as distilled, or {STANDARD.steps}); {DDPM} always takes {NUM_TIMESTEPS}")
    parser.add_argument("--guidance", metavar="SCALE", type=cli.non_negative_float,
                        help=f"larger: clearer digits, less variety (default: {STANDARD.guidance:g}, 1 if distilled)")
    parser.add_argument("--digits", metavar="D,D,...", type=digit_list, default=list(range(10)),
                        help="which digits, e.g. 3,5 (default: all)")
    parser.add_argument("--per-digit", metavar="N", type=cli.positive_int,
                        help="images per digit (default: 100, or 10 in a picture)")
    parser.add_argument("--seed", metavar="N", type=cli.seed_number, default=0, help="of the noise")
    args = parser.parse_args(argv)
    if (args.steps or 0) > NUM_TIMESTEPS:
        parser.error(f"--steps: got {args.steps}, expected at most {NUM_TIMESTEPS}")
    if args.steps and args.sampler == DDPM:
        parser.error(f"--steps: {DDPM} always takes {NUM_TIMESTEPS}: leave it out")
    args.steps = NUM_TIMESTEPS if args.sampler == DDPM else args.steps
    args.per_digit = args.per_digit or (10 if args.picture else 100)
    suffix = ".gif" if args.picture == "gif" else ".png"
    if args.picture and args.out.suffix != suffix:
        parser.error(f"OUT: got {args.out}, expected a name that ends in {suffix} with --{args.picture}")
    return args


def digit_list(text: str) -> list[int]:
    """Parse different digits, e.g. `3,5`, and keep their order."""
    parts = text.split(",")
    if not all(part in set("0123456789") for part in parts) or len(set(parts)) < len(parts):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected different digits such as 3,5")
    return [int(part) for part in parts]


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device, dtype = cli.select_device_and_dtype(args)
    avoid_cudnn_attention()
    init_process_group(device)
    if args.picture:
        if rank():
            return 0  # one process writes the picture
        require_new(args.force, args.out)
    given = {name: value for name, value in vars(args).items() if name in Setting._fields and value is not None}
    weights = args.weights or RELEASED / ("diffusion.pt" if given or args.picture in MANY_STATES else DISTILLED)
    pipeline = load_pipeline(weights, device)
    if not pipeline.distilled and not {"sampler", "steps"} & given.keys():
        given |= MANY_STATES.get(args.picture, {})
    setting = pipeline.setting._replace(**given)
    pipeline.check(setting, weights)
    states = partial(sample, pipeline, setting, args.seed, dtype=dtype)
    finished = partial(generate, pipeline, setting, args.seed, dtype=dtype)
    pairs = [(digit, number) for digit in args.digits for number in range(1, args.per_digit + 1)]

    if args.picture == "process":
        images = {state.t + 1: to_uint8(state.x).cpu() for state in states(pairs[:1])}
        times = [min(images, key=lambda t: abs(t - wanted)) for wanted in PROCESS_TIMES]
        save_picture(grid(torch.cat([images[t] for t in times]), len(times), scale=4), args.out)
        print(f"wrote {args.out}: t = {', '.join(map(str, times))} (0 is the finished image)")
    elif args.picture == "gif":
        frames = [to_uint8(state.x).cpu() for state in states(pairs)]
        frames = [*frames[:-1:max(1, len(frames) // GIF_FRAMES)], frames[-1]]
        save_gif([grid(images, args.per_digit, scale=2) for images in frames], args.out)
        print(f"wrote {args.out}")
    elif args.picture == "grid":
        save_picture(grid(finished(pairs), args.per_digit, scale=2), args.out)
        print(f"wrote {args.out}")
    else:
        stamp = (f"diffusion weights={sha256(weights)[:16]} seed={args.seed} sampler={setting.sampler} "
                 f"steps={setting.steps} guidance={setting.guidance:g} dtype={dtype}")
        names = [f"{digit}_{number:03d}.png" for digit, number in pairs]
        num_new = generate_folder(args.out, names, stamp, lambda indices: finished([pairs[i] for i in indices]),
                                  pipeline.batch_size)
        print(f"{len(pairs)} images in {args.out}, {num_new} of them made now")
    return 0


if __name__ == "__main__":
    cli.run_main(main)
