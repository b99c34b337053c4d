"""Devices and precision: what to compute on, in which dtype, and what the machine is.

No other module names a kind of device; the command line offers them by name.
"""

import os
import sys
from contextlib import AbstractContextManager

import torch
from torch import nn

from common.errors import UserError


def select_device(name: str) -> torch.device:
    """Return the device for "auto", "cpu" or "cuda"; "auto" takes the GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU: use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if "LOCAL_RANK" in os.environ:  # set by torchrun: the number of this process on this machine; one GPU each
            local_rank, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if local_rank >= num_gpus:
                raise UserError(f"process {local_rank + 1} of this machine has no GPU of its own ({num_gpus} found): "
                                f"use --nproc_per_node {num_gpus}, or --device cpu")
            torch.cuda.set_device(local_rank)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    return torch.device(name)


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
    """Return the name of the GPU, or the name and core count of the processor, for manifests and run folders."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name, cores = torch.cpu.get_capabilities().get("cpu_name", "CPU"), torch.get_num_threads()
    return f"{name}, {cores} core{'s' if cores > 1 else ''}"
