"""The training losses of the diffusion model, with time and noise as arguments: no randomness in here."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.schedule import Schedule

MIN_SNR_GAMMA = 5.0  # Hang et al. 2023, sec. 4.2


def diffusion_loss(predict: Callable[[Tensor, Tensor], Tensor], schedule: Schedule, x_0: Tensor, t: Tensor,
                   noise: Tensor, prediction: str, min_snr: bool) -> Tensor:
    """Return the weighted squared error of each image.

    With noise prediction and without min-SNR this is L_simple of DDPM (eq. 14).

    Args:
        predict: (x_t, t) -> network output, (B, 3, 28, 28) float32.
        schedule: the noise schedule.
        x_0: (B, 3, 28, 28) float32 in [-1, 1].
        t: (B,) int64 in 0..T-1.
        noise: like x_0, standard normal.
        prediction: what the network predicts, "noise" or "velocity".
        min_snr: weight by min(SNR, 5) in x_0 terms (Hang et al. 2023, arXiv:2303.09556).

    Returns:
        (B,) float32.
    """
    output = predict(schedule.q_sample(x_0, t, noise), t)
    target = noise if prediction == "noise" else schedule.velocity(x_0, t, noise)
    loss = (output - target).square().mean(dim=(1, 2, 3))
    if min_snr:
        # An error in the noise is SNR times, and one in the velocity SNR + 1 times, the error in x_0.
        snr = schedule.snr(t)
        loss = loss * snr.clamp(max=MIN_SNR_GAMMA) / (snr if prediction == "noise" else snr + 1)
    return loss


def x0_loss(x_0: Tensor, target: Tensor, snr: Tensor) -> Tensor:
    """Return max(SNR, 1) times the squared error in x_0 of each image (Salimans & Ho 2022, "truncated SNR", eq. 9).

    Args:
        x_0, target: (B, 3, 28, 28) float32.
        snr: (B,) signal-to-noise ratio at their times.

    Returns:
        (B,) float32.
    """
    return snr.clamp(min=1) * (x_0 - target).square().mean(dim=(1, 2, 3))


def quartile_means(loss: Tensor, t: Tensor, num_timesteps: int) -> dict[str, Tensor]:
    """Return the mean loss of each quarter of t as loss_q0..loss_q3, 0-d; an empty quarter gives the whole mean.

    Args:
        loss: (B,) float32.
        t: (B,) int64 in 0..T-1.
        num_timesteps: T.
    """
    quarter = t * 4 // num_timesteps
    means = {}
    for q in range(4):
        inside = (quarter == q).to(loss.dtype)
        count = inside.sum()
        means[f"loss_q{q}"] = torch.where(count > 0, (loss * inside).sum() / count.clamp(min=1), loss.mean())
    return means
