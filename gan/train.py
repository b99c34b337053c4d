"""Train a GAN on 64x64 faces: DCGAN (method A) or SAGAN (method B).

    python -m gan.train --model sagan --data hw2_data --out runs/gan-sagan

DCGAN (Radford et al. 2016, arXiv:1511.06434) uses the non-saturating loss, SAGAN (Zhang et al. 2019, arXiv:1805.08318)
the hinge loss. Training differs from the papers: a moving average (EMA) of G generates the images, D sees mirrored
faces too, learning rates fall to 0 over the second half, batches have 64 faces, and SAGAN's G learns as fast as its D.
But for the mirroring, the papers' own recipe is `--lr-schedule constant --ema-decay 0`, for DCGAN with `--batch-size
128`, for SAGAN with `--batch-size 256 --g-lr 1e-4` (two rates: Heusel et al. 2017, arXiv:1706.08500). For a few
thousand faces, `--augment` shows D changed images (Zhao et al. 2020, arXiv:2006.10738).

The run folder holds last.pt (for resume and inference), samples/ (32 faces, always from the same noise), curves.png and
metrics.jsonl, which docs/training-logs.md explains.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from common import cli
from common.batches import Batches
from common.data.folder import fingerprint, load_faces
from common.device import Captured, autocast, capturable, place
from common.distributed import average_buffers, average_gradients, init_process_group, rank_zero_first, shard
from common.ema import EMA
from common.images import to_float
from common.lr_schedule import lr_at, set_lr
from common.randomness import seeded_normal
from common.run import Run
from gan.augment import augment, random_flip
from gan.losses import LOSSES
from gan.models import MODELS, build_discriminator, build_generator
from gan.monitor import attention_gammas, diagnose, generate, health, save_preview, watched_faces
from gan.standing_stats import NUM_IMAGES, recalibrate_bn


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    def of_model(setting: str) -> str:
        return "default: " + ", ".join(f"{name} {getattr(model, setting)}" for name, model in MODELS.items())

    parser = cli.Parser(__doc__)
    cli.add_training_flags(parser, steps=8_000, batch_size=64, lr_schedule="linear-half")
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--width", metavar="N", type=cli.positive_int, default=64, help="channels of the largest maps")
    parser.add_argument("--loss", choices=LOSSES, help=of_model("loss"))
    parser.add_argument("--g-lr", metavar="LR", type=cli.positive_float,
                        help=f"learning rate of G ({of_model('g_lr')})")
    parser.add_argument("--d-lr", metavar="LR", type=cli.positive_float,
                        help=f"learning rate of D ({of_model('d_lr')})")
    parser.add_argument("--ema-decay", metavar="DECAY", type=cli.fraction, default=0.998,
                        help="of the average of G, per step; 0.995 suits a few thousand steps")
    parser.add_argument("--augment", action=argparse.BooleanOptionalAction, default=False,
                        help="show D changed colours, positions and cut-outs (default: off)")
    parser.add_argument("--no-attention", action="store_true", help="sagan: leave out the attention layers")
    args = cli.parse_training_args(parser, argv, lambda args: Path(f"runs/gan-{args.model}"))
    if args.model is None:
        parser.error(f"--model: name one of {', '.join(MODELS)}")
    model = MODELS[args.model]
    for setting in ("loss", "g_lr", "d_lr"):
        if getattr(args, setting) is None:
            setattr(args, setting, getattr(model, setting))
    if args.width % model.width_multiple:
        parser.error(f"--width: got {args.width}, expected a multiple of {model.width_multiple} for {args.model}")
    if args.no_attention and args.model != "sagan":
        parser.error(f"--no-attention is for sagan, got --model {args.model}")
    return args


def train_step(generator: nn.Module, discriminator: nn.Module, g_optimizer: torch.optim.Optimizer,
               d_optimizer: torch.optim.Optimizer, real: Tensor, *, loss: str, augmented: bool,
               dtype: torch.dtype) -> dict[str, Tensor]:
    """Update D once, then G once (Goodfellow et al. 2014, algorithm 1 with k = 1); return 0-d metrics.

    Args:
        real: (B, 3, 64, 64) float32 in [-1, 1], this process's share of the batch.
        loss: a key of LOSSES.
        augmented: whether D sees augmented images.
        dtype: in which the networks run; the losses are float32.
    """
    d_loss_of, g_loss_of = LOSSES[loss]
    view = augment if augmented else nn.Identity()
    z = torch.randn(len(real), generator.z_dim, device=real.device)

    # D. Real and fake are separate batches: batch normalisation sees one kind at a time, as in DCGAN's code.
    with autocast(real.device, dtype):
        fake = generator(z)
        real_logits = discriminator(view(random_flip(real)))
        fake_logits = discriminator(view(fake.detach()))
    d_loss = d_loss_of(real_logits, fake_logits)  # eq. 1, or the hinge
    d_optimizer.zero_grad(set_to_none=True)
    d_loss.backward()
    average_gradients(discriminator)
    d_optimizer.step()

    # G. The same fakes, judged by the new D, as in DCGAN's code: G has not changed since it generated them.
    with autocast(real.device, dtype):
        g_loss = g_loss_of(discriminator(view(fake)))
    g_optimizer.zero_grad(set_to_none=True)
    g_loss.backward(inputs=list(generator.parameters()))
    average_gradients(generator)
    g_optimizer.step()
    average_buffers(generator, discriminator)
    metrics = {"d_loss": d_loss, "g_loss": g_loss,
               "d_real": real_logits.sigmoid().mean(), "d_fake": fake_logits.sigmoid().mean()}
    return {name: value.detach() for name, value in metrics.items()} | attention_gammas(generator, discriminator)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device, dtype = cli.select_device_and_dtype(args)
    init_process_group(device)
    with rank_zero_first():
        train_set, val_set = load_faces(args.data, "train"), load_faces(args.data, "val")
    cli.finalize_settings(args, len(train_set.images))
    watched = watched_faces(train_set.images, val_set.images)

    torch.manual_seed(args.seed)
    model, images = MODELS[args.model], train_set.images.to(device)
    model_args = {"model": args.model, "width": args.width} | ({"attention": False} if args.no_attention else {})
    generator = place(build_generator(model_args), device)
    discriminator = place(build_discriminator(model_args), device)
    g_ema = EMA(generator, args.ema_decay)
    g_optimizer = capturable(torch.optim.Adam(generator.parameters(), lr=args.g_lr, betas=model.betas, fused=True))
    d_optimizer = capturable(torch.optim.Adam(discriminator.parameters(), lr=args.d_lr, betas=model.betas, fused=True))
    batches = Batches(len(images), args.batch_size, args.seed, device)
    parts = {"generator": generator, "discriminator": discriminator, "g_ema": g_ema,
             "g_optimizer": g_optimizer, "d_optimizer": d_optimizer, "batches": batches}
    fixed_z = seeded_normal([(args.seed, i) for i in range(NUM_IMAGES)], (generator.z_dim,)).to(device)

    run = Run(args.out, model.kind, vars(args), model_args, parts, weights=g_ema.module,
              inputs={"data": fingerprint(train_set, val_set)})
    recalibrate = partial(recalibrate_bn, g_ema.module, generator, fixed_z, dtype)

    def step_on(index: Tensor) -> dict[str, Tensor]:
        return train_step(generator, discriminator, g_optimizer, d_optimizer, to_float(images[index]), loss=args.loss,
                          augmented=args.augment, dtype=dtype)

    captured = Captured(step_on, device)
    for step in run.steps(diagnose, before_save=recalibrate):
        set_lr(g_optimizer, lr_at(args.g_lr, args.lr_schedule, step, args.steps))
        set_lr(d_optimizer, lr_at(args.d_lr, args.lr_schedule, step, args.steps))
        metrics = captured(shard(batches.next()))
        g_ema.update(generator)
        log, sample = run.due(args.log_every), run.due(args.sample_every)
        if log or sample:  # at other steps nothing uses the average
            recalibrate()
        if log:
            generated = generate(g_ema.module, fixed_z[:len(watched[0])], dtype)
            metrics = metrics | health(discriminator, generated, *watched, dtype)
        run.record(metrics)
        if sample:
            save_preview(g_ema.module, fixed_z, dtype, run.sample_path())
    print(f"done: {args.out}/last.pt, samples in {args.out}/samples")
    return 0


if __name__ == "__main__":
    cli.run_main(main)
