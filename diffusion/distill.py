"""Distil a diffusion model: the same network, with fewer evaluations per image and without guidance.

    python -m diffusion.distill --teacher weights/diffusion.pt --out runs/distill-8
    python -m diffusion.distill --teacher runs/distill-8/last.pt --out runs/distill-4

Each command is one stage of progressive distillation (Salimans & Ho 2022, arXiv:2202.00512, algorithm 2): one DDIM step
of the student replaces two steps of its teacher, and the student can be the teacher of the next stage, which halves the
steps. Unlike in the paper, the first teacher is guided, at scale 1.5, and its student of 8 steps learns guidance too
(Meng et al. 2023, arXiv:2210.03142, do so in an earlier stage). That teacher takes one step of DPM-Solver++(2S) (Lu et
al. 2022, arXiv:2211.01095, algorithm 1) instead of two DDIM steps, because few DDIM steps have a large error.

The student starts from the teacher's weights. Its checkpoint stores the number of steps, so `diffusion.inference
--weights` needs no other flag. `diffusion.adversarial` goes on to one step.
"""

import argparse
import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from common import cli
from common.batches import Batches
from common.checkpoint import RELEASED, sha256
from common.data.folder import fingerprint, load_digits
from common.device import Captured, autocast, capturable
from common.distributed import average_gradients, init_process_group, rank, rank_zero_first, shard
from common.ema import EMA
from common.errors import UserError
from common.images import save_picture, to_float
from common.lr_schedule import lr_at, set_lr
from common.run import Run
from diffusion.loss import x0_loss
from diffusion.pipeline import Pipeline, Setting, load_distillable, preview
from diffusion.samplers import ddim_step, ddim_times
from diffusion.unet import KIND

GUIDANCE, STEPS = 1.5, 8  # of the first stage (chosen in hw2_report.md, "Diffusion", section 1)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(__doc__)
    cli.add_training_flags(parser, steps=2000, batch_size=64, lr_schedule="linear")
    parser.add_argument("--teacher", metavar="CKPT", type=Path, default=RELEASED / "diffusion.pt",
                        help="the network to distil (default: the released one)")
    parser.add_argument("--domain", default="mnistm", help="digits to train on")
    parser.add_argument("--lr", type=cli.positive_float, default=3e-4, help="learning rate")
    parser.add_argument("--ema-decay", type=cli.fraction, default=0.99,
                        help="decay of the average of the weights, which generates the images")
    return cli.parse_training_args(parser, argv, lambda args: Path("runs/distill"))


def stage(teacher: Pipeline, path: Path) -> tuple[float, int]:
    """Return the guidance scale of the teacher and the DDIM steps of its student; UserError if it has an odd number."""
    if not teacher.distilled:
        return GUIDANCE, STEPS
    if (steps := teacher.distilled.steps) % 2:
        raise UserError(f"{path} was distilled to {steps} step{'s' * (steps > 1)}, which cannot be halved")
    return 1.0, steps // 2


def step_times(num_timesteps: int, steps: int) -> Tensor:
    """Return one row of times per step of the student, (steps, 3) int64.

    They are where a step starts, where the teacher's second evaluation is, and where the step ends; -1 is the finished
    image.
    """
    return torch.tensor([*ddim_times(num_timesteps, 2 * steps), -1]).unfold(0, 3, 2)


