"""Full memory of a GPU is one line, and commands on a CPU leave the GPU alone; each in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent

TRAIN = """
import importlib, sys, torch
from common import cli
from common.run import Run
from tests.trainers import make_small
when, task, *flags = sys.argv[1:]
make_small()
record, leave = Run.record, torch.cuda.graph.__exit__

def limit(more):
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + more) / total)

def record_and_limit(run, metrics):
    record(run, metrics)
    if run.step == 2:  # the next step is captured
        limit(2**21)  # the batch or the first maps do not fit

def leave_and_tell(graph, kind, *rest):
    print("a capture ends with", kind and kind.__name__, file=sys.stderr, flush=True)
    return leave(graph, kind, *rest)

torch.cuda.graph.__exit__ = leave_and_tell
if when == "start":
    limit(2**22)
elif when == "capture":
    Run.record = record_and_limit
cli.run_main(lambda: importlib.import_module(f"{task}.train").main(flags))
"""
WIDE = {"gan": "--model dcgan --width 64 --batch-size 40", "diffusion": "--width 32 --batch-size 40",
        "dann": "--batch-size 40"}


def python(code: str, *argv: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *argv], cwd=PROJECT, capture_output=True, text=True, timeout=100,
                          check=False)


@pytest.mark.parametrize("when", ["start", "capture", "never"])
@pytest.mark.parametrize("task", WIDE)
def test_a_full_memory_is_one_line(task, when, tmp_path, device):
    if device.type == "cpu" and when != "never":
        pytest.skip("a CPU's memory has no limit")
    flags = f"{WIDE[task]} --data builtin --steps 5 --precision fp32 --device {device} --out {tmp_path / 'run'}".split()
    done = python(TRAIN, when, task, *flags)
    told = [line for line in done.stderr.splitlines() if line.startswith("a capture ends")]
    rest = [line for line in done.stderr.splitlines() if line not in told and "capture_end()" not in line
            and "The CUDA Graph is empty" not in line]  # PyTorch's warning, of a capture that fails at once
    said = f"exit code {done.returncode}\n{done.stderr[-3000:]}"
    if when == "never":
        assert (done.returncode, rest) == (0, []), said
        assert told == ["a capture ends with None"] * (device.type == "cuda"), said
        return
    assert done.returncode == 2, said
    assert len(rest) == 1 and rest[0].startswith("error: the GPU's memory is full: use --precision bf16"), said
    if when == "capture":
        assert told == ["a capture ends with OutOfMemoryError"], said


ON_A_CPU = """
import sys, torch
from common.device import describe_machine
from dann import train as dann
from diffusion import train as diffusion
from gan import train as gan
from tests.trainers import arguments, make_small
from pathlib import Path
make_small()
for task, module in (("dann", dann), ("diffusion", diffusion), ("gan", gan)):
    module.main(arguments(task, Path(sys.argv[1], task), "--device cpu --steps 2"))
    assert not torch.cuda.is_initialized(), task
print(describe_machine(torch.device("cpu")))
assert not torch.cuda.is_initialized()
"""


def test_trainings_on_a_cpu_leave_the_gpu_alone(tmp_path):
    done = python(ON_A_CPU, str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
