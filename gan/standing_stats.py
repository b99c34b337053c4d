"""Running statistics of batch normalisation for an averaged generator.

"Standing statistics" of Brock et al. 2019 (arXiv:1809.11096). The running statistics of the network in
training belong to other weights: with them the averaged generator's faces are paler than real ones, and vary less.
"""

import torch
from torch import Tensor, nn

from common.device import autocast
from common.distributed import average_buffers

NUM_IMAGES = 512  # generated to measure the statistics
BATCH_SIZE = 64


@torch.no_grad()
def recalibrate_bn(average: nn.Module, generator: nn.Module, z: Tensor, dtype: torch.dtype) -> None:
    """Replace the running statistics of an averaged generator by their plain means over what it generates from z.

    The result depends on the arguments alone, so it does not matter how often this is called.

    Args:
        average: has the averaged parameters; left in eval mode.
        generator: the network in training; its other buffers, such as spectral normalisation's vectors, are copied, and
            follow the averaged weights during the passes.
        z: (N, z_dim), the same at every call.
        dtype: in which the network runs.
    """
    for own, current in zip(average.buffers(), generator.buffers(), strict=True):
        own.copy_(current)
    for module in average.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain mean: every batch has the same weight
    average.train()
    with autocast(z.device, dtype):
        for part in z.split(BATCH_SIZE):
            average(part)
    average.eval()
    average_buffers(average)  # other processes may round differently
