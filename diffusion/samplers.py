"""Samplers as generators: each yields states from pure noise at t = T - 1 down to the finished images at t = -1.

All samplers take the same arguments; DDPM has no num_steps, because it always takes T:

    denoise     (x_t, t) -> x_0: the prediction of the network; t is one integer for the whole batch
    schedule    the noise schedule
    noise       () -> (B, 3, 28, 28) standard normal; the first call gives x_{T-1}, and only DDPM calls it again
    num_steps   1..T, the number of evaluations
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.schedule import Schedule

Denoiser = Callable[[Tensor, int], Tensor]
Noise = Callable[[], Tensor]


class State(NamedTuple):
    """Images x (B, 3, 28, 28) float32 at time t; t = -1 is the finished image."""

    t: int
    x: Tensor


@torch.no_grad()
def ddpm(denoise: Denoiser, schedule: Schedule, noise: Noise) -> Iterator[State]:
    """Yield the T + 1 states of DDPM (Ho et al. 2020, arXiv:2006.11239, algorithm 2; variance beta-tilde of eq. 7)."""
    x = noise()
    yield State(schedule.num_timesteps - 1, x)
    for t in reversed(range(1, schedule.num_timesteps)):
        x_0, beta = denoise(x, t), schedule.betas[t]
        alpha_bar_prev, alpha_bar = schedule.alphas_cumprod[t - 1:t + 1]
        mean = (alpha_bar_prev.sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - alpha_bar_prev) * x) / (1 - alpha_bar)
        x = mean + (beta * (1 - alpha_bar_prev) / (1 - alpha_bar)).sqrt() * noise()
        yield State(t - 1, x)
    yield State(-1, denoise(x, 0))  # abar_{-1} = 1, so the last posterior has no variance


def ddim_times(num_timesteps: int, num_steps: int) -> list[int]:
    """Return num_steps evenly spaced times from T - 1 downwards ("trailing": Lin et al. 2023, arXiv:2305.08891)."""
    return [round(num_timesteps * (1 - k / num_steps)) - 1 for k in range(num_steps)]


def ddim_step(schedule: Schedule, x_t: Tensor, x_0: Tensor, t: Tensor | int, end: Tensor | int) -> Tensor:
    """Return x at time `end` after one deterministic step (Song et al. 2020, arXiv:2010.02502, eq. 12, sigma = 0).

    x_t and x_0 are (B, 3, 28, 28) float32: the images at time t, and the prediction from them. t and `end` are (B,)
    int64, or one integer for the whole batch. `end` may be -1, the finished image.
    """
    (signal, sigma), (end_signal, end_sigma) = schedule.scales(t), schedule.scales(end)
    predicted_noise = (x_t - signal * x_0) / sigma
    return end_signal * x_0 + end_sigma * predicted_noise


@torch.no_grad()
def ddim(denoise: Denoiser, schedule: Schedule, noise: Noise, num_steps: int) -> Iterator[State]:
    """Yield the num_steps + 1 states of deterministic DDIM (Song et al. 2020)."""
    x = noise()
    times = ddim_times(schedule.num_timesteps, num_steps)
    yield State(times[0], x)
    for t, end in pairwise([*times, -1]):
        x = ddim_step(schedule, x, denoise(x, t), t, end)
        yield State(end, x)


@torch.no_grad()
def dpm_solver_pp(denoise: Denoiser, schedule: Schedule, noise: Noise, num_steps: int) -> Iterator[State]:
    """Yield the num_steps + 1 states of DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2).

    It is of second order, at the times of DDIM. Its first and last steps are of first order: the first has no previous
    prediction, and the last ends at infinite log-SNR. The denoiser's clamp replaces the paper's thresholding.
    """
    x = noise()
    times = ddim_times(schedule.num_timesteps, num_steps)
    alpha_bars = schedule.alphas_cumprod.double()
    half_log_snr = (alpha_bars / (1 - alpha_bars)).log() / 2  # lambda in the paper
    yield State(times[0], x)
    last_x_0, last_h = None, None
    for t, end in pairwise(times):
        x_0, h = denoise(x, t), half_log_snr[end] - half_log_snr[t]
        # Extrapolate from the last prediction; the paper's r is last_h / h.
        ahead = x_0 if last_x_0 is None else x_0 + (x_0 - last_x_0) * (h / (2 * last_h)).float()
        shrink = ((1 - alpha_bars[end]) / (1 - alpha_bars[t])).sqrt()
        x = shrink.float() * x - (alpha_bars[end].sqrt() * torch.expm1(-h)).float() * ahead
        last_x_0, last_h = x_0, h
        yield State(end, x)
    yield State(-1, denoise(x, times[-1]))
