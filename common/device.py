"""Devices and precision: what to compute on and in which dtype, CUDA graphs, and what the machine is.

No other module names CUDA, but for the choices of --device.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from common.errors import UserError

WARM_UP = 3  # calls before a capture: libraries set themselves up, and choose their kernels


def select_device(name: str) -> torch.device:
    """Return the device for "auto", "cpu" or "cuda"; "auto" takes the GPU where there is one. There, fp32 is exact."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU: use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # set by torchrun: the number of this process on this machine
        local_rank, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= num_gpus:  # one GPU each
            raise UserError(f"process {local_rank + 1} of this machine has no GPU of its own ({num_gpus} found): "
                            f"use --nproc_per_node {num_gpus}, or --device cpu")
        torch.cuda.set_device(local_rank)
    allow_tf32(False)
    return torch.device(name)


def allow_tf32(allowed: bool) -> None:
    """Let a GPU round the factors of float32 products and convolutions to TF32, 10 bits of mantissa, or not."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def avoid_cudnn_attention() -> None:
    """For short commands: cuDNN takes two seconds to compile attention for a shape, and saves a few percent of it."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def select_dtype(device: torch.device, precision: str) -> torch.dtype:
    """Return the dtype in which networks run, for precision "auto", "fp32" or "bf16".

    "auto" is bfloat16 where the hardware supports it natively: elsewhere bfloat16 is slower than float32.
    """
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            capabilities = torch.cpu.get_capabilities()
            native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
        return torch.bfloat16 if native else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Return the context in which networks run; for float32 it does nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def place(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to the device, its convolution weights in channels_last memory format."""
    return module.to(device=device, memory_format=torch.channels_last)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU to the device; a GPU copies while the CPU goes on."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def capturable(optimizer: Optimizer) -> Optimizer:
    """Let captured steps use an Adam: on a GPU, its rate becomes a tensor, which `set_lr` fills. Returns `optimizer`.

    A checkpoint of another device may be loaded into it.
    """
    def keep_own(optimizer: Optimizer, state: dict) -> dict:
        own = [{name: group[name] for name in ("lr", "capturable")} for group in optimizer.param_groups]
        return state | {"param_groups": [saved | mine for saved, mine in zip(state["param_groups"], own, strict=True)]}

    for group in optimizer.param_groups:
        device = group["params"][0].device
        if device.type == "cuda":
            group.update(capturable=True, lr=torch.tensor(group["lr"], device=device))
    optimizer.register_load_state_dict_pre_hook(keep_own)
    return optimizer


class Captured:
    """A function of tensors that a GPU runs as a CUDA graph: with one launch, instead of one for every operation.

    The first calls run as they are. The next one is captured and replayed, and later ones are replayed. Nothing runs
    twice, and a replay does what the function did, so the results do not depend on it. Random numbers come from the
    device's default generator, whose state a replay follows. Each combination of shapes and switches has a graph of its
    own. On a CPU, and if several processes share the work, every call runs as it is.

    Args:
        function: maps tensors to tensors without gradients, in any structure. It may not read a tensor's value, copy
            from the CPU, nor use a number that changes from call to call: such a number is an input, or a 0-d tensor
            filled in place, as the rate of a `capturable` optimizer. What it returned must not be changed, and later
            calls overwrite it.
        device: of its tensors.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device) -> None:
        self.function = function
        self.graphs = None if device.type == "cpu" or dist.is_initialized() else defaultdict(_Graph)
        self.stream = None if self.graphs is None else torch.cuda.Stream(device)

    def __call__(self, *inputs: Tensor, **switches: Hashable) -> Any:
        """Call the function with tensors on the device, and with switches that say what it does."""
        if self.graphs is None:
            return self.function(*inputs, **switches)
        key = (*((x.shape, x.dtype) for x in inputs), *sorted(switches.items()))
        return self.graphs[key](self.function, self.stream, inputs, switches)


class _Graph:
    """One graph of a `Captured` function, whose inputs have a place of their own."""

    def __init__(self) -> None:
        self.calls = 0
        self.inputs: list[Tensor] = []
        self.graph = torch.cuda.CUDAGraph()
        self.outputs: Any = None

    def __call__(self, function: Callable, stream: torch.cuda.Stream, inputs: tuple[Tensor, ...],
                 switches: dict[str, Hashable]) -> Any:
        self.calls += 1
        if self.calls <= WARM_UP:  # on the stream of the capture: gradients remember the stream they came from
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                outputs = function(*inputs, **switches)
            torch.cuda.current_stream().wait_stream(stream)
            return outputs
        if self.calls == WARM_UP + 1:
            self.inputs = [x.clone() for x in inputs]
            with torch.cuda.graph(self.graph, stream=stream):
                self.outputs = function(*self.inputs, **switches)
        for own, x in zip(self.inputs, inputs, strict=True):
            own.copy_(x)
        self.graph.replay()
        return self.outputs


def synchronize(device: torch.device) -> None:
    """Wait for all work on the device, so that a clock read afterwards is right."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def collectives_backend(device: torch.device) -> str:
    """Return the torch.distributed backend: gloo between CPUs, NCCL between GPUs."""
    return "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of the tensors on a GPU, or of this process; 0 on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def describe_machine(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor and how many of its cores PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name, cores = torch.cpu.get_capabilities().get("cpu_name", "CPU"), torch.get_num_threads()
    return f"{name}, {cores} core{'s' if cores > 1 else ''}"
