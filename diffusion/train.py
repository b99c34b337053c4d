"""Train a class-conditional diffusion model on digits.

    python -m diffusion.train --data hw2_data --out runs/diffusion

DDPM (Ho et al. 2020, arXiv:2006.11239) with label dropout for classifier-free guidance (Ho & Salimans 2022,
arXiv:2207.12598). Unlike DDPM, the defaults predict the velocity on a cosine schedule with min-SNR weights; the paper's
recipe is `--prediction noise --schedule linear --no-min-snr`.

The run folder holds last.pt (for resume and inference), previews with one row per digit in samples/, curves.png and
metrics.jsonl, which docs/training-logs.md explains.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import cli
from common.batches import Batches
from common.checkpoint import load_into, load_weights, sha256
from common.data.folder import fingerprint, load_digits
from common.device import Captured, autocast, capturable, place
from common.distributed import average_gradients, init_process_group, rank, rank_zero_first, shard
from common.ema import EMA
from common.errors import UserError
from common.images import save_picture, to_float
from common.lr_schedule import lr_at, set_lr
from common.run import Run
from diffusion.loss import diffusion_loss, quartile_means
from diffusion.pipeline import Pipeline, preview
from diffusion.schedule import PREDICTIONS, SCHEDULES, Schedule, make_schedule
from diffusion.unet import KIND, ConditionalUNet

LABEL_DROPOUT = 0.1  # share of images without label, which train the unconditional branch


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(__doc__)
    cli.add_training_flags(parser, steps=15_000, batch_size=64, lr_schedule="cosine")
    parser.add_argument("--domain", default="mnistm", help="digits to train on")
    parser.add_argument("--width", metavar="N", type=cli.positive_int, default=64,
                        help="channels of the first map, a multiple of 4")
    parser.add_argument("--init", metavar="CKPT", type=Path,
                        help="start from the weights of this checkpoint, e.g. weights/diffusion.pt")
    parser.add_argument("--lr", type=cli.positive_float, default=5e-4, help="peak learning rate")
    parser.add_argument("--warmup", metavar="STEPS", type=cli.positive_int, default=500,
                        help="steps in which the learning rate rises to its peak")
    parser.add_argument("--ema-decay", type=cli.fraction, default=0.999,
                        help="decay of the average of the weights, which generates the images")
    parser.add_argument("--prediction", choices=PREDICTIONS, default="velocity",
                        help="what the network predicts")
    parser.add_argument("--schedule", choices=SCHEDULES, default="cosine", help="of the noise")
    parser.add_argument("--min-snr", action=argparse.BooleanOptionalAction, default=True,
                        help="weight the loss by min(SNR, 5) (default: on)")
    args = cli.parse_training_args(parser, argv, lambda args: Path("runs/diffusion"))
    if args.width % 4:
        parser.error(f"--width: got {args.width}, expected a multiple of 4, the number of attention heads")
    return args


def initial_weights(path: Path, model_args: dict[str, Any]) -> dict[str, Tensor]:
    """Load the weights to start from; UserError if they were trained with other `model_args`."""
    found, weights = load_weights(path, KIND)
    for name, value in model_args.items():
        if found[name] != value:
            raise UserError(f"{path} was trained with --{name} {found[name]}, got --{name} {value}: use the same")
    return weights


def draw(x_0: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the random numbers of a step: t (B,) int64, noise like x_0, and keep (B,) bool, False to drop the label."""
    t = torch.randint(0, schedule.num_timesteps, (len(x_0),), device=x_0.device)
    noise = torch.randn_like(x_0)
    keep = torch.rand(len(x_0), device=x_0.device) >= LABEL_DROPOUT
    return t, noise, keep


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule, x_0: Tensor, labels: Tensor, *,
               prediction: str, min_snr: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """Take one step of DDPM algorithm 1 with label dropout, and return 0-d metrics.

    Args:
        x_0, labels: this process's share of the batch: (B, 3, 28, 28) float32 in [-1, 1], and (B,) int64 digits.
        prediction, min_snr: as in `diffusion_loss`.
        dtype: in which the network runs.
    """
    t, noise, keep = draw(x_0, schedule)
    with autocast(x_0.device, dtype):
        output = model(schedule.q_sample(x_0, t, noise), t, labels, keep)
    loss = diffusion_loss(output, x_0, noise, schedule, t, prediction, min_snr)
    optimizer.zero_grad(set_to_none=True)
    loss.mean().backward()
    average_gradients(model)
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    loss = loss.detach()
    return {"loss": loss.mean(), **quartile_means(loss, t, schedule.num_timesteps), "grad_norm": grad_norm}


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device, dtype = cli.select_device_and_dtype(args)
    init_process_group(device)
    with rank_zero_first():
        digits = load_digits(args.data, args.domain, "train")
    cli.finalize_settings(args, len(digits.images))
    if args.warmup >= args.steps and rank() == 0:
        print(f"note: --warmup {args.warmup} is as long as the run: the learning rate does not fall")

    torch.manual_seed(args.seed)
    images, all_labels = digits.images.to(device), digits.labels.to(device)
    schedule = make_schedule(args.schedule).to(device)
    model_args = {"width": args.width, "prediction": args.prediction, "schedule": args.schedule}
    model = place(ConditionalUNet(args.width), device)
    if args.init:
        load_into(model, initial_weights(args.init, model_args), args.init)
    inputs = {"data": fingerprint(digits)} | ({"init": sha256(args.init)} if args.init else {})
    ema = EMA(model, args.ema_decay)
    optimizer = capturable(torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99), fused=True))
    batches = Batches(len(images), args.batch_size, args.seed, device)

    run = Run(args.out, KIND, vars(args), model_args,
              parts={"model": model, "ema": ema, "optimizer": optimizer, "batches": batches}, weights=ema.module,
              inputs=inputs)

    def step_on(index: Tensor) -> dict[str, Tensor]:
        return train_step(model, optimizer, schedule, to_float(images[index]), all_labels[index],
                          prediction=args.prediction, min_snr=args.min_snr, dtype=dtype)

    captured, pipeline = Captured(step_on, device), Pipeline(ema.module, schedule, model_args)
    for step in run.steps():
        set_lr(optimizer, lr_at(args.lr, args.lr_schedule, step, args.steps, args.warmup))
        run.record(captured(shard(batches.next())))
        ema.update(model)
        if run.due(args.sample_every) and rank() == 0:
            save_picture(preview(pipeline, args.seed, dtype), run.sample_path())
    print(f"done: {args.out}/last.pt, samples in {args.out}/samples")
    return 0


if __name__ == "__main__":
    cli.run_main(main)
