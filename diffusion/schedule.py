"""The noise schedule of DDPM (Ho et al. 2020, arXiv:2006.11239) and the algebra between x_0, x_t and noise.

t runs over 0..T-1, and t = 0 already carries a little noise: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise
with abar_t the product of (1 - beta_s) over s = 0..t. Clean images would be "t = -1", where abar = 1.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

PREDICTIONS = ("noise", "velocity")
SCHEDULES = ("linear", "cosine")


class Schedule(NamedTuple):
    """The tables of a schedule, (T,) float32 each; products are taken in float64.

    Methods take t (B,) int64, and images, noise and network outputs (B, 3, H, W) float32.
    """

    betas: Tensor
    alphas_cumprod: Tensor

    @property
    def num_timesteps(self) -> int:
        """T, the length of the full chain."""
        return len(self.betas)

    def to(self, device: torch.device) -> "Schedule":
        """Return the tables on a device."""
        return Schedule(self.betas.to(device), self.alphas_cumprod.to(device))

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return sqrt(abar_t) and sqrt(1 - abar_t) as (B, 1, 1, 1) for t (B,) int64 in -1..T-1."""
        alpha_bar = F.pad(self.alphas_cumprod, (0, 1), value=1.0)[t][:, None, None, None]  # index -1 is its end
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def snr(self, t: Tensor) -> Tensor:
        """Return the signal-to-noise ratio abar_t / (1 - abar_t), (B,)."""
        alpha_bar = self.alphas_cumprod[t]
        return alpha_bar / (1 - alpha_bar)

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x_t like x_0, a draw from q(x_t | x_0) (eq. 4), from standard normal noise."""
        signal, sigma = self.scales(t)
        return signal * x_0 + sigma * noise

    def velocity(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return v = sqrt(abar_t) noise - sqrt(1 - abar_t) x_0 (Salimans & Ho 2022, arXiv:2202.00512)."""
        signal, sigma = self.scales(t)
        return signal * noise - sigma * x_0

    def predict_x0(self, x_t: Tensor, t: Tensor, output: Tensor, prediction: str) -> Tensor:
        """Return the x_0, like x_t and not clamped, that a network's output (noise or velocity) stands for."""
        signal, sigma = self.scales(t)
        if prediction == "noise":
            return (x_t - sigma * output) / signal
        return signal * x_t - sigma * output


def make_schedule(name: str = "linear", num_timesteps: int = 1000) -> Schedule:
    """Build a schedule.

    Args:
        name: "linear" (DDPM sec. 4: betas from 1e-4 to 0.02) or "cosine" (Nichol & Dhariwal 2021,
            arXiv:2102.09672, eq. 17, betas clipped at 0.999).
        num_timesteps: T. The linear betas are DDPM's only for T = 1000.
    """
    if name == "linear":
        betas = torch.linspace(1e-4, 0.02, num_timesteps, dtype=torch.float64)
    elif name == "cosine":
        s = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
        alpha_bar = torch.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    else:
        raise ValueError(f"schedule: got {name!r}, expected one of {SCHEDULES}")
    return Schedule(betas.float(), torch.cumprod(1 - betas, dim=0).float())
