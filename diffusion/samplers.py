"""Samplers as generators: each yields (t, x_t) from pure noise down to t = -1, the finished image.

A sampler sees the network only as `denoise(x_t, t) -> x_0`, which `guided_denoiser` builds; t is one for the batch.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion.schedule import Schedule

SIGMA_MAX, RHO = 80, 7  # of Karras et al. 2022, table 1

Denoiser = Callable[[Tensor, int], Tensor]
Noise = Callable[[], Tensor]


class State(NamedTuple):
    """x (B, 3, 28, 28) at time t; t = -1 is the clean end of the chain."""

    t: int
    x: Tensor


def guided_x0(model: nn.Module, schedule: Schedule, x_t: Tensor, t: Tensor, labels: Tensor, guidance_scale: float,
              prediction: str) -> Tensor:
    """Return the x_0 that a network sees in x_t, with classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).

    Args:
        model: the conditional U-Net in eval mode.
        schedule: the noise schedule.
        x_t: (B, 3, 28, 28) float32.
        t: (B,) int64 in 0..T-1.
        labels: (B,) int64 digits.
        guidance_scale: 1 is the plain conditional model, larger follows the label more strongly; output =
            unconditional + scale * (conditional - unconditional). Both halves run as one batch.
        prediction: what the model predicts, "noise" or "velocity".

    Returns:
        (B, 3, 28, 28) float32 in [-1, 1].
    """
    if guidance_scale == 1:
        output = model(x_t, t, labels)
    else:
        keep = torch.arange(2 * len(labels), device=labels.device) < len(labels)
        both = model(x_t.repeat(2, 1, 1, 1), t.repeat(2), labels.repeat(2), keep)
        conditional, unconditional = both.chunk(2)
        output = torch.lerp(unconditional, conditional, guidance_scale)
    return schedule.predict_x0(x_t, t, output, prediction).clamp(-1, 1)


def guided_denoiser(model: nn.Module, schedule: Schedule, labels: Tensor, guidance_scale: float,
                    prediction: str, interval: tuple[int, int] = (0, 10**9)) -> Denoiser:
    """Return (x_t, t) -> x_0 as `guided_x0` does, all images at one time.

    Args:
        interval: guide only where interval[0] <= t <= interval[1], at half the cost elsewhere (Kynkaanniemi
            et al. 2024, arXiv:2404.07724).
    """
    def denoise(x_t: Tensor, t: int) -> Tensor:
        scale = guidance_scale if interval[0] <= t <= interval[1] else 1
        times = torch.full((len(x_t),), t, device=x_t.device)
        return guided_x0(model, schedule, x_t, times, labels, scale, prediction)

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
        x_0 = denoise(x, i)
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
        x_0 = denoise(x, i)
        if previous < 0:
            x = x_0
        else:
            alpha_bar, alpha_bar_prev = schedule.alphas_cumprod[i], schedule.alphas_cumprod[previous]
            sigma = eta * ((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)).sqrt()
            predicted_noise = (x - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
            x = alpha_bar_prev.sqrt() * x_0 + (1 - alpha_bar_prev - sigma**2).sqrt() * predicted_noise
            if eta > 0:
                x = x + sigma * noise()
        yield State(previous, x)


@torch.no_grad()
def dpm_solver_pp(denoise: Denoiser, schedule: Schedule, noise: Noise, num_steps: int) -> Iterator[State]:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2): second order, one evaluation a step.

    The first and the last step are of first order: the one has no past, the other ends at infinite
    log-SNR. Thresholding is the denoiser's clamp, as x_0 lies in [-1, 1].

    Args:
        denoise: (x_t, t) -> x_0.
        schedule: the noise schedule.
        noise: () -> (B, 3, 28, 28) standard normal; called once.
        num_steps: 1..T.

    Yields:
        num_steps + 1 states, from t = T - 1 (pure noise) to t = -1.
    """
    x = noise()
    times = ddim_times(schedule.num_timesteps, num_steps)
    alpha_bars = schedule.alphas_cumprod.double()
    half_log_snr = (alpha_bars / (1 - alpha_bars)).log() / 2  # lambda in the paper
    yield State(times[0], x)
    last_x_0, last_h = None, None
    for i, following in zip(times, [*times[1:], -1], strict=True):
        x_0 = denoise(x, i)
        if following < 0:
            x = x_0
        else:
            h = half_log_snr[following] - half_log_snr[i]
            # Extrapolated by the last step; r = last_h / h.
            ahead = x_0 if last_x_0 is None else x_0 + (x_0 - last_x_0) * (h / (2 * last_h)).float()
            shrink = ((1 - alpha_bars[following]) / (1 - alpha_bars[i])).sqrt()
            x = shrink.float() * x - (alpha_bars[following].sqrt() * torch.expm1(-h)).float() * ahead
            last_x_0, last_h = x_0, h
        yield State(following, x)


