"""Each trainer, killed at random moments and resumed, ends as an unbroken run does, bit for bit.

    pytest tests/test_kills.py --kills 100    # the long version

Every step is logged and every third saved, so most kills come while a file is being written or after steps that
are logged and not saved. The trainers run in forks of a server that has imported them, because importing takes
longer than training here.
"""

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SMALL = "--data builtin --device cpu --precision fp32 --batch-size 4 --log-every 1 --save-every 3 --sample-every 5"
TRAINERS = {"gan": "--model dcgan --width 8", "diffusion": "--width 4", "dann": "--source mnist --target usps"}


def train(module: str, argv: list[str], log: Path) -> None:
    """Run a trainer as a command does; this is the child."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    torch.set_num_threads(1)
    from common import builtin, cli, runlog
    from diffusion import train as diffusion_train

    runlog.plot_curves = lambda run_dir: None  # seconds that are not at stake here
    diffusion_train.PREVIEW_STEPS = 1
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
    builtin.digits = lambda domain, split: (pixels[:, :28, :28], np.arange(40) % 10)
    builtin.faces = lambda split: pixels
    sys.argv = [module, *argv]
    cli.run_main(lambda: sys.modules[module].main(argv))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start a trainer; returns its process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*(f"{task}.train" for task in TRAINERS), "torch._dynamo"])
    log = tmp_path_factory.mktemp("log") / "log.txt"

    def start(task: str, out: Path, steps: int) -> multiprocessing.Process:
        flags = f"{TRAINERS[task]} {SMALL} --steps {steps} --out {out} --resume auto"
        process = context.Process(target=train, args=(f"{task}.train", flags.split(), log))
        process.start()
        return process

    return start


def finish(process: multiprocessing.Process) -> int:
    process.join(120)
    return process.exitcode


def state(value):
    """A checkpoint without what may differ, in a form that == compares bit for bit."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {name: state(entry) for name, entry in value.items() if name not in ("seconds", "out")}
    return [state(entry) for entry in value] if isinstance(value, list | tuple) else value


def result(out: Path) -> dict:
    files = {path.name: path.read_bytes() for path in (out / "samples").iterdir()}
    return {"checkpoint": state(torch.load(out / "last.pt", weights_only=True)), "samples": files,
            "metrics": (out / "metrics.jsonl").read_text(), "files": {path.name for path in out.iterdir()}}


@pytest.mark.parametrize("task", TRAINERS)
def test_killed_and_resumed_equals_unbroken(task, start, tmp_path, request):
    kills = request.config.getoption("--kills")
    steps = 10 + 4 * kills
    assert finish(start(task, tmp_path / "whole", steps)) == 0

    moments = random.Random(task)
    codes = []
    for i in range(kills):
        process = start(task, tmp_path / "broken", steps)
        if i % 4 < 3:  # the others die before or while they take up the run
            wait_for_a_step(process, tmp_path / "broken" / "last.pt")
        time.sleep(moments.uniform(0, 0.2))
        with contextlib.suppress(ProcessLookupError):  # it was faster
            os.kill(process.pid, moments.choice(SIGNALS))
        codes.append(finish(process))
    assert finish(start(task, tmp_path / "broken", steps)) == 0
    assert set(codes) <= {0, *(-number for number in SIGNALS), 128 + signal.SIGINT, 128 + signal.SIGTERM}
    assert any(codes), "no kill hit a running trainer"
    assert result(tmp_path / "broken") == result(tmp_path / "whole")


def wait_for_a_step(process: multiprocessing.Process, checkpoint: Path) -> None:
    """Return when the checkpoint is another than now, or the process has ended."""
    def written() -> int:
        return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

    before = written()
    while written() == before and process.is_alive():
        time.sleep(0.005)
