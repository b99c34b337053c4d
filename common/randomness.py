"""Random numbers as functions of integers: one rule for training steps, one for generated images.

The random numbers of a training step depend on (seed, step, rank) alone, as in EDM2 (Karras et al. 2024,
arXiv:2312.02696). So a checkpoint stores no random state, and a run may resume on another device or number of
processes. The noise of a generated image depends on its own seed alone, so the batch size does not change the image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from common.distributed import rank


def mix_seeds(*seeds: int) -> int:
    """Return a 64-bit seed for a tuple of integers; neighbouring tuples give unrelated seeds.

    The finaliser of SplitMix64 (Steele et al. 2014), applied after each integer. PyTorch's generator of a CPU uses the
    lower 32 bits only, that of a GPU all.
    """
    mixed = 0
    for seed in seeds:
        mixed = (mixed ^ seed) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed


def seed_step(seed: int, step: int) -> None:
    """Seed PyTorch's default generators, on every device, for one training step of this process."""
    torch.manual_seed(mix_seeds(seed, step, rank()))


def generator_for(*seeds: int) -> torch.Generator:
    """Return a CPU generator for a tuple of integers."""
    return torch.Generator().manual_seed(mix_seeds(*seeds))


def seeded_normal(seeds: Sequence[tuple[int, ...]], shape: Sequence[int]) -> Tensor:
    """Return standard normal noise, (len(seeds), *shape) float32 on the CPU.

    The noise of each image depends on its own tuple of non-negative integers alone, as that of `generator_for`.
    """
    noise, generator = torch.empty(len(seeds), *shape), torch.Generator()
    for row, seed in zip(noise, seeds, strict=True):
        row.normal_(generator=generator.manual_seed(mix_seeds(*seed)))
    return noise
