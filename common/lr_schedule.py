"""Learning-rate schedules of the trainers: the rate of a step, and writing it into an optimizer."""

import math
from collections.abc import Callable

from torch import Tensor
from torch.optim import Optimizer

# Each maps progress, the share of training that is done, to a factor of the initial rate.
LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1 - progress,
    "linear-half": lambda progress: min(1, 2 - 2 * progress),  # constant, then to 0 over the second half
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}


def lr_at(lr: float, schedule: str, step: int, num_steps: int, warmup: int = 0) -> float:
    """Return the learning rate of `step`, which is 0 for the first step.

    The rate rises linearly to `lr` over `warmup` steps. Then it follows `schedule`, a key of LR_SCHEDULES, which ends
    at step `num_steps`.
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return lr * LR_SCHEDULES[schedule](min(1, progress))


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters; one that is a tensor is filled in place, for captured steps."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
