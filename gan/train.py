"""Train a GAN on 64x64 faces: method A, DCGAN, or method B, SAGAN.

    python -m gan.train --model sagan --data hw2_data --out runs/gan-sagan

DCGAN (Radford et al. 2016, arXiv:1511.06434) takes the non-saturating loss, SAGAN (Zhang et al. 2019,
arXiv:1805.08318) the hinge loss. Beyond both papers: an average of G draws the samples, D sees augmented images
(Zhao et al. 2020), the rates fall to 0 over the second half, and SAGAN's G learns as fast as its D; the papers'
own recipe is `--no-augment --no-lr-decay --ema-decay 0`, for SAGAN with `--g-lr 1e-4` (two rates: Heusel et al.
2017, arXiv:1706.08500). Where a small training set is still learnt by heart there are `--r1 0.1`, `--lecam 0.01`
and, for DCGAN, `--spectral-norm`.

The run folder gets metrics.jsonl, 32 faces from fixed noise a preview under samples/, last.pt for resume and
inference, and curves.png. Each logged row shows how both fare: d_real and d_fake, D's mean probability of
being real for training faces and drawn ones; d_gap, by how much it is higher for training faces than for
faces of the val split; near_duplicates, the share of the average's faces that repeat one another.
"""

import argparse
import copy
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
from common.errors import UserError
from common.images import grid, save_picture, seeded_normal, to_float, to_uint8
from common.runlog import Run
from gan.augment import augment, random_flip
from gan.evaluate import near_duplicates
from gan.losses import LOSSES, Anchors, lecam_penalty, r1_penalty
from gan.models import KINDS, WIDTH_MULTIPLE, build_discriminator, build_generator
from gan.sagan import SelfAttention

# What the papers train with (DCGAN sec. 4, SAGAN sec. 4), where a flag is not given. But for SAGAN's G: theirs has
# 1e-4, and already where D was twice as fast as G, faces turned into speckles (hw2_report.md).
RECIPES = {"dcgan": {"loss": "non-saturating", "g_lr": 2e-4, "d_lr": 2e-4},
           "sagan": {"loss": "hinge", "g_lr": 4e-4, "d_lr": 4e-4}}
BETAS = {"dcgan": (0.5, 0.999), "sagan": (0.0, 0.9)}
R1_EVERY = 16  # steps; its weight grows by as much (Karras et al. 2020, arXiv:1912.04958, sec. 4.1)
PREVIEW_IMAGES, PREVIEW_COLUMNS = 32, 8
WATCHED = 64  # faces of each kind, always the same ones, that d_gap and near_duplicates are about
SETTLED, SETTLED_AT_ONCE = 512, 64  # drawn faces that make the average's running statistics
WARM_UP = 1000  # steps; in healthy runs near_duplicates fell from 1 to below 1/2 within 400


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_training_flags(parser, steps=30_000, batch_size=64)
    add_sync_bn_flag(parser)
    parser.add_argument("--model", choices=KINDS, required=True)
    parser.add_argument("--width", metavar="N", type=positive_int, default=64,
                        help="channels of the largest maps (default: the report's 64)")
    parser.add_argument("--loss", choices=LOSSES, help="(default: the model's, see above)")
    parser.add_argument("--g-lr", type=positive_float, help="(default: dcgan 2e-4, sagan 4e-4)")
    parser.add_argument("--d-lr", type=positive_float, help="(default: dcgan 2e-4, sagan 4e-4)")
    parser.add_argument("--ema-decay", type=fraction, default=0.999,
                        help="of the average of G; for a few thousand steps 0.995 is better (default: %(default)s)")
    parser.add_argument("--lr-decay", action=argparse.BooleanOptionalAction, default=True,
                        help="let both rates fall to 0 over the second half of the steps")
    parser.add_argument("--augment", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--r1", metavar="GAMMA", type=positive_float,
                        help="penalise D's gradient at training faces (Mescheder et al. 2018, who take 10; with "
                             "DCGAN's batch normalisation 1 is already too much, and 0.1 a start)")
    parser.add_argument("--lecam", metavar="WEIGHT", type=positive_float,
                        help="hold D's logits near their averages for the other kind (Tseng et al. 2021, whose code "
                             "takes 0.3 with four steps of D to one of G; with one, G collapses: start at 0.01)")
    # What is off is None: a checkpoint from before a switch has none.
    parser.add_argument("--spectral-norm", action="store_true", default=None,
                        help="dcgan: spectral norm in D in place of batch normalisation (Miyato et al. 2018)")
    parser.add_argument("--no-attention", action="store_true", default=None, help="sagan: leave attention out")
    args = parser.parse_args(argv)
    for name, value in RECIPES[args.model].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.out is None:
        args.out = Path(f"runs/gan-{args.model}")
    if args.width % WIDTH_MULTIPLE[args.model]:
        parser.error(f"--width: got {args.width}, expected a multiple of {WIDTH_MULTIPLE[args.model]} "
                     f"for {args.model} (attention's keys have an eighth of the channels)")
    if args.spectral_norm and args.model == "sagan":
        parser.error("--spectral-norm is for dcgan: sagan always has it")
    if args.no_attention and args.model == "dcgan":
        parser.error("--no-attention is for sagan: dcgan has none")
    if args.r1 and args.sync_bn and args.model == "dcgan" and not args.spectral_norm:
        parser.error("--r1 and --sync-bn: batch normalisation over several GPUs has no second derivative; "
                     "leave one of them out, or take --spectral-norm")
    return args


