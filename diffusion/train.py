"""Train the class-conditional diffusion model on MNIST-M digits.

    python -m diffusion.train --data hw2_data --out runs/diffusion

DDPM (Ho et al. 2020, arXiv:2006.11239) on the report's U-Net with per-sample label dropout for guidance. The
reference recipe is `--prediction noise --schedule linear --no-min-snr`. The run folder gets metrics.jsonl
(loss per quartile of t), a digit grid a preview under samples/, last.pt for resume and inference, and
curves.png.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from common import checkpoint
from common.batches import Batches, MicroBatches
from common.cli import (
    Parser,
    add_training_flags,
    describe,
    fraction,
    positive_float,
    positive_int,
    resolve_steps,
    run_main,
)
from common.datasets import load_digits
from common.device import autocast, place, seed_everything, select_device, select_dtype
from common.distributed import average_gradients, first_alone, join, rank, share
from common.ema import EMA
from common.errors import UserError
from common.images import save_picture, to_float
from common.runlog import Run
from diffusion.generate import Network, Setting, preview
from diffusion.loss import diffusion_loss, quartile_means
from diffusion.schedule import PREDICTIONS, SCHEDULES, Schedule, make_schedule
from diffusion.unet import KIND, ConditionalUNet
from diffusion.widen import widen

PREVIEW = Setting("ddim", 20, 2.0)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_training_flags(parser, steps=15_000, batch_size=64)
    parser.set_defaults(out=Path("runs/diffusion"))
    parser.add_argument("--domain", default="mnistm", help="digit set to learn (default: %(default)s)")
    parser.add_argument("--width", metavar="N", type=positive_int, default=64,
                        help="channels of the first map, a multiple of 4 (default: the report's 64)")
    parser.add_argument("--init", metavar="CKPT", type=Path,
                        help="weights to start from, e.g. weights/diffusion.pt; narrower ones are widened")
    parser.add_argument("--lr", type=positive_float, default=5e-4)
    parser.add_argument("--warmup", metavar="STEPS", type=positive_int, default=500)
    parser.add_argument("--ema-decay", type=fraction, default=0.999)
    parser.add_argument("--label-dropout", type=fraction, default=0.1, help="share of samples trained without label")
    parser.add_argument("--prediction", choices=PREDICTIONS, default="velocity")
    parser.add_argument("--schedule", choices=SCHEDULES, default="cosine")
    parser.add_argument("--min-snr", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args(argv)
    if args.width % 4:
        parser.error(f"--width: got {args.width}, expected a multiple of 4 (attention has 4 heads)")
    return args


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Return the rate of a step: linear warm-up, then half a cosine down to a twentieth."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    progress = (step - args.warmup) / max(1, args.steps - args.warmup)
    return args.lr * (0.05 + 0.95 * (1 + math.cos(math.pi * min(1, progress))) / 2)


def initial_weights(path: Path, args: argparse.Namespace) -> dict[str, Tensor]:
    """Return the weights of a checkpoint, widened to `--width`.

    Raises:
        UserError: it predicts another quantity or on another schedule, or its width does not divide ours.
    """
    model_args, weights = checkpoint.load_weights(path, KIND)
    for name in ("prediction", "schedule"):
        if model_args[name] != getattr(args, name):
            raise UserError(f"{path}: trained with --{name} {model_args[name]}, not {getattr(args, name)}")
    factor, rest = divmod(args.width, model_args["width"])
    if rest:
        raise UserError(f"{path}: its width {model_args['width']} does not divide --width {args.width}")
    return widen(weights, factor, args.seed)


def train_step(model: nn.Module, ema: EMA, optimiser: torch.optim.Optimizer, schedule: Schedule, x_0: Tensor,
               labels: Tensor, micro_batches: MicroBatches, args: argparse.Namespace,
               dtype: torch.dtype) -> dict[str, Tensor]:
    """Take one step of DDPM algorithm 1 with label dropout; return 0-d metrics.

    Args:
        x_0: (B, 3, 28, 28) float32 in [-1, 1], the whole batch where several processes share it.
        labels: (B,) int64.
    """
    # Drawn for the whole batch: the step is the same for any number of processes, but for rounding.
    t = torch.randint(0, schedule.num_timesteps, (len(x_0),), device=x_0.device)
    noise = torch.randn_like(x_0)
    keep = torch.rand(len(x_0), device=x_0.device) >= args.label_dropout
    x_0, labels, t, noise, keep = map(share, (x_0, labels, t, noise, keep))

    def backward(part: slice) -> Tensor:
        with autocast(x_0.device, dtype):
            loss = diffusion_loss(lambda x_t, t: model(x_t, t, labels[part], keep[part]), schedule, x_0[part],
                                  t[part], noise[part], args.prediction, args.min_snr)
        (loss.sum() / len(x_0)).backward()
        return loss.detach()

    loss = micro_batches.run(backward, optimiser.zero_grad, len(x_0))
    average_gradients(model)
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    ema.update(model)
    return {"loss": loss.mean(), **quartile_means(loss, t, schedule.num_timesteps), "grad_norm": grad_norm}


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device = select_device(args.device)
    dtype = select_dtype(device, args.precision)
    join(device)
    with first_alone():
        digits = load_digits(args.data, args.domain, "train")
    resolve_steps(args, len(digits.images))
    if args.dry_run:
        print(describe(args))
        return 0

    seed_everything(args.seed)
    images, all_labels = digits.images.to(device), digits.labels.to(device)
    schedule = make_schedule(args.schedule).to(device)
    model = place(ConditionalUNet(args.width), device)
    if args.init:
        checkpoint.load_into(model, initial_weights(args.init, args), args.init)
    ema = EMA(model, args.ema_decay)
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99), fused=True)
    batches, micro_batches = Batches(len(images), args.batch_size, args.seed), MicroBatches()
    if args.compile:
        model.compile()

    run = Run(args.out, KIND, args,
              model_args={"width": args.width, "prediction": args.prediction, "schedule": args.schedule},
              parts={"model": model, "ema": ema, "optimiser": optimiser, "batches": batches}, weights=ema.module)
    for step in run.steps():
        index = batches.next().to(device)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, args)
        run.record(train_step(model, ema, optimiser, schedule, to_float(images[index]), all_labels[index],
                              micro_batches, args, dtype))
        if run.due(args.sample_every) and rank() == 0:
            network = Network(ema.module, schedule, run.model_args)
            save_picture(preview(network, PREVIEW, args.seed, dtype), run.sample_path())
    print(f"done: {args.out}/last.pt, samples in {args.out}/samples")
    return 0


if __name__ == "__main__":
    run_main(main)
