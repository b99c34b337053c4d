"""Several processes train as one: same result, same step, one voice; a failure of one stops all.

The processes are forks, as in test_kills.py, and meet over gloo; one test goes through torchrun itself.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from common import distributed, image_folder, run
from common.metrics_log import read_metrics
from common.randomness import mix_seeds
from diffusion import pipeline
from diffusion import train as diffusion_train
from gan import inference as gan_inference
from tests.trainers import FLAGS, SMALL, command, content

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parent.parent
SMALL = f"{SMALL} --precision fp32"
DIFFUSION = f"{FLAGS['diffusion']} {SMALL} --warmup 2 --save-every 10 --sample-every 10"


def draw_as(size: int) -> None:
    """Let one process of diffusion.train draw for its batch what `size` processes draw for their shares."""
    seed_step, draw, current = run.seed_step, diffusion_train.draw, []

    def remember(seed: int, step: int) -> None:
        current[:] = seed, step
        seed_step(seed, step)

    def draw_all(x_0: torch.Tensor, *more: object) -> tuple[torch.Tensor, ...]:
        draws = []
        for rank, share in enumerate(x_0.chunk(size)):
            torch.manual_seed(mix_seeds(*current, rank))
            draws.append(draw(share, *more))
        return tuple(map(torch.cat, zip(*draws, strict=True)))

    run.seed_step, diffusion_train.draw = remember, draw_all


def process(rank: int, size: int, port: int, module: str, argv: list[str], log: Path, broken: bool,
            draws_of: int) -> None:
    """Run a command as one of several processes; this is the child."""
    if draws_of:
        draw_as(draws_of)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if broken:
        distributed.average = lambda tensors: None
    if module.endswith("inference"):
        pipeline.BATCH_SIZE = gan_inference.BATCH_SIZE = 4
        save_image = image_folder.save_image

        def said(image, path, stamp):
            os.write(2, f"rank {rank} writes {path.name}\n".encode())  # in one piece, beside the other's
            save_image(image, path, stamp)

        image_folder.save_image = said
    command(module, argv, 1, log)


class Job:
    """N processes of one command."""

    def __init__(self, context, log: Path, module: str, flags: str, size: int, broken: bool,
                 draws_of: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.log = log
        self.processes = [context.Process(target=process, args=(r, size, port, module, flags.split(), log, broken,
                                                                draws_of)) for r in range(size)]
        for one in self.processes:
            one.start()

    def finish(self) -> list[int]:
        """Wait for the processes, and end all when one fails, as torchrun does; return the exit codes."""
        end = time.monotonic() + 120
        while any(one.is_alive() for one in self.processes) and time.monotonic() < end:
            if any(one.exitcode for one in self.processes):
                time.sleep(0.1)
                for one in self.processes:
                    one.terminate()
            time.sleep(0.02)
        return [one.exitcode for one in self.processes]

    def said(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start a command in N processes; returns the job."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.trainers"])

    def start(module: str, flags: str, size: int, broken: bool = False, draws_of: int = 0) -> Job:
        return Job(context, tmp_path_factory.mktemp("log") / "log.txt", module, flags, size, broken, draws_of)

    return start


@pytest.fixture(scope="module")
def one(start, tmp_path_factory):
    """Ten steps of diffusion in one process, with the random numbers of two."""
    out = tmp_path_factory.mktemp("one") / "run"
    assert start("diffusion.train", f"{DIFFUSION} --steps 10 --out {out}", 1, draws_of=2).finish() == [0]
    return out


def assert_equal_but_for_rounding(a: Path, b: Path) -> None:
    for name in ("loss", "grad_norm"):
        left, right = ([row[name] for row in read_metrics(out)] for out in (a, b))
        assert left == pytest.approx(right, rel=1e-4)
    left, right = content(a), content(b)
    assert left["parts"]["batches"] == right["parts"]["batches"]
    # Adam makes steps of 5e-4 also where the gradient is 0 but for rounding, as in the bias of attention's keys.
    torch.testing.assert_close(left["parts"]["model"], right["parts"]["model"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(left["weights"], right["weights"], rtol=1e-3, atol=1e-4)


def test_two_processes_of_diffusion_equal_one(start, one, tmp_path):
    job = start("diffusion.train", f"{DIFFUSION} --steps 10 --out {tmp_path / 'two'}", 2)
    assert job.finish() == [0, 0]
    assert_equal_but_for_rounding(tmp_path / "two", one)
    assert {path.name for path in (tmp_path / "two").rglob("*")} == {path.name for path in one.rglob("*")}
    for line in ("mnist train: 40", "chosen: batch_size=4", "step 7/10", "done: "):
        assert sum(said.startswith(line.replace("mnist", "mnistm")) for said in job.said()) == 1, line


def test_a_signal_to_one_stops_all_after_one_step_and_one_goes_on_alone(start, one, tmp_path):
    out = tmp_path / "run"
    job = start("diffusion.train", f"{DIFFUSION} --steps 10 --out {out}", 2)
    while len(read_metrics(out)) < 2:
        time.sleep(0.002)
    os.kill(job.processes[1].pid, signal.SIGTERM)
    codes = [128 + signal.SIGTERM] * 2
    assert job.finish() == codes
    assert sum("stopped at step" in line for line in job.said()) == 1
    assert 2 <= content(out)["step"] < 10
    job = start("diffusion.train", f"{DIFFUSION} --steps 10 --out {out} --resume auto", 1, draws_of=2)
    assert job.finish() == [0]
    assert_equal_but_for_rounding(out, one)


@pytest.mark.parametrize("task", ["gan", "dann"])
def test_gan_and_dann_stay_in_step(task, start, tmp_path):
    flags = f"{FLAGS[task]} {SMALL} --steps 6 --out"
    job = start(f"{task}.train", f"{flags} {tmp_path / 'run'}", 2)
    assert job.finish() == [0, 0], job.said()  # every checkpoint compares the processes
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    state = content(tmp_path / "run")["parts"]
    network = state["model" if task == "dann" else "discriminator"]
    assert all(value.isfinite().all() for value in network.values())


def test_the_adversarial_stage_stays_in_step(start, one, tmp_path):
    flags = f"{SMALL} --student {one}/last.pt --teacher {one}/last.pt --steps 4 --out {tmp_path / 'run'}"
    job = start("diffusion.adversarial", flags, 2)
    assert job.finish() == [0, 0], job.said()
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]


def test_replicas_that_differ_are_found_at_the_next_checkpoint(start, tmp_path):
    flags = f"{FLAGS['dann']} {SMALL} --steps 3 --out {tmp_path / 'run'}"
    job = start("dann.train", flags, 2, broken=True)  # nothing is averaged
    assert 2 in job.finish()
    assert sum("the processes differ: steps 3 to 3, weights different" in line for line in job.said()) == 1
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_batch_that_cannot_be_shared_is_said_once(start, tmp_path):
    job = start("diffusion.train", f"{DIFFUSION} --batch-size 5 --out {tmp_path / 'run'}", 2)
    assert 2 in job.finish()
    errors = [line for line in job.said() if line.startswith("error: ")]
    assert errors == ["error: --batch-size 5 is not a multiple of the 2 processes that share it: use a multiple"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("task", ["diffusion", "gan"])
def test_every_image_is_written_once_and_is_the_one_of_a_single_process(task, start, one, tmp_path):
    flags = f"--weights {one}/last.pt --digits 1,2 --per-digit 5 --steps 2 --precision fp32"
    if task == "gan":
        flags = "--model dcgan --n 10"
    pictures = {}
    for size in (1, 2):
        out = tmp_path / str(size)
        job = start(f"{task}.inference", f"{out} --device cpu {flags}", size)
        assert job.finish() == [0] * size, job.said()
        pictures[size] = {path.name: path.read_bytes() for path in out.iterdir()}
        writes = [line.split() for line in job.said() if "writes" in line]
        assert sorted(name for *_, name in writes) == sorted(pictures[size])
        assert {rank for _, rank, *_ in writes} == set("01"[:size])
        assert sum("10 images in" in line and "10 of them made now" in line for line in job.said()) == 1
    assert pictures[1] == pictures[2] and len(pictures[1]) == 10


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_killed_process_ends_the_job_and_the_rest_is_resumed_alone(tmp_path):
    out, flags = tmp_path / "run", f"{FLAGS['dann']} {SMALL} --target builtin-usps --recipe plain --no-geometry"
    flags = f"{flags} --mode target --sample-every 100000 --resume auto --out {out}"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command += ["-m", "dann.train", *flags.split(), "--steps", "100000"]
    with open(tmp_path / "log.txt", "w") as log:
        job = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    end = time.monotonic() + 60
    while not (out / "last.pt").exists():
        assert job.poll() is None and time.monotonic() < end, (tmp_path / "log.txt").read_text()
        time.sleep(0.05)
    first, second = children(job.pid)
    os.kill(second, signal.SIGKILL)
    assert job.wait(60) != 0
    said = (tmp_path / "log.txt").read_text()
    assert "\nerror: the processes lost one another (" in said
    assert "Signal 9 (SIGKILL)" in said and said.count("Traceback (most recent call last)") == 1  # torchrun's own
    assert not Path(f"/proc/{first}").exists()
    step = content(out)["step"]
    assert step % 3 == 0  # saved by --save-every, not on the way out
    command = [sys.executable, "-m", "dann.train", *flags.split(), "--steps", str(step + 2)]  # on the same data
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert content(out)["step"] == step + 2
