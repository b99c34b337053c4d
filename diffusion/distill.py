"""Distil a trained diffusion model: the same network, fewer evaluations an image.

    python -m diffusion.distill --teacher weights/diffusion.pt --out runs/distill
    python -m diffusion.distill --teacher runs/distill/last.pt --chain 8 --out runs/distill-8

The first line is guidance distillation (Meng et al. 2023, arXiv:2210.03142, sec. 3.1, for one scale): at every time the
student says in one evaluation what the teacher, guided, says in two. The second is a stage of progressive distillation
(Salimans & Ho 2022, arXiv:2202.00512, algorithm 2): one DDIM step of the student goes where two evaluations of the
teacher lead; the next stage takes its checkpoint as teacher for half as long a chain. Where the paper's first teacher
takes two DDIM steps, ours takes one of DPM-Solver++(2S) (Lu et al. 2022, arXiv:2211.01095, algorithm 1): over so few
steps the error of DDIM itself is what a student would learn. The student starts from the teacher's weights. Its
checkpoint remembers sampler and steps, so that `diffusion.inference --weights` needs no other flag.
"""

import argparse
import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from common.batches import Batches, MicroBatches
from common.checkpoint import RELEASED
from common.cli import (
    Parser,
    add_training_flags,
    describe,
    fraction,
    non_negative_float,
    positive_float,
    positive_int,
    resolve_steps,
    run_main,
)
from common.datasets import load_digits
from common.device import autocast, seed_everything, select_device, select_dtype
from common.distributed import average_gradients, first_alone, join, rank, share
from common.ema import EMA
from common.errors import UserError
from common.images import save_picture, to_float
from common.runlog import Run
from diffusion.generate import STANDARD, Network, Setting, load_network, preview
from diffusion.loss import x0_loss
from diffusion.samplers import ddim_times, guided_x0
from diffusion.unet import KIND


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_training_flags(parser, steps=2000, batch_size=64)
    parser.set_defaults(out=Path("runs/distill"))
    parser.add_argument("--teacher", metavar="CKPT", type=Path, default=RELEASED / "diffusion.pt",
                        help="the network to learn from (default: the released one)")
    parser.add_argument("--guidance", metavar="SCALE", type=non_negative_float,
                        help=f"the teacher's (default: {STANDARD.guidance:g}, or what a distilled teacher has learnt)")
    parser.add_argument("--chain", metavar="N", type=positive_int,
                        help="steps of the student, each for two of the teacher (default: learn the guidance alone)")
    parser.add_argument("--domain", default="mnistm", help="digit set to learn on (default: %(default)s)")
    parser.add_argument("--lr", type=positive_float, default=3e-4, help="at the start; it falls to 0 in a line")
    parser.add_argument("--ema-decay", type=fraction, default=0.99)
    args = parser.parse_args(argv)
    if args.chain is not None and args.chain > 500:
        parser.error(f"--chain: got {args.chain}, expected at most 500, half of the teacher's 1000")
    return args


def check_teacher(teacher: Network, args: argparse.Namespace) -> None:
    """Fill in its guidance; refuse what it cannot teach.

    Raises:
        UserError: guidance it does not know, a chain it was not made for, or nothing to learn.
    """
    if args.guidance is None:
        args.guidance = teacher.setting.guidance
    teacher.check_guidance(args.guidance, args.teacher)
    if teacher.distilled and teacher.distilled.sampler == "ddim" and teacher.distilled.steps != 2 * (args.chain or 0):
        raise UserError(f"{args.teacher} knows a chain of {teacher.distilled.steps} steps: got --chain {args.chain}, "
                        f"expected half of them, {teacher.distilled.steps // 2}")
    if args.chain is None and args.guidance == 1:
        raise UserError("guidance 1 is the network itself: nothing to learn from it without --chain N")