@torch.no_grad()
def distill_target(teacher: Pipeline, guidance: float, x_t: Tensor, times: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Return the x_0 with which one DDIM step from x_t ends where the teacher's steps end.

    x_t is (B, 3, 28, 28) float32, and labels are (B,) int64 digits. `times` are the columns of `step_times`, (B,)
    int64 each; the first is the time of x_t.
    """
    schedule = teacher.schedule
    t, middle, end = times
    x_0 = teacher.denoise(x_t, t, labels, guidance)
    x_middle = ddim_step(schedule, x_t, x_0, t, middle)
    x_0_middle = teacher.denoise(x_middle, middle, labels, guidance)
    if teacher.distilled:
        # Take the teacher's second DDIM step, then solve x_end = ddim_step(x_t, target, t, end) for the target.
        x_end = ddim_step(schedule, x_middle, x_0_middle, middle, end)
        (signal, sigma), (end_signal, end_sigma) = schedule.scales(t), schedule.scales(end)
        ratio = end_sigma / sigma
        return (x_end - ratio * x_t) / (end_signal - ratio * signal)
    # DPM-Solver++(2S), algorithm 1: lambda is half the log-SNR. The last step, to infinite lambda, is of first order.
    lambda_t, lambda_middle, lambda_end = (schedule.snr(time).log() / 2 for time in (t, middle, end.clamp(min=0)))
    r = ((lambda_middle - lambda_t) / (lambda_end - lambda_t))[:, None, None, None]
    return torch.where((end < 0)[:, None, None, None], x_0_middle, x_0 + (x_0_middle - x_0) / (2 * r))


def train_step(student: nn.Module, optimizer: torch.optim.Optimizer, teacher: Pipeline, x_0: Tensor, labels: Tensor, *,
               guidance: float, times: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Take one step of Salimans & Ho's algorithm 2, and return 0-d metrics.

    Args:
        teacher, guidance: the network to distil, and its guidance scale.
        x_0, labels: this process's share of the batch: (B, 3, 28, 28) float32 in [-1, 1], and (B,) int64 digits.
        times: the table from `step_times`, on the device.
        dtype: in which the networks run.
    """
    schedule = teacher.schedule
    of_step = times[torch.randint(0, len(times), (len(x_0),), device=x_0.device)].unbind(1)
    t = of_step[0]
    x_t = schedule.q_sample(x_0, t, torch.randn_like(x_0))
    with autocast(x_0.device, dtype):
        target = distill_target(teacher, guidance, x_t, of_step, labels)
        output = student(x_t, t, labels)
    loss = x0_loss(schedule.predict_x0(x_t, t, output, teacher.prediction), target, schedule.snr(t)).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(student)
    grad_norm = nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    return {"loss": loss.detach(), "grad_norm": grad_norm}


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device, dtype = cli.select_device_and_dtype(args)
    init_process_group(device)
    teacher = load_distillable(args.teacher, device)
    guidance, steps = stage(teacher, args.teacher)
    with rank_zero_first():
        digits = load_digits(args.data, args.domain, "train")
    cli.finalize_settings(args, len(digits.images))

    torch.manual_seed(args.seed)
    images, all_labels = digits.images.to(device), digits.labels.to(device)
    student = copy.deepcopy(teacher.model)
    ema = EMA(student, args.ema_decay)
    optimizer = capturable(torch.optim.Adam(student.parameters(), lr=args.lr, betas=(0.9, 0.99), fused=True))
    batches = Batches(len(images), args.batch_size, args.seed, device)
    times = step_times(teacher.schedule.num_timesteps, steps).to(device)
    model_args = teacher.model_args | {"distilled": list(Setting("ddim", steps, 1.0))}

    run = Run(args.out, KIND, vars(args), model_args,
              parts={"model": student, "ema": ema, "optimizer": optimizer, "batches": batches}, weights=ema.module,
              inputs={"data": fingerprint(digits), "teacher": sha256(args.teacher)})

    def step_on(index: Tensor) -> dict[str, Tensor]:
        return train_step(student, optimizer, teacher, to_float(images[index]), all_labels[index],
                          guidance=guidance, times=times, dtype=dtype)

    captured, pipeline = Captured(step_on, device), replace(teacher, model=ema.module, model_args=model_args)
    for step in run.steps():
        set_lr(optimizer, lr_at(args.lr, args.lr_schedule, step, args.steps))
        run.record(captured(shard(batches.next())))
        ema.update(student)
        if run.due(args.sample_every) and rank() == 0:
            save_picture(preview(pipeline, args.seed, dtype), run.sample_path())
    print(f"done: {args.out}/last.pt, samples in {args.out}/samples")
    return 0


if __name__ == "__main__":
    cli.run_main(main)
