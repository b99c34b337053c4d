"""Where the numbers are computed, and in which precision. The only place that knows about devices."""

import os
import random
import resource
import sys
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import nn

from common.errors import UserError


def select_device(name: str) -> torch.device:
    """Return the device named auto, cpu or cuda; auto takes the GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here; use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if "LOCAL_RANK" in os.environ:  # torchrun's number of this process on this machine: one GPU each
            local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if local_rank >= gpus:
                raise UserError(f"process {local_rank + 1} of this machine finds {gpus} GPUs: "
                                f"use --nproc_per_node {gpus}, or --device cpu")
            torch.cuda.set_device(local_rank)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    return torch.device(name)


def select_dtype(device: torch.device, precision: str) -> torch.dtype:
    """Return the dtype of the convolutions: precision is auto, fp32 or bf16.

    Auto means bfloat16 where the hardware multiplies it natively. Without native support bfloat16 on a CPU
    is slower than float32.
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
    """Return the context in which networks run; it does nothing for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def place(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to the device with its convolution weights in channels_last order."""
    return module.to(device=device, memory_format=torch.channels_last)


def synchronize(device: torch.device) -> None:
    """Wait until all that was started on the device is done, for a clock that tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def collectives(device: torch.device) -> str:
    """Return by what processes talk: gloo between CPUs, NCCL between GPUs."""
    return "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that were in use at once: of the GPU's memory for tensors, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def release_cached_memory() -> None:
    """Give the GPU's memory back that no tensor uses."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, torch.Tensor]:
    """Return PyTorch's random states, for a checkpoint. Training draws from no other generator."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, torch.Tensor]) -> None:
    """Restore what `rng_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def describe_machine() -> str:
    """Return the processor or GPU in a few words, for manifests and run folders."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name, cores = torch.cpu.get_capabilities().get("cpu_name", "CPU"), torch.get_num_threads()
    return f"{name}, {cores} core{'s' if cores > 1 else ''}"
