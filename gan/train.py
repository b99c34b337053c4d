"""Train a GAN on 64x64 faces: method A, DCGAN, or method B, SAGAN.

    python -m gan.train --model sagan --data hw2_data --out runs/gan-sagan

DCGAN (Radford et al. 2016, arXiv:1511.06434) takes the non-saturating loss and one learning rate, SAGAN
(Zhang et al. 2019, arXiv:1805.08318) the hinge loss and two (Heusel et al. 2017, arXiv:1706.08500). Beyond
both papers: an average of G draws the samples, and D sees augmented images (Zhao et al. 2020); the papers'
own recipe is `--no-augment --ema-decay 0`. The run folder gets metrics.jsonl, 32 faces from fixed noise a
preview under samples/, last.pt for resume and inference, and curves.png.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from common.batches import Batches
from common.cli import (
    Parser,
    add_sync_bn_flag,
    add_training_flags,
    describe,
    fraction,
    positive_float,
    positive_int,
    resolve_steps,
    run_main,
)
from common.datasets import load_faces
from common.device import autocast, place, seed_everything, select_device, select_dtype
from common.distributed import (
    average_gradients,
    average_statistics,
    first_alone,
    join,
    own_draws,
    rank,
    share,
    sync_batch_norm,
)
from common.ema import EMA
from common.images import grid, save_picture, seeded_normal, to_float, to_uint8
from common.runlog import Run
from gan.augment import augment, random_flip
from gan.losses import LOSSES
from gan.models import KINDS, WIDTH_MULTIPLE, build_discriminator, build_generator
from gan.sagan import SelfAttention

# What each paper trains with: DCGAN sec. 4, SAGAN sec. 4. A flag that is not given takes its value from here.
RECIPES = {"dcgan": {"loss": "non-saturating", "g_lr": 2e-4, "d_lr": 2e-4},
           "sagan": {"loss": "hinge", "g_lr": 1e-4, "d_lr": 4e-4}}
BETAS = {"dcgan": (0.5, 0.999), "sagan": (0.0, 0.9)}
PREVIEW_IMAGES, PREVIEW_COLUMNS = 32, 8


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_training_flags(parser, steps=30_000, batch_size=64)
    add_sync_bn_flag(parser)
    parser.add_argument("--model", choices=KINDS, required=True)
    parser.add_argument("--width", metavar="N", type=positive_int, default=64,
                        help="channels of the largest maps (default: the report's 64)")
    parser.add_argument("--loss", choices=LOSSES, help="(default: the model's, see above)")
    parser.add_argument("--g-lr", type=positive_float, help="(default: dcgan 2e-4, sagan 1e-4)")
    parser.add_argument("--d-lr", type=positive_float, help="(default: dcgan 2e-4, sagan 4e-4)")
    parser.add_argument("--ema-decay", type=fraction, default=0.999)
    parser.add_argument("--augment", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args(argv)
    for name, value in RECIPES[args.model].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.out is None:
        args.out = Path(f"runs/gan-{args.model}")
    if args.width % WIDTH_MULTIPLE[args.model]:
        parser.error(f"--width: got {args.width}, expected a multiple of {WIDTH_MULTIPLE[args.model]} "
                     f"for {args.model} (attention's keys have an eighth of the channels)")
    return args


def train_step(generator: nn.Module, discriminator: nn.Module, g_ema: EMA, g_optimiser: torch.optim.Optimizer,
               d_optimiser: torch.optim.Optimizer, real: Tensor, args: argparse.Namespace,
               dtype: torch.dtype) -> dict[str, Tensor]:
    """Take one step of D, then one of G (Goodfellow et al. 2014, algorithm 1, k = 1); return 0-d metrics.

    Args:
        real: (B, 3, 64, 64) float32 in [-1, 1].
    """
    d_loss_of, g_loss_of = LOSSES[args.loss]
    shown = augment if args.augment else nn.Identity()
    z = torch.randn(len(real), generator.z_dim, device=real.device)

    # D: real and fake in batches of their own, so that BatchNorm sees one kind at a time (DCGAN).
    with autocast(real.device, dtype):
        fake = generator(z)
        real_logits = discriminator(shown(random_flip(real)))
        fake_logits = discriminator(shown(fake.detach()))
    d_loss = d_loss_of(real_logits, fake_logits)
    d_optimiser.zero_grad(set_to_none=True)
    d_loss.backward()
    average_gradients(discriminator)
    d_optimiser.step()

    # G: the same fakes before the new D, as in DCGAN's own code; they still are what G draws.
    with autocast(real.device, dtype):
        g_loss = g_loss_of(discriminator(shown(fake)))
    g_optimiser.zero_grad(set_to_none=True)
    g_loss.backward(inputs=list(generator.parameters()))
    average_gradients(generator)
    g_optimiser.step()
    average_statistics(generator, discriminator)
    g_ema.update(generator)
    return {"d_loss": d_loss, "g_loss": g_loss, "d_real": real_logits.sigmoid().mean(),
            "d_fake": fake_logits.sigmoid().mean(), **gammas("g", generator), **gammas("d", discriminator)}


def gammas(name: str, network: nn.Module) -> dict[str, Tensor]:
    """Return how much each attention layer of a network adds, 0-d, as gamma_<name>1, gamma_<name>2."""
    layers = (module for module in network.modules() if isinstance(module, SelfAttention))
    return {f"gamma_{name}{i}": layer.gamma.detach().clone().squeeze() for i, layer in enumerate(layers, 1)}


@torch.no_grad()
def preview(generator: nn.Module, fixed_z: Tensor, dtype: torch.dtype) -> Tensor:
    """Draw the faces of the fixed noise, (32, z_dim): (32, 3, 64, 64) uint8."""
    with autocast(fixed_z.device, dtype):
        return to_uint8(generator(fixed_z)).cpu()


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device = select_device(args.device)
    dtype = select_dtype(device, args.precision)
    join(device)
    with first_alone():
        faces = load_faces(args.data, "train")
    resolve_steps(args, len(faces.images))
    if args.dry_run:
        print(describe(args))
        return 0

    seed_everything(args.seed)
    images = faces.images.to(device)
    model_args = {"model": args.model, "width": args.width}
    generator = place(build_generator(model_args), device)
    discriminator = place(build_discriminator(model_args), device)
    if args.sync_bn:
        generator, discriminator = (sync_batch_norm(network, device) for network in (generator, discriminator))
    g_ema = EMA(generator, args.ema_decay)
    betas = BETAS[args.model]
    g_optimiser = torch.optim.Adam(generator.parameters(), lr=args.g_lr, betas=betas, fused=True)
    d_optimiser = torch.optim.Adam(discriminator.parameters(), lr=args.d_lr, betas=betas, fused=True)
    batches = Batches(len(images), args.batch_size, args.seed)
    fixed_z = seeded_normal([(args.seed, i) for i in range(PREVIEW_IMAGES)], (generator.z_dim,)).to(device)
    if args.compile:
        generator.compile()
        discriminator.compile()

    run = Run(args.out, KINDS[args.model], args, model_args,
              parts={"generator": generator, "discriminator": discriminator, "g_ema": g_ema,
                     "g_optimiser": g_optimiser, "d_optimiser": d_optimiser, "batches": batches},
              weights=g_ema.module)
    for _ in run.steps():
        real = to_float(images[share(batches.next()).to(device)])
        with own_draws():
            metrics = train_step(generator, discriminator, g_ema, g_optimiser, d_optimiser, real, args, dtype)
        run.record(metrics)
        if run.due(args.sample_every) and rank() == 0:
            save_picture(grid(preview(g_ema.module, fixed_z, dtype), PREVIEW_COLUMNS), run.sample_path())
    print(f"done: {args.out}/last.pt, samples in {args.out}/samples")
    return 0


if __name__ == "__main__":
    run_main(main)
