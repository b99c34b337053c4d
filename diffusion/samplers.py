"""Samplers as generators: each yields (t, x_t) from pure noise down to t = -1, the finished image.

A sampler sees the network only as `denoise(x_t, t) -> x_0`, which `guided_denoiser` builds.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion.schedule import Schedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[], Tensor]


class State(NamedTuple):
    """x (B, 3, 28, 28) at time t; t = -1 is the clean end of the chain."""

    t: int
    x: Tensor


def guided_denoiser(model: nn.Module, schedule: Schedule, labels: Tensor, guidance_scale: float,
                    prediction: str) -> Denoiser:
    """Return (x_t, t) -> x_0 in [-1, 1] with classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).

    Args:
        model: the conditional U-Net in eval mode.
        schedule: the noise schedule.
        labels: (B,) int64 digits.
        guidance_scale: 1 is the plain conditional model, larger follows the label more strongly; output =
            unconditional + scale * (conditional - unconditional). Both halves run as one batch.
        prediction: what the model predicts, "noise" or "velocity".
    """
    doubled_labels = labels.repeat(2)
    keep = torch.arange(2 * len(labels), device=labels.device) < len(labels)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        if guidance_scale == 1:
            output = model(x_t, t, labels)
        else:
            conditional, unconditional = model(x_t.repeat(2, 1, 1, 1), t.repeat(2), doubled_labels, keep).chunk(2)
            output = torch.lerp(unconditional, conditional, guidance_scale)
        return schedule.predict_x0(x_t, t, output, prediction).clamp(-1, 1)

    return denoise


@torch.no_grad()
def ddpm(denoise: Denoiser, schedule: Schedule, noise: Noise) -> Iterator[State]:
    """Ancestral sampling over all T steps (DDPM algorithm 2, posterior of eq. 7, variance beta-tilde).

    Args:
        denoise: (x_t, t) -> x_0.
        schedule: the noise schedule.
        noise: () -> (B, 3, 28, 28) standard normal; called T times, the first for x_T.

    Yields:
        T + 1 states, from t = T - 1 (pure noise) to t = -1.
    """
    x = noise()
    yield State(schedule.num_timesteps - 1, x)
    for i in reversed(range(schedule.num_timesteps)):
        x_0 = denoise(x, torch.full((len(x),), i, device=x.device))
        if i == 0:
            x = x_0  # the posterior at the first step is a point: abar_{-1} = 1
        else:
            beta, alpha_bar = schedule.betas[i], schedule.alphas_cumprod[i]
            alpha_bar_prev = schedule.alphas_cumprod[i - 1]
            mean = (alpha_bar_prev.sqrt() * beta * x_0
                    + (1 - beta).sqrt() * (1 - alpha_bar_prev) * x) / (1 - alpha_bar)
            x = mean + (beta * (1 - alpha_bar_prev) / (1 - alpha_bar)).sqrt() * noise()
        yield State(i - 1, x)


def ddim_times(num_timesteps: int, num_steps: int) -> list[int]:
    """Return num_steps times from T - 1 downwards, evenly spaced ("trailing", Lin et al. 2023, arXiv:2305.08891)."""
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(f"num_steps: got {num_steps}, expected 1..{num_timesteps}")
    return [round(num_timesteps * (1 - k / num_steps)) - 1 for k in range(num_steps)]


@torch.no_grad()
def ddim(denoise: Denoiser, schedule: Schedule, noise: Noise, num_steps: int, eta: float = 0.0) -> Iterator[State]:
    """DDIM (Song et al. 2020, arXiv:2010.02502, eq. 12) in `num_steps` evaluations.

    Args:
        denoise: (x_t, t) -> x_0.
        schedule: the noise schedule.
        noise: () -> (B, 3, 28, 28) standard normal; called once where eta is 0.
        num_steps: 1..T.
        eta: 0 is deterministic, 1 as stochastic as DDPM.

    Yields:
        num_steps + 1 states, from t = T - 1 (pure noise) to t = -1.
    """
    x = noise()
    times = ddim_times(schedule.num_timesteps, num_steps)
    yield State(times[0], x)
    for i, previous in zip(times, [*times[1:], -1], strict=True):
        t = torch.full((len(x),), i, device=x.device)
        x_0 = denoise(x, t)
        if previous < 0:
            x = x_0
        else:
            alpha_bar, alpha_bar_prev = schedule.alphas_cumprod[i], schedule.alphas_cumprod[previous]
            sigma = eta * ((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)).sqrt()
            direction = (1 - alpha_bar_prev - sigma**2).sqrt() * schedule.noise_from_x0(x, t, x_0)
            x = alpha_bar_prev.sqrt() * x_0 + direction
            if eta > 0:
                x = x + sigma * noise()
        yield State(previous, x)