def learning_rate(lr: float, progress: float) -> float:
    """Return a learning rate at a share of training that is done: constant, then from one half on down to 0."""
    return lr * min(1, 2 - 2 * progress)


def train_step(generator: nn.Module, discriminator: nn.Module, g_ema: EMA, g_optimiser: torch.optim.Optimizer,
               d_optimiser: torch.optim.Optimizer, anchors: Anchors | None, real: Tensor, step: int,
               args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Tensor]:
    """Take one step of D, then one of G (Goodfellow et al. 2014, algorithm 1, k = 1); return 0-d metrics.

    Args:
        anchors: of the LeCam penalty, or None.
        real: (B, 3, 64, 64) float32 in [-1, 1].
        step: how many are done.
    """
    d_loss_of, g_loss_of = LOSSES[args.loss]
    shown = augment if args.augment else nn.Identity()
    z = torch.randn(len(real), generator.z_dim, device=real.device)

    # D: real and fake in batches of their own, so that BatchNorm sees one kind at a time (DCGAN).
    with autocast(real.device, dtype):
        fake = generator(z)
        real_logits = discriminator(shown(random_flip(real)))
        fake_logits = discriminator(shown(fake.detach()))
    metrics = {"d_loss": d_loss_of(real_logits, fake_logits)}
    d_total = metrics["d_loss"]
    if anchors is not None:
        metrics["lecam"] = lecam_penalty(real_logits, fake_logits, anchors.real, anchors.fake)
        d_total = d_total + args.lecam * metrics["lecam"]
        anchors.update(real_logits, fake_logits)
        average_statistics(anchors)
    if args.r1 and step % R1_EVERY == 0:
        # In float32, and by `forward`: what --compile makes has no second derivative.
        metrics["r1"] = r1_penalty(lambda x: discriminator.forward(shown(random_flip(x))), real)
        d_total = d_total + R1_EVERY * args.r1 * metrics["r1"]
    d_optimiser.zero_grad(set_to_none=True)
    d_total.backward()
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
    return metrics | {"g_loss": g_loss, "d_real": real_logits.sigmoid().mean(), "d_fake": fake_logits.sigmoid().mean(),
                      **gammas("g", generator), **gammas("d", discriminator)}


def gammas(name: str, network: nn.Module) -> dict[str, Tensor]:
    """Return how much each attention layer of a network adds, 0-d, as gamma_<name>1, gamma_<name>2."""
    layers = (module for module in network.modules() if isinstance(module, SelfAttention))
    return {f"gamma_{name}{i}": layer.gamma.detach().clone().squeeze() for i, layer in enumerate(layers, 1)}


@torch.no_grad()
def settle(average: nn.Module, generator: nn.Module, z: Tensor, dtype: torch.dtype) -> None:
    """Give the average of a generator running statistics of its own, the plain means over what it draws from z.

    "Standing statistics" (Brock et al. 2019, arXiv:1809.11096). Those of the network in training are of
    other activations: with them the faces are paler than real ones, and vary less.

    Args:
        average: has the averaged weights.
        generator: the one in training, where spectral norm's vectors start from.
        z: (N, z_dim); the same ones each time, so that nothing hangs on how often this is done.
    """
    for mine, theirs in zip(average.buffers(), generator.buffers(), strict=True):
        mine.copy_(theirs)
    for module in average.modules():
        if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
            module.reset_running_stats()
            module.momentum = None  # all batches count alike
    average.train()
    with autocast(z.device, dtype):
        for part in z.split(SETTLED_AT_ONCE):
            average(part)
    average.eval()


@torch.no_grad()
def preview(generator: nn.Module, fixed_z: Tensor, dtype: torch.dtype) -> Tensor:
    """Draw the faces of the fixed noise, (N, z_dim): (N, 3, 64, 64) uint8."""
    with autocast(fixed_z.device, dtype):
        return to_uint8(generator(fixed_z)).cpu()


def watched(images: Tensor, count: int) -> Tensor:
    """Return `count` of (N, ...) images from all over the set, which may be sorted by person."""
    return images[torch.linspace(0, len(images) - 1, count).long()]


