"""The noise schedule of DDPM (Ho et al. 2020, arXiv:2006.11239) and the algebra of x_0, x_t and noise.

x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, where abar_t is the product of (1 - beta_s) for s = 0..t. The time t is
in 0..T-1, and t = 0 already carries a little noise. The clean image is at t = -1, where abar = 1.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

NUM_TIMESTEPS = 1000  # T; DDPM sec. 4
PREDICTIONS = ("noise", "velocity")
SCHEDULES = ("linear", "cosine")


class Schedule(NamedTuple):
    """The tables of a schedule: (T,) float32 each, computed in float64.

    Methods take t (B,) int64, and images, noise and network outputs (B, 3, H, W) float32.
    """

    betas: Tensor
    alphas_cumprod: Tensor

    @property
    def num_timesteps(self) -> int:
        """T, the length of the full chain."""
        return len(self.betas)

    def to(self, device: torch.device) -> "Schedule":
        """Return the schedule with its tables on a device."""
        return Schedule(self.betas.to(device), self.alphas_cumprod.to(device))

    def scales(self, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """Return sqrt(abar_t) and sqrt(1 - abar_t) for t in -1..T-1: (B, 1, 1, 1), or (1, 1, 1) for one integer t."""
        alpha_bar = F.pad(self.alphas_cumprod, (0, 1), value=1.0)[t][..., None, None, None]  # index -1 is the pad
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def snr(self, t: Tensor) -> Tensor:
        """Return the signal-to-noise ratio abar_t / (1 - abar_t), (B,)."""
        alpha_bar = self.alphas_cumprod[t]
        return alpha_bar / (1 - alpha_bar)

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return a sample x_t of q(x_t | x_0) (eq. 4) for the given standard normal noise."""
        signal, sigma = self.scales(t)
        return signal * x_0 + sigma * noise

    def velocity(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return v = sqrt(abar_t) noise - sqrt(1 - abar_t) x_0 (Salimans & Ho 2022, arXiv:2202.00512)."""
        signal, sigma = self.scales(t)
        return signal * noise - sigma * x_0

    def predict_x0(self, x_t: Tensor, t: Tensor, output: Tensor, prediction: str) -> Tensor:
        """Return the x_0, not clamped, that follows from x_t and a predicted "noise" or "velocity"."""
        signal, sigma = self.scales(t)
        return (x_t - sigma * output) / signal if prediction == "noise" else signal * x_t - sigma * output


def make_schedule(name: str) -> Schedule:
    """Build the schedule "linear" (DDPM sec. 4) or "cosine" (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17)."""
    if name == "linear":
        betas = torch.linspace(1e-4, 0.02, NUM_TIMESTEPS, dtype=torch.float64)
    elif name == "cosine":
        s = torch.arange(NUM_TIMESTEPS + 1, dtype=torch.float64) / NUM_TIMESTEPS
        alpha_bar = torch.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    else:
        raise ValueError(f"schedule: got {name!r}, expected one of {SCHEDULES}")
    return Schedule(betas.float(), torch.cumprod(1 - betas, dim=0).float())
