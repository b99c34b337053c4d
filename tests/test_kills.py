"""Each trainer, killed at random moments and resumed, ends as an unbroken run does, bit for bit.

    pytest tests/test_kills.py --kills 100    # the long version

Every step is logged and every third saved, so most kills come while a file is being written or after steps that
are logged and not saved.
"""

import contextlib
import os
import random
import signal
import time

import pytest

from tests.trainers import FLAGS, finish, result

pytestmark = pytest.mark.slow

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@pytest.mark.parametrize("task", FLAGS)
def test_killed_and_resumed_equals_unbroken(task, start, tmp_path, request):
    kills = request.config.getoption("--kills")
    more = f"--steps {10 + 4 * kills} --resume auto"
    assert finish(start(task, tmp_path / "whole", more)) == 0

    moments = random.Random(task)
    codes = []
    for i in range(kills):
        process = start(task, tmp_path / "broken", more)
        if i % 4 < 3:  # the others die before or while they take up the run
            wait_for_a_step(process, tmp_path / "broken" / "last.pt")
        time.sleep(moments.uniform(0, 0.2))
        with contextlib.suppress(ProcessLookupError):  # it was faster
            os.kill(process.pid, moments.choice(SIGNALS))
        codes.append(finish(process))
    assert finish(start(task, tmp_path / "broken", more)) == 0
    assert set(codes) <= {0, *(-number for number in SIGNALS), 128 + signal.SIGINT, 128 + signal.SIGTERM}
    assert any(codes), "no kill hit a running trainer"
    assert result(tmp_path / "broken") == result(tmp_path / "whole")


def wait_for_a_step(process, checkpoint):
    """Return when the checkpoint is another than now, or the process has ended."""
    def written() -> int:
        return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

    before = written()
    while written() == before and process.is_alive():
        time.sleep(0.005)
