"""Several processes as one training: torchrun starts them, each holds all data and takes a share of every batch.

    torchrun --nproc_per_node 4 -m diffusion.train --data hw2_data

The batch size is that of all processes together. All draw the same indices from the same stream and have the same
random state, so nothing in a checkpoint depends on their number: a run goes on with another one. Gradients are
averaged in one message after the backward pass. `DistributedDataParallel` would overlap the two, but it takes one
forward pass a backward pass, where GAN and DANN have several; and there is little to hide (README, "Several
processes": the table of costs).

Batch normalisation takes the statistics of each process's own share, as is usual, unless `sync_batch_norm` is
asked for; the running statistics are averaged at every step, so that all networks stay equal to the bit.

A plain run is rank 0 of 1 process, and for it everything here does nothing.
"""

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.device import collectives, rng_state, set_rng_state
from common.errors import UserError


def rank() -> int:
    """Return which process this is, 0 .. world_size() - 1. Process 0 writes and speaks for all."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def join(device: torch.device) -> None:
    """Meet the other processes, if torchrun started any."""
    if world_size() > 1 and not dist.is_initialized():
        dist.init_process_group(collectives(device))


def leave() -> None:
    """Part from them."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Return when every process has come here."""
    if world_size() > 1:
        _all_reduce(torch.zeros(1))


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Let process 0 run the block before the others do: it may write a cache, or find a mistake, for all."""
    if rank():
        wait_for_all()
    yield
    if not rank():
        wait_for_all()


def share(batch: Tensor) -> Tensor:
    """Return this process's part of a whole batch: (B, ...) -> (B / processes, ...)."""
    return batch.chunk(world_size())[rank()]


@contextlib.contextmanager
def own_draws() -> Iterator[None]:
    """Draw random numbers in the block that no other process draws; the random state stays equal in all."""
    if world_size() == 1:
        yield
        return
    seed = int(torch.randint(2**62, ()))
    state = rng_state()
    torch.manual_seed(seed + rank())
    yield
    set_rng_state(state)


def average_gradients(network: nn.Module) -> None:
    """Give every parameter the mean of the processes' gradients, which are means over equal shares."""
    average([parameter.grad for parameter in network.parameters() if parameter.grad is not None])


def average_statistics(*networks: nn.Module) -> None:
    """Give every floating-point buffer, as batch normalisation's running statistics, the mean of the processes'."""
    average([buffer for network in networks for buffer in network.buffers() if buffer.is_floating_point()])


def average(tensors: list[Tensor]) -> None:
    """Replace float tensors of one device, of any shapes, by their means over the processes, in one message."""
    if world_size() == 1 or not tensors:
        return
    message = torch.cat([tensor.detach().flatten() for tensor in tensors])
    _all_reduce(message)
    message /= world_size()
    parts = message.split([tensor.numel() for tensor in tensors])
    with torch.no_grad():
        torch._foreach_copy_(tensors, [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)])


def largest(number: int) -> int:
    """Return the largest of the processes' numbers. It waits for the processes, but not for their GPUs."""
    if world_size() == 1:
        return number
    number = torch.tensor(number)
    _all_reduce(number, dist.ReduceOp.MAX)
    return number.item()


def require_in_step(step: int, *networks: nn.Module) -> None:
    """Compare the step and the bits of all weights and running statistics between the processes.

    Raises:
        UserError: they are not equal.
    """
    if world_size() == 1:
        return
    tensors = (t for network in networks for t in (*network.parameters(), *network.buffers()))
    bits = sum(t.detach().view(torch.int32).sum() for t in tensors if t.dtype == torch.float32)  # exact in any order
    mine = torch.stack([torch.tensor(step), bits.cpu()])
    low, high = mine.clone(), mine.clone()
    _all_reduce(low, dist.ReduceOp.MIN)
    _all_reduce(high, dist.ReduceOp.MAX)
    if not torch.equal(low, high):
        raise UserError(f"the processes are not in step: steps {low[0]} to {high[0]}, weights "
                        f"{'equal' if low[1] == high[1] else 'different'}; every one must see the same run folder, "
                        "data and packages")


def sync_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network with batch normalisation over the whole batch of all processes.

    Raises:
        UserError: on a CPU, where PyTorch has none.
    """
    if device.type == "cpu":
        raise UserError("--sync-bn works on GPUs only: leave it out on a CPU")
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp = dist.ReduceOp.SUM) -> None:
    try:
        dist.all_reduce(tensor, operation)
    except RuntimeError as error:
        raise UserError("another process of this job has ended, so this one stops; --resume auto goes on from the "
                        "last checkpoint") from error