@torch.no_grad()
def health(discriminator: nn.Module, drawn: Tensor, seen: Tensor, unseen: Tensor, device: torch.device,
           dtype: torch.dtype) -> dict[str, Tensor]:
    """Return how well D knows the training faces, and how much G repeats itself; nothing is changed or drawn.

    Args:
        drawn: (N, 3, 64, 64) uint8, N >= 2, by the averaged G.
        seen, unseen: (M, 3, 64, 64) uint8 each, training faces, M >= 2, and others.
    """
    # A copy normalises each batch by itself, as in training, and its running statistics are thrown away.
    judge = copy.deepcopy(discriminator)
    with autocast(device, dtype):
        d_seen, d_unseen = (judge(to_float(faces.to(device))).sigmoid().mean() for faces in (seen, unseen))
    return {"d_gap": d_seen - d_unseen, "near_duplicates": torch.tensor(near_duplicates(drawn, seen), device=device)}


def diagnose(row: dict[str, float]) -> str | None:
    """Return what a logged row says against the training, if anything."""
    if row["step"] <= WARM_UP:
        return None
    if row["near_duplicates"] > 0.5:
        return "G has collapsed: most of its faces repeat one another; start again with --r1 0.1 or a lower --g-lr"
    if row["d_loss"] < 0.05:
        return "D tells nearly all faces, and G learns little: a lower --d-lr, --r1 0.1 or --lecam 0.01 may help"
    if row["d_real"] - row["d_fake"] < 0.02:
        return "D cannot tell drawn faces from real ones, and teaches G nothing: a higher --d-lr may help"
    if row["d_gap"] > 0.25:
        return "D knows the training faces by heart: --augment, --r1 0.1, --lecam 0.01 or more faces may help"
    return None


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device = select_device(args.device)
    dtype = select_dtype(device, args.precision)
    join(device)
    with first_alone():
        faces, others = (load_faces(args.data, split).images for split in ("train", "val"))
    resolve_steps(args, len(faces))
    if min(len(faces), len(others)) < 2:
        raise UserError(f"{args.data}: got {len(faces)} training and {len(others)} validation faces, "
                        "expected at least 2 of each")
    if args.dry_run:
        print(describe(args))
        return 0

    seed_everything(args.seed)
    images = faces.to(device)
    count = min(WATCHED, len(faces), len(others))
    seen, unseen = watched(faces, count), watched(others, count)
    model_args = {"model": args.model, "width": args.width} | ({"attention": False} if args.no_attention else {})
    generator = place(build_generator(model_args), device)
    d_args = model_args | ({"spectral_norm": True} if args.spectral_norm else {})
    discriminator = place(build_discriminator(d_args), device)
    if args.sync_bn:
        generator, discriminator = (sync_batch_norm(network, device) for network in (generator, discriminator))
    g_ema = EMA(generator, args.ema_decay)
    betas = BETAS[args.model]
    g_optimiser = torch.optim.Adam(generator.parameters(), lr=args.g_lr, betas=betas, fused=True)
    d_optimiser = torch.optim.Adam(discriminator.parameters(), lr=args.d_lr, betas=betas, fused=True)
    batches = Batches(len(images), args.batch_size, args.seed)
    parts = {"generator": generator, "discriminator": discriminator, "g_ema": g_ema,
             "g_optimiser": g_optimiser, "d_optimiser": d_optimiser, "batches": batches}
    anchors = Anchors().to(device) if args.lecam else None
    if anchors is not None:
        parts["anchors"] = anchors
    fixed_z = seeded_normal([(args.seed, i) for i in range(SETTLED)], (generator.z_dim,)).to(device)
    if args.compile:
        generator.compile()
        discriminator.compile()

    run = Run(args.out, KINDS[args.model], args, model_args, parts, weights=g_ema.module)
    for step in run.steps(diagnose):
        if args.lr_decay:
            for optimiser, lr in ((g_optimiser, args.g_lr), (d_optimiser, args.d_lr)):
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate(lr, step / args.steps)
        real = to_float(images[share(batches.next()).to(device)])
        with own_draws():
            metrics = train_step(generator, discriminator, g_ema, g_optimiser, d_optimiser, anchors, real, step, args,
                                 dtype)
        if any(run.due(every) for every in (args.log_every, args.sample_every, args.save_every)):
            settle(g_ema.module, generator, fixed_z, dtype)
        if run.due(args.log_every):
            drawn = preview(g_ema.module, fixed_z[:WATCHED], dtype)
            metrics |= health(discriminator, drawn, seen, unseen, device, dtype)
        run.record(metrics)
        if run.due(args.sample_every) and rank() == 0:
            shown = preview(g_ema.module, fixed_z[:PREVIEW_IMAGES], dtype)
            save_picture(grid(shown, PREVIEW_COLUMNS), run.sample_path())
    print(f"done: {args.out}/last.pt, samples in {args.out}/samples")
    return 0


if __name__ == "__main__":
    run_main(main)
