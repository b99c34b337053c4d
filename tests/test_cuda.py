"""The tests that need a GPU: `bash scripts/test.sh --device cuda`, with `-s` for what they measured.

tests/cuda/ holds them. Each group has a process of its own, because a failed capture or a full memory spoils CUDA for
the rest of its process; some groups run at the same time. Without a GPU,
`pytest tests/cuda/check_*.py --device cpu` tries what does not need one.
"""

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.cuda.cases import CASES

PROJECT = Path(__file__).resolve().parent.parent
GROUPS = {name: ("trainers", name) for name in CASES}
GROUPS |= {name: (name, "") for name in ("graphs", "networks", "stop")}
GROUPS |= {f"memory-{keyword}": ("memory", keyword) for keyword in ("gan", "diffusion", "dann", "leave")}
SECONDS = 150

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def run(name: str) -> tuple[int, str]:
    """Run a group; returns its exit code and all that it printed."""
    file, keyword = GROUPS[name]
    command = [sys.executable, "-m", "pytest", f"tests/cuda/check_{file}.py", "--device", "cuda", "--tb=short", "-rs",
               "--show-capture=no", "-p", "no:cacheprovider", *(["-k", keyword] if keyword else [])]
    try:
        done = subprocess.run(command, cwd=PROJECT, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as late:
        return -1, f"{(late.stdout or b'').decode(errors='replace')}\nnot done after {SECONDS} s"
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def groups(request):
    """Start the chosen groups, so many at a time as there are processors for; returns their results to come."""
    chosen = [item.callspec.params["name"] for item in request.session.items if item.function is test_on_a_gpu]
    with ThreadPoolExecutor(min(8, max(1, (os.cpu_count() or 1) // 2))) as pool:
        yield {name: pool.submit(run, name) for name in chosen}


@pytest.mark.parametrize("name", GROUPS)
def test_on_a_gpu(name: str, groups: dict[str, Future]):
    code, output = groups[name].result()
    if code:
        pytest.fail(f"{name}: exit code {code}\n{output}", pytrace=False)
    print(f"{name}:{output}", end="")