@torch.no_grad()
def teach(teacher: Network, guidance: float, x_t: Tensor, times: list[Tensor], labels: Tensor) -> Tensor:
    """Return the x_0 with which one DDIM step from x_t goes where the teacher goes.

    Args:
        teacher: whose way.
        guidance: its scale.
        x_t: (B, 3, 28, 28) float32.
        times: where x_t is and where each of the teacher's one or two steps ends, (B,) int64 each; -1 is the finished
            image.
        labels: (B,) int64.
    """
    schedule = teacher.schedule

    def see(x: Tensor, t: Tensor) -> Tensor:
        return guided_x0(teacher.model, schedule, x, t, labels, guidance, teacher.prediction)

    def step(x: Tensor, x_0: Tensor, t: Tensor, end: Tensor) -> Tensor:
        (signal, sigma), (end_signal, end_sigma) = schedule.scales(t), schedule.scales(end)
        return end_signal * x_0 + end_sigma / sigma * (x - signal * x_0)

    t, end = times[0], times[-1]
    x_0 = see(x_t, t)
    if len(times) == 2:
        return x_0
    middle = times[1]
    x_middle = step(x_t, x_0, t, middle)
    x_0_middle = see(x_middle, middle)
    if teacher.distilled and teacher.distilled.sampler == "ddim":
        # What it sees is where its own step leads. Two of them, solved for the x_0 of one.
        x_end = step(x_middle, x_0_middle, middle, end)
        (signal, sigma), (end_signal, end_sigma) = schedule.scales(t), schedule.scales(end)
        ratio = end_sigma / sigma
        return (x_end - ratio * x_t) / (end_signal - ratio * signal)
    start, half, whole = (schedule.snr(time).log() / 2 for time in (t, middle, end.clamp(min=0)))
    r = ((half - start) / (whole - start))[:, None, None, None]
    return torch.where((end < 0)[:, None, None, None], x_0_middle, x_0 + (x_0_middle - x_0) / (2 * r))


def train_step(student: nn.Module, ema: EMA, optimiser: torch.optim.Optimizer, teacher: Network, x_0: Tensor,
               labels: Tensor, micro_batches: MicroBatches, args: argparse.Namespace,
               dtype: torch.dtype) -> dict[str, Tensor]:
    """Take one step of Salimans & Ho's algorithm 2, or of guidance distillation; return 0-d metrics.

    Args:
        x_0: (B, 3, 28, 28) float32 in [-1, 1], the whole batch where several processes share it.
        labels: (B,) int64.
    """
    schedule = teacher.schedule
    num_steps, stride = (args.chain, 2) if args.chain else (schedule.num_timesteps, 1)  # stride: the teacher's to one
    chain = torch.tensor([*ddim_times(schedule.num_timesteps, stride * num_steps), -1], device=x_0.device)
    position = stride * torch.randint(0, num_steps, (len(x_0),), device=x_0.device)
    noise = torch.randn_like(x_0)
    x_0, labels, position, noise = map(share, (x_0, labels, position, noise))
    times = [chain[position + i] for i in range(stride + 1)]
    x_t = schedule.q_sample(x_0, times[0], noise)

    def backward(part: slice) -> Tensor:
        t = times[0][part]
        with autocast(x_0.device, dtype):
            target = teach(teacher, args.guidance, x_t[part], [time[part] for time in times], labels[part])
            output = student(x_t[part], t, labels[part])
        loss = x0_loss(schedule.predict_x0(x_t[part], t, output, teacher.prediction), target, schedule.snr(t))
        (loss.sum() / len(x_0)).backward()
        return loss.detach()

    loss = micro_batches.run(backward, optimiser.zero_grad, len(x_0))
    average_gradients(student)
    grad_norm = nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimiser.step()
    ema.update(student)
    return {"loss": loss.mean(), "grad_norm": grad_norm}


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device = select_device(args.device)
    dtype = select_dtype(device, args.precision)
    join(device)
    teacher = load_network(args.teacher, device)
    check_teacher(teacher, args)
    with first_alone():
        digits = load_digits(args.data, args.domain, "train")
    resolve_steps(args, len(digits.images))
    if args.dry_run:
        print(describe(args))
        return 0

    seed_everything(args.seed)
    images, all_labels = digits.images.to(device), digits.labels.to(device)
    student = copy.deepcopy(teacher.model).train()
    ema = EMA(student, args.ema_decay)
    optimiser = torch.optim.Adam(student.parameters(), lr=args.lr, betas=(0.9, 0.99), fused=True)
    batches, micro_batches = Batches(len(images), args.batch_size, args.seed), MicroBatches()
    if args.compile:
        student.compile()

    setting = Setting("ddim", args.chain, 1.0) if args.chain else STANDARD._replace(guidance=1.0)
    run = Run(args.out, KIND, args, model_args=teacher.model_args | {"distilled": list(setting[:3])},
              parts={"model": student, "ema": ema, "optimiser": optimiser, "batches": batches}, weights=ema.module)
    for step in run.steps():
        index = batches.next().to(device)
        for group in optimiser.param_groups:
            group["lr"] = args.lr * (1 - step / args.steps)
        run.record(train_step(student, ema, optimiser, teacher, to_float(images[index]), all_labels[index],
                              micro_batches, args, dtype))
        if run.due(args.sample_every) and rank() == 0:
            save_picture(preview(teacher._replace(model=ema.module), setting, args.seed, dtype), run.sample_path())
    print(f"done: {args.out}/last.pt, samples in {args.out}/samples")
    return 0


if __name__ == "__main__":
    run_main(main)
