"""A signal ends a captured training after its step, with a checkpoint; the process ends cleanly, graphs and all."""

import json
import os
import signal
import time

import pytest
import torch

from common.metrics_log import METRICS
from tests.trainers import FLAGS, finish


@pytest.mark.parametrize("task", FLAGS)
def test_sigterm_saves_and_a_resume_ends(task, device, start, tmp_path, say):
    out, more = tmp_path / "run", f"--device {device} --save-every 1000000 --sample-every 1000000"
    process = start(task, out, f"{more} --steps 1000000")
    began = time.perf_counter()
    while steps(out) < 10:  # three are eager, the fourth is captured
        assert process.is_alive() and time.perf_counter() - began < 100, (
            f"{'runs' if process.is_alive() else process.exitcode} after {steps(out)} steps: {log(tmp_path)}")
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == 128 + signal.SIGTERM, log(tmp_path)
    done = torch.load(out / "last.pt", map_location="cpu", weights_only=True)["step"]
    assert done >= 10 and done == steps(out)
    assert finish(start(task, out, f"{more} --steps {done + 6} --resume auto")) == 0, log(tmp_path)
    assert torch.load(out / "last.pt", map_location="cpu", weights_only=True)["step"] == done + 6
    say(f"{task}: 10 steps after {seconds:.1f} s, stopped at step {done}")


def steps(out) -> int:
    """Return how many steps are logged."""
    lines = (out / METRICS).read_text().splitlines(keepends=True) if (out / METRICS).exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return json.loads(whole[-1])["step"] if whole else 0


def log(tmp_path) -> str:
    """Return the end of what the trainings printed."""
    return "".join(path.read_text()[-2000:] for path in tmp_path.parent.glob("log*/log.txt"))
