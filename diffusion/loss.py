"""The training losses of the diffusion model and of distillation. Time and noise are arguments: nothing is random."""

import torch
from torch import Tensor

from diffusion.schedule import Schedule

MIN_SNR_GAMMA = 5.0  # Hang et al. 2023, sec. 4.2


def diffusion_loss(output: Tensor, x_0: Tensor, noise: Tensor, schedule: Schedule, t: Tensor, prediction: str,
                   min_snr: bool) -> Tensor:
    """Return the weighted squared error per image, (B,) float32, of the network's output at x_t.

    With "noise" and without min-SNR, this is L_simple of DDPM (Ho et al. 2020, arXiv:2006.11239, eq. 14).

    Args:
        output: what the network predicts from x_t = schedule.q_sample(x_0, t, noise), (B, 3, 28, 28) float32.
        x_0, noise: (B, 3, 28, 28) float32: images in [-1, 1], and standard normal noise.
        schedule, t: the noise schedule, and times (B,) int64 in 0..T-1.
        prediction: what the network predicts, "noise" or "velocity".
        min_snr: whether to weight the squared error in x_0 by min(SNR, 5) (Hang et al. 2023, arXiv:2303.09556).
    """
    target = noise if prediction == "noise" else schedule.velocity(x_0, t, noise)
    loss = (output - target).square().mean(dim=(1, 2, 3))
    if min_snr:
        # The squared error in noise is SNR times that in x_0; the squared error in velocity is SNR + 1 times that.
        snr = schedule.snr(t)
        loss = loss * snr.clamp(max=MIN_SNR_GAMMA) / (snr if prediction == "noise" else snr + 1)
    return loss


def x0_loss(x_0: Tensor, target: Tensor, snr: Tensor) -> Tensor:
    """Return max(SNR, 1) times the squared error in x_0 per image, (B,) ("truncated SNR": Salimans & Ho 2022, eq. 9).

    x_0 and target are (B, 3, 28, 28) float32; snr is (B,) float32, the signal-to-noise ratio at each image's time.
    """
    return snr.clamp(min=1) * (x_0 - target).square().mean(dim=(1, 2, 3))


def quartile_means(loss: Tensor, t: Tensor, num_timesteps: int) -> dict[str, Tensor]:
    """Return the mean loss in each quarter of the time axis, 0-d: loss_q0 (little noise) .. loss_q3 (mostly noise).

    loss is (B,) float32, t is (B,) int64 in 0..num_timesteps-1. A quarter without images gets the overall mean, so
    that every row of metrics has all four.
    """
    quarter = t * 4 // num_timesteps
    means = {}
    for q in range(4):
        inside = (quarter == q).to(loss.dtype)
        count = inside.sum()
        means[f"loss_q{q}"] = torch.where(count > 0, (loss * inside).sum() / count.clamp(min=1), loss.mean())
    return means
