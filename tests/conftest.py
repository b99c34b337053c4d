"""Flags and threads of the suite, and a server whose forks train: importing takes longer than a small training."""

import multiprocessing
from pathlib import Path

import pytest
import torch

from tests.trainers import arguments, command


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=2, help="how often test_kills.py kills each trainer (long: 100)")
    parser.addoption("--device", choices=("cpu", "cuda"), help="cuda: run just the tests that need a GPU")


def pytest_configure(config):
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: PyTorch finds no GPU")
    torch.set_num_threads(1)  # as scripts/test.sh does; a process that a test starts sets its own


def pytest_ignore_collect(collection_path, config):
    """With --device cuda, do not even import the others; what test_cuda.py starts has another kind of name."""
    name = collection_path.name
    of_no_gpu = name.startswith("test_") and name.endswith(".py") and name != "test_cuda.py"
    return True if config.getoption("--device") == "cuda" and of_no_gpu else None


@pytest.fixture(autouse=True)
def seeded():
    """Give every test the same random numbers, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Start a small training in a process of its own; returns the process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.trainers"])
    log = tmp_path_factory.mktemp("log") / "log.txt"

    def start(task: str, out: Path, more: str, threads: int = 1) -> multiprocessing.Process:
        argv = arguments(task, out, f"--precision fp32 {more}")
        process = context.Process(target=command, args=(f"{task}.train", argv, threads, log))
        process.start()
        return process

    return start
