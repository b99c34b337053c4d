"""Measure this project's defaults against the plain loop of the usual tutorials, alternating, in one run.

    bash scripts/benchmark.sh [--device cpu|cuda] [--quick] [--out report/benchmark.json]

Plain is float32, contiguous, eager, attention that also returns its weights, one update a time with `.item()`
of the loss; both run the same networks on the same random batches. Every round times plain, then ours; the
ratio is the median over rounds, its spread the smallest and largest round.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from common.cli import Parser, add_device_flags, run_main
from common.device import autocast, describe_machine, place, seed_everything, select_device, select_dtype, synchronize
from common.ema import EMA
from diffusion import train as diffusion_train
from diffusion.loss import diffusion_loss
from diffusion.schedule import make_schedule
from diffusion.unet import ConditionalUNet, SelfAttention

BATCH_SIZE = 64
EVALUATION_BATCH_SIZE = 100


class AttentionWithWeights(SelfAttention):
    """Attention as the reference repositories call it: the weights are computed, averaged and thrown away."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, H, W)."""
        size = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        normed = self.ln(x)
        x = x + self.mha(normed, normed, normed)[0]
        x = x + self.ff_self(x)
        return x.transpose(1, 2).unflatten(2, size)


def plain_unet(device: torch.device) -> ConditionalUNet:
    """Return the U-Net as the reference repositories run it: float32, contiguous, attention with weights."""
    model = ConditionalUNet().to(device)
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.__class__ = AttentionWithWeights
    return model


def diffusion_batch(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return (images in [-1, 1], labels) of one batch."""
    return torch.rand(BATCH_SIZE, 3, 28, 28, device=device) * 2 - 1, torch.arange(BATCH_SIZE, device=device) % 10


def plain_diffusion_training(device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    """Return a function that takes one plain step and says how many images it saw."""
    model, schedule = plain_unet(device), make_schedule("linear").to(device)
    average = plain_unet(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)
    x_0, labels = diffusion_batch(device)

    def step() -> int:
        t = torch.randint(0, schedule.num_timesteps, (BATCH_SIZE,), device=device)
        noise = torch.randn_like(x_0)
        loss = diffusion_loss(lambda x_t, t: model(x_t, t, labels), schedule, x_0, t, noise, "noise", False).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
                mine.copy_(0.995 * mine + 0.005 * theirs)
        loss.item()
        return BATCH_SIZE

    return step


def our_diffusion_training(device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    """Return a function that takes one step of `diffusion.train` and says how many images it saw."""
    args = diffusion_train.parse_args([])
    model, schedule = place(ConditionalUNet(), device), make_schedule(args.schedule).to(device)
    ema = EMA(model, args.ema_decay)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    x_0, labels = diffusion_batch(device)
    x_0 = x_0.contiguous(memory_format=torch.channels_last)

    def step() -> int:
        diffusion_train.train_step(model, ema, optimiser, schedule, x_0, labels, args, dtype)
        return BATCH_SIZE

    return step


def plain_diffusion_evaluation(device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    """Return a function that evaluates the plain network once and says on how many images."""
    return _evaluation(plain_unet(device), device, torch.float32)


def our_diffusion_evaluation(device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    """Return a function that evaluates our network once and says on how many images."""
    return _evaluation(place(ConditionalUNet(), device), device, dtype)


def _evaluation(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    model.eval()
    x = torch.randn(EVALUATION_BATCH_SIZE, 3, 28, 28, device=device)
    t = torch.arange(EVALUATION_BATCH_SIZE, device=device)

    @torch.no_grad()
    def evaluate() -> int:
        with autocast(device, dtype):
            model(x, t, t % 10)
        return EVALUATION_BATCH_SIZE

    return evaluate


PAIRS = {
    "diffusion training": (plain_diffusion_training, our_diffusion_training),
    "diffusion evaluation": (plain_diffusion_evaluation, our_diffusion_evaluation),
}


def images_per_second(work: Callable[[], int], device: torch.device, seconds: float) -> float:
    """Repeat `work` for at least `seconds`; return images/s."""
    synchronize(device)
    start, images = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        images += work()
        synchronize(device)
    return images / elapsed


def compare(plain: Callable[[], int], ours: Callable[[], int], device: torch.device, rounds: int,
            seconds: float) -> dict[str, float]:
    """Time both alternately; return medians and the ratio's spread."""
    plain(), ours()  # the first call allocates and picks kernels
    pairs = [(images_per_second(plain, device, seconds), images_per_second(ours, device, seconds))
             for _ in range(rounds)]
    ratios = [fast / slow for slow, fast in pairs]
    return {"plain": statistics.median(slow for slow, _ in pairs), "ours": statistics.median(f for _, f in pairs),
            "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_device_flags(parser)
    parser.add_argument("--quick", action="store_true", help="one short round instead of five")
    parser.add_argument("--out", metavar="PATH", type=Path, help="write the figures there as JSON as well")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device = select_device(args.device)
    dtype = select_dtype(device, args.precision)
    rounds, seconds = (1, 0.1) if args.quick else (5, 5)
    results = {}
    print(f"{describe_machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {dtype}")
    for name, makers in PAIRS.items():
        seed_everything(0)
        plain, ours = (make(device, dtype) for make in makers)
        row = results[name] = compare(plain, ours, device, rounds, seconds)
        print(f"{name:22} plain {row['plain']:8.1f}  ours {row['ours']:8.1f} images/s  "
              f"ratio {row['ratio']:.2f} ({row['ratio_min']:.2f} .. {row['ratio_max']:.2f})", flush=True)
    if args.out:
        about = {"machine": describe_machine(), "torch": torch.__version__,
                 "threads": torch.get_num_threads(), "precision": str(dtype), "rounds": rounds}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**about, "images_per_second": results}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    run_main(main)
