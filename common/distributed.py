"""Data-parallel training: torchrun starts N processes, and each computes its share of every batch.

    torchrun --nproc_per_node 4 -m diffusion.train --data hw2_data

The batch size is that of all processes together. Each process holds all data and uses the same index stream.
Gradients are averaged in one all-reduce after the backward pass. `DistributedDataParallel` is not used: it expects one
forward pass per backward pass, and GAN and DANN have several.

Batch normalisation uses the statistics of each process's own share. Running statistics are averaged at every step, so
all replicas stay equal to the bit.

A run without torchrun has rank 0 and world size 1; then the functions that average, compare or wait do nothing.
"""

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.device import collectives_backend
from common.errors import UserError


def rank() -> int:
    """Return the number of this process, 0 .. world_size() - 1. Only process 0 prints and writes run folders."""
    return int(os.environ.get("RANK", 0)) if world_size() > 1 else 0


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def init_process_group(device: torch.device) -> None:
    """Join the process group, if torchrun started several processes."""
    if world_size() > 1 and not dist.is_initialized():
        try:
            dist.init_process_group(collectives_backend(device))
        except (RuntimeError, ValueError) as error:
            raise UserError(f"cannot join the other processes ({_reason(error)}): start all with torchrun, or unset "
                            "WORLD_SIZE") from error


def destroy_process_group() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process has reached this call."""
    if world_size() > 1:
        _all_reduce(torch.zeros(1))


@contextlib.contextmanager
def rank_zero_first() -> Iterator[None]:
    """Run the block in process 0 before the others, so that it alone writes a cache or reports a mistake."""
    if rank():
        barrier()
    yield
    if not rank():
        barrier()


def shard(batch: Tensor) -> Tensor:
    """Return this process's share of a batch: (B, ...) -> (B / world_size, ...)."""
    return batch.chunk(world_size())[rank()]


def average_gradients(network: nn.Module) -> None:
    """Replace every gradient by its mean over the processes; their shares of the batch are equally large."""
    average([parameter.grad for parameter in network.parameters() if parameter.grad is not None])


def average_buffers(*networks: nn.Module) -> None:
    """Replace every floating-point buffer, such as running statistics, by its mean over the processes."""
    average([buffer for network in networks for buffer in network.buffers() if buffer.is_floating_point()])


def average(tensors: list[Tensor]) -> None:
    """Replace float tensors of one device, of any shapes, by their means over the processes, in one all-reduce."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    _all_reduce(flat)
    flat /= world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    with torch.no_grad():
        torch._foreach_copy_(tensors, [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)])


def max_over_ranks(number: int) -> int:
    """Return the largest of the processes' numbers. This waits for the processes, but not for their GPUs."""
    if world_size() == 1:
        return number
    largest = torch.tensor(number)
    _all_reduce(largest, dist.ReduceOp.MAX)
    return largest.item()


def require_equal_replicas(step: int, *networks: nn.Module) -> None:
    """Raise UserError if the step, or a checksum of weights and running statistics, differs between the processes."""
    if world_size() == 1:
        return
    tensors = (t for network in networks for t in (*network.parameters(), *network.buffers()))
    bits = sum(t.detach().view(torch.int32).sum() for t in tensors if t.dtype == torch.float32)  # exact in any order
    own = torch.stack([torch.tensor(step), bits.cpu()])
    low, high = own.clone(), own.clone()
    _all_reduce(low, dist.ReduceOp.MIN)
    _all_reduce(high, dist.ReduceOp.MAX)
    if not torch.equal(low, high):
        raise UserError(f"the processes differ: steps {low[0]} to {high[0]}, weights "
                        f"{'equal' if low[1] == high[1] else 'different'}; all need the same run folder, data and "
                        "packages")


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp = dist.ReduceOp.SUM) -> None:
    try:
        dist.all_reduce(tensor, operation)
    except RuntimeError as error:
        raise UserError(f"the processes lost one another ({_reason(error)}), most often because one has ended; "
                        "--resume auto continues from the last checkpoint") from error


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
