"""A pipeline: a trained network, its noise schedule, and how it samples by default. All commands that sample use it."""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from common.checkpoint import load_into, load_weights
from common.data.folder import ImageSet, load_folder
from common.device import Captured, autocast, place, send
from common.errors import UserError
from common.images import DIGIT_SIZE, grid, to_uint8
from common.randomness import generator_for
from diffusion.samplers import State, ddim, ddpm, dpm_solver_pp
from diffusion.schedule import Schedule, make_schedule
from diffusion.unet import KIND, ConditionalUNet

# To add a sampler, write a generator function in samplers.py and name it here. `diffusion.inference` then offers it.
SAMPLERS = {"ddim": ddim, "dpm-solver++": dpm_solver_pp}
DDPM = "ddpm"  # takes all steps of the chain, so their number cannot be chosen
DISTILLED = "diffusion-distilled.pt"  # the released network that needs the fewest evaluations
BATCH_SIZE, GPU_BATCH_SIZE = 100, 500  # images; networks may round differently in batches of another size
PREVIEW_COLUMNS = 4


class Setting(NamedTuple):
    """How to sample: a key of SAMPLERS or DDPM, the number of steps (for DDPM all), and the guidance scale."""

    sampler: str
    steps: int
    guidance: float


STANDARD = Setting("dpm-solver++", 20, 1.5)  # without distillation (chosen in hw2_report.md, "Diffusion", section 1)


@dataclass(frozen=True)
class Pipeline:
    """A network in eval mode, its schedule on the same device, and the `model_args` of its checkpoint.

    The weights may change in place between two samples. On a GPU, the first sample of a pipeline costs more than later
    ones, so keep it.
    """

    model: nn.Module
    schedule: Schedule
    model_args: dict[str, Any]

    @property
    def batch_size(self) -> int:
        """How many images are generated at a time."""
        return BATCH_SIZE if self.schedule.betas.device.type == "cpu" else GPU_BATCH_SIZE

    @property
    def prediction(self) -> str:
        """What the network predicts, "noise" or "velocity"."""
        return self.model_args["prediction"]

    @property
    def distilled(self) -> Setting | None:
        """How a distilled network samples: DDIM, the steps that it knows, and guidance scale 1; None for others."""
        setting = self.model_args.get("distilled")
        return setting and Setting(*setting)

    @property
    def setting(self) -> Setting:
        """The default setting."""
        return self.distilled or STANDARD

    def denoise(self, x_t: Tensor, t: Tensor, labels: Tensor, guidance: float) -> Tensor:
        """Predict x_0, (B, 3, 28, 28) float32 in [-1, 1], with classifier-free guidance (Ho & Salimans 2022).

        Args:
            x_t, labels: (B, 3, 28, 28) float32, and (B,) int64 digits.
            t: (B,) int64 in 0..T-1.
            guidance: 1 + w in the paper (arXiv:2207.12598, eq. 6). 0 is the unconditional model, 1 the conditional one,
                and larger scales extrapolate. Scales other than 1 evaluate both, as one batch.
        """
        if guidance == 1:
            output = self.model(x_t, t, labels)
        else:
            keep = torch.arange(2 * len(labels), device=labels.device) < len(labels)
            outputs = self.model(x_t.repeat(2, 1, 1, 1), t.repeat(2), labels.repeat(2), keep)
            conditional, unconditional = outputs.chunk(2)
            output = torch.lerp(unconditional, conditional, guidance)
        return self.schedule.predict_x0(x_t, t, output, self.prediction).clamp(-1, 1)

    @cached_property
    def captured(self) -> Captured:
        """`denoise` without gradients as one launch on a GPU: (x_t, t, labels, *, guidance, dtype) -> x_0."""
        @torch.no_grad()
        def denoise(x_t: Tensor, t: Tensor, labels: Tensor, *, guidance: float, dtype: torch.dtype) -> Tensor:
            with autocast(x_t.device, dtype):
                return self.denoise(x_t, t, labels, guidance)

        return Captured(denoise, self.schedule.betas.device)

    def check(self, setting: Setting, path: Path) -> None:
        """Raise UserError if a distilled network is to sample in another way than it has learned."""
        if self.distilled and setting != self.distilled:
            steps = self.distilled.steps
            raise UserError(f"{path} was distilled to {steps} step{'s' * (steps > 1)} of ddim with guidance 1: got "
                            f"{setting.steps} of {setting.sampler} with guidance {setting.guidance:g}; for others, "
                            "use its teacher")


