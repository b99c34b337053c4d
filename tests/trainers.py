"""Small runs of the three trainers, and which parts of a run folder must be equal to the bit."""

import contextlib
import importlib
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common import cli, run
from common.data import domains, synthetic_faces
from dann import train as dann_train
from diffusion import pipeline
from diffusion import train as diffusion_train
from gan import train as gan_train

MODULES = {"gan": gan_train, "diffusion": diffusion_train, "dann": dann_train}
FLAGS = {"gan": "--model dcgan --width 8 --augment", "diffusion": "--width 4", "dann": "--source mnist --target usps"}
OF_A_START = ("seconds", "out", "resume", "starts")  # in which equal runs may differ
SMALL = "--data builtin --device cpu --batch-size 4 --log-every 1 --save-every 3 --sample-every 5"


def arguments(task: str, out: Path, more: str = "") -> list[str]:
    """Return a small run's command line."""
    return f"{FLAGS[task]} {SMALL} --out {out} {more}".split()


def make_small(replace=setattr) -> None:
    """Use 40 images of noise as the embedded sets, small previews, and no curves: they would only cost time."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
    replace(domains, "embedded_digits", lambda domain, split: (pixels[:, :28, :28], np.arange(40) % 10))
    replace(synthetic_faces, "faces", lambda split: pixels)
    replace(run, "plot_curves", lambda *_: None)
    replace(gan_train, "NUM_IMAGES", 64)
    replace(pipeline, "STANDARD", pipeline.Setting("dpm-solver++", 1, 1.5))
    replace(pipeline, "PREVIEW_COLUMNS", 1)


def command(module: str, argv: list[str], threads: int, log: Path) -> None:
    """Run a module of the project as a command does; this is the child."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    torch.set_num_threads(threads)
    make_small()
    sys.argv = [module, *argv]
    cli.run_main(lambda: importlib.import_module(module).main(argv))


def finish(process: multiprocessing.Process) -> int:
    """Wait for a process; return its exit code."""
    process.join(900)  # of the long kill tests, on a busy machine
    return process.exitcode


@contextlib.contextmanager
def killed(module, steps):
    """Let the `train_step` of a module fail after so many steps, and expect that."""
    step, left = module.train_step, iter(range(steps))

    def train_step(*args, **values):
        if next(left, None) is None:
            raise RuntimeError("killed")
        return step(*args, **values)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(module, "train_step", train_step)
        yield


def same(a, b) -> bool:
    """Say whether nested dicts, lists and tensors are equal to the bit."""
    return bits(a) == bits(b)


def bits(value):
    """Return nested dicts, lists and tensors in a form that == compares to the bit."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {name: bits(entry) for name, entry in value.items()}
    return [bits(entry) for entry in value] if isinstance(value, list | tuple) else value


def state(stored):
    """Return the bits of a checkpoint or JSON file, without the times and names in which equal runs may differ."""
    if isinstance(stored, dict):
        return {name: state(entry) for name, entry in stored.items() if name not in OF_A_START}
    return bits(stored)


def content(out: Path) -> dict:
    """Return the checkpoint of a run."""
    return torch.load(out / "last.pt", weights_only=True)


def result(out: Path) -> dict:
    """Return what two equal runs leave in their folders."""
    files = {path.name: path.read_bytes() for path in (out / "samples").iterdir()}
    return {"checkpoint": state(content(out)), "samples": files,
            "metrics": (out / "metrics.jsonl").read_text(), "files": {path.name for path in out.iterdir()}}