def karras_times(schedule: Schedule, num_steps: int) -> list[int]:
    """Return num_steps times from sigma = 80 down to t = 0, as Karras et al. (2022, arXiv:2206.00364) space them.

    Even steps in sigma^(1/7) (eq. 5, rho = 7), each at the nearest time that is free: the more steps, the more often
    neighbours would share one, until with num_steps = T all times are taken. A schedule may go far beyond 80, but
    there x is noise alone, and a straight step from there misses everything that follows.
    """
    if not 1 <= num_steps <= schedule.num_timesteps:
        raise ValueError(f"num_steps: got {num_steps}, expected 1..{schedule.num_timesteps}")
    sigmas = (1 / schedule.alphas_cumprod.double() - 1).sqrt()
    ends = sigmas[-1].clamp(max=SIGMA_MAX) ** (1 / RHO), sigmas[0] ** (1 / RHO)
    wanted = torch.lerp(*ends, torch.linspace(0, 1, num_steps, dtype=torch.float64, device=sigmas.device)) ** RHO
    times = [schedule.num_timesteps]
    for k, nearest in enumerate((sigmas - wanted[:, None]).abs().argmin(dim=1).tolist(), 1):
        times.append(max(min(nearest, times[-1] - 1), num_steps - k))  # the steps that follow need a time each
    return times[1:]


@torch.no_grad()
def heun(denoise: Denoiser, schedule: Schedule, noise: Noise, num_steps: int) -> Iterator[State]:
    """Heun's method on the sigma scale (Karras et al. 2022, arXiv:2206.00364, algorithm 1): second order.

    In x / sqrt(abar), whose noise has standard deviation sigma = sqrt(1 / abar - 1), the flow is
    dx/dsigma = (x - x_0) / sigma. Takes 2 num_steps - 1 evaluations.

    Args:
        denoise: (x_t, t) -> x_0.
        schedule: the noise schedule.
        noise: () -> (B, 3, 28, 28) standard normal; called once.
        num_steps: 1..T.

    Yields:
        num_steps + 1 states, from the first of `karras_times` (as good as pure noise) to t = -1, each scaled back.
    """
    x = noise()
    times = karras_times(schedule, num_steps)
    signals = schedule.alphas_cumprod.double().sqrt()
    sigmas = (1 - signals**2).sqrt() / signals

    def slope(x: Tensor, i: int) -> Tensor:
        x_0 = denoise(x, i)
        return (x.double() / signals[i] - x_0) / sigmas[i]

    yield State(times[0], x)
    for i, following in zip(times, [*times[1:], -1], strict=True):
        first = slope(x, i)
        if following < 0:
            x = (x.double() / signals[i] - sigmas[i] * first).float()  # Euler down to sigma = 0: x_0
        else:
            step = sigmas[following] - sigmas[i]
            euler = x.double() / signals[i] + step * first
            second = slope((euler * signals[following]).float(), following)
            x = ((x.double() / signals[i] + step * (first + second) / 2) * signals[following]).float()
        yield State(following, x)