def load_pipeline(path: Path, device: torch.device) -> Pipeline:
    """Load a run's checkpoint or a released file onto a device; UserError if it is missing, damaged or foreign."""
    model_args, weights = load_weights(path, KIND)
    model = ConditionalUNet(model_args["width"])
    load_into(model, weights, path)
    return Pipeline(place(model, device).eval(), make_schedule(model_args["schedule"]).to(device), model_args)


def load_distillable(path: Path, device: torch.device) -> Pipeline:
    """Load a pipeline to distil or to tune; as `load_pipeline`, and a UserError if it predicts noise."""
    pipeline = load_pipeline(path, device)
    if pipeline.prediction == "noise":
        raise UserError(f"{path} predicts noise, which at high t says too little of x_0: distil a network trained with "
                        "--prediction velocity")
    return pipeline


def sample(pipeline: Pipeline, setting: Setting, seed: int, pairs: list[tuple[int, int]],
           dtype: torch.dtype) -> Iterator[State]:
    """Sample one image per (digit, number) of `pairs`, and yield every state of the sampler.

    The noise of an image depends only on the seed, its digit and its number. The network runs in `dtype`.
    """
    device = pipeline.schedule.betas.device
    generators = [generator_for(seed, digit, number) for digit, number in pairs]

    def noise() -> Tensor:
        return send(torch.stack([torch.randn(3, DIGIT_SIZE, DIGIT_SIZE, generator=g) for g in generators]), device)

    labels = torch.tensor([digit for digit, _ in pairs], device=device)

    def denoise(x_t: Tensor, t: int) -> Tensor:
        times = torch.full((len(x_t),), t, device=device)
        # Cloned, because the next call overwrites it.
        return pipeline.captured(x_t, times, labels, guidance=setting.guidance, dtype=dtype).clone()

    if setting.sampler == DDPM:
        yield from ddpm(denoise, pipeline.schedule, noise)
    else:
        yield from SAMPLERS[setting.sampler](denoise, pipeline.schedule, noise, setting.steps)


def generate(pipeline: Pipeline, setting: Setting, seed: int, pairs: list[tuple[int, int]],
             dtype: torch.dtype) -> Tensor:
    """Return the finished images of `sample`, (N, 3, 28, 28) uint8 on the CPU; several batches show their progress."""
    images, size = [], pipeline.batch_size
    for start in tqdm(range(0, len(pairs), size), unit="batch", leave=False, disable=len(pairs) <= size or None):
        states = sample(pipeline, setting, seed, pairs[start:start + size], dtype)
        last, = deque(states, maxlen=1)  # a list of all states would fill the memory
        images.append(to_uint8(last.x).cpu())
    return torch.cat(images)


def load_generated(folder: Path) -> ImageSet:
    """Load a folder of generated digits; UserError for names that are not like 3_042.png, the digit first."""
    images, _, names = load_folder(folder, DIGIT_SIZE)
    for name in names:
        if not re.fullmatch(r"[0-9]_[0-9]+\.\w+", name):
            raise UserError(f"{folder}/{name}: expected names like 3_042.png, the digit first")
    return ImageSet(images, torch.tensor([int(name[0]) for name in names]), names)


def preview(pipeline: Pipeline, seed: int, dtype: torch.dtype) -> Image.Image:
    """Sample a picture with one row per digit in the default setting, to watch a training."""
    pairs = [(digit, number) for digit in range(10) for number in range(PREVIEW_COLUMNS)]
    return grid(generate(pipeline, pipeline.setting, seed, pairs, dtype), PREVIEW_COLUMNS, scale=2)
