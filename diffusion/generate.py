"""What drawing digits takes, for all commands that draw: a network, a setting, and noise of every image's own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from common.checkpoint import load_into, load_weights
from common.device import autocast, place
from common.errors import UserError
from common.images import generator_for, grid, to_uint8
from diffusion.samplers import Noise, State, ddim, ddpm, dpm_solver_pp, guided_denoiser, heun
from diffusion.schedule import Schedule, make_schedule
from diffusion.unet import KIND, ConditionalUNet

FULL = "ddpm"  # takes all steps of the chain
SAMPLERS = {"ddim": ddim, "dpm-solver++": dpm_solver_pp, "heun": heun}
ALL_TIMES = (0, 999)
DISTILLED = "diffusion-distilled.pt"  # the released network that takes the fewest evaluations
PREVIEW_COLUMNS = 4


class Setting(NamedTuple):
    """How images are drawn: sampler, its steps, guidance scale, and the times at which to guide, both ends included."""

    sampler: str
    steps: int
    guidance: float
    interval: tuple[int, int] = ALL_TIMES

    def mistake(self) -> str | None:
        """Return what is wrong with it, if anything."""
        if self.sampler not in (FULL, *SAMPLERS):
            return f"sampler: got {self.sampler}, expected one of {', '.join((FULL, *SAMPLERS))}"
        if not 1 <= self.steps <= 1000:
            return f"steps: got {self.steps}, expected 1 to the chain's 1000"
        if not self.guidance >= 0:
            return f"guidance: got {self.guidance:g}, expected a number >= 0"
        return None


STANDARD = Setting("dpm-solver++", 10, 2.0)  # of a network that was not distilled


class Network(NamedTuple):
    """A trained network in eval mode, its schedule, and the `model_args` of its checkpoint."""

    model: nn.Module
    schedule: Schedule
    model_args: dict[str, Any]

    @property
    def prediction(self) -> str:
        """What the model predicts, "noise" or "velocity"."""
        return self.model_args["prediction"]

    @property
    def distilled(self) -> Setting | None:
        """How a distilled network draws, with the guidance 1 as it has learnt its teacher's; None for any other."""
        setting = self.model_args.get("distilled")
        return setting and Setting(*setting)

    @property
    def setting(self) -> Setting:
        """How it draws where nothing else is asked for."""
        return self.distilled or STANDARD

    def check_guidance(self, guidance: float, path: Path) -> None:
        """Refuse to guide a distilled network: it has no unconditional branch any more."""
        if self.distilled and guidance != 1:
            raise UserError(f"{path} was distilled with its guidance: got guidance {guidance:g}, expected 1; "
                            "any other needs the network that it was distilled from")


def load_network(path: Path, device: torch.device) -> Network:
    """Return a checkpoint's network on a device."""
    model_args, weights = load_weights(path, KIND)
    model = ConditionalUNet(model_args["width"])
    load_into(model, weights, path)
    return Network(place(model, device).eval(), make_schedule(model_args["schedule"]).to(device), model_args)


def image_noise(seeds: list[tuple[int, ...]], device: torch.device) -> Noise:
    """Return a source of (B, 3, 28, 28) normal noise in which every image has its own generator."""
    generators = [generator_for(*seed) for seed in seeds]
    return lambda: torch.stack([torch.randn(3, 28, 28, generator=g) for g in generators]).to(device)


def chain(network: Network, setting: Setting, seed: int, pairs: list[tuple[int, int]], device: torch.device,
          dtype: torch.dtype) -> Iterator[State]:
    """Run a sampler. The noise of an image depends on the seed, its digit and its number alone.

    Args:
        network: on the device.
        setting: one without mistake.
        seed: of the noise.
        pairs: the digit and the number of each image.
        device: where to compute.
        dtype: in which the network runs.
    """
    labels: Tensor = torch.tensor([digit for digit, _ in pairs], device=device)
    denoise = guided_denoiser(network.model, network.schedule, labels, setting.guidance, network.prediction,
                              setting.interval)
    noise = image_noise([(seed, digit, number) for digit, number in pairs], device)
    with autocast(device, dtype):
        if setting.sampler == FULL:
            yield from ddpm(denoise, network.schedule, noise)
        else:
            yield from SAMPLERS[setting.sampler](denoise, network.schedule, noise, setting.steps)


def preview(network: Network, setting: Setting, seed: int, dtype: torch.dtype) -> Image.Image:
    """Draw a picture of a training's state, a row of each digit."""
    pairs = [(digit, number) for digit in range(10) for number in range(PREVIEW_COLUMNS)]
    *_, last = chain(network, setting, seed, pairs, network.schedule.betas.device, dtype)
    return grid(to_uint8(last.x).cpu(), PREVIEW_COLUMNS, scale=2)
