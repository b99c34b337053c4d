"""Every trainer on a GPU, through its command: a captured training is the eager one, whatever happens in between.

Kernels may add in any order, and Adam turns the sign of a rounding error into a whole step. So differences are compared
with those of two eager trainings, and a floor.
"""

import importlib
import os
import signal
from itertools import chain
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from common.device import Captured
from common.run import Run, _float_tensors
from tests.cuda.cases import CASES
from tests.trainers import make_small

STEPS = 20
QUIET = f"--steps {STEPS} --log-every 100 --save-every 100 --sample-every 100"
FLOORS = {"fp32": 1e-5, "bf16": 1e-3}  # of the weights, relative; statistics and losses may differ ten times as much
NOISE = 5  # times what two eager trainings differ by
WITHOUT_WAITING = range(14, 19)  # all replayed, and within one epoch of ten batches

pytestmark = pytest.mark.parametrize("case", CASES)


class Trained(NamedTuple):
    """What a training gave: exit code, vectors of numbers, losses of each step, and how many steps were replayed."""

    code: int
    vectors: dict[str, Tensor]
    first: Tensor  # the weights after the first step
    losses: list[Tensor]
    replays: int
    run: Run


def vector(tensors) -> Tensor:
    return torch.cat([torch.zeros(0).double(), *(x.detach().cpu().double().flatten() for x in tensors)])


def networks(run: Run) -> list[nn.Module]:
    return [part for part in run.parts.values() if isinstance(part, nn.Module)]


def parameters(run: Run) -> Tensor:
    return vector(chain(*(network.parameters() for network in networks(run))))


@pytest.fixture(scope="module")
def train(device, tmp_path_factory):
    """Train a case with more flags; on a GPU captured, or not."""
    def main(module: str, flags: str, out) -> int:
        argv = f"{flags} --data builtin --batch-size 4 --seed 1 --out {out}".split()
        try:
            return importlib.import_module(module).main(argv)
        except SystemExit as end:
            return end.code

    def teacher():
        out = folder / "teacher"
        if not (out / "last.pt").exists():
            assert main("diffusion.train", f"--width {width} --device cpu --precision fp32 --steps 3", out) == 0
        return out / "last.pt"

    def train(case, more=QUIET, out=None, *, on=None, eager=False, stop_at=None, watched=(), opened=lambda run: None):
        module, flags = CASES[case]
        runs, losses, first, replays, replayed = [], [], [], [], 0
        original = {name: getattr(Run, name) for name in ("__init__", "record", "steps")}
        replay = torch.cuda.CUDAGraph.replay

        def init(run, *args, **kwargs):
            original["__init__"](run, *args, **kwargs)
            runs.append(run)
            opened(run)

        def record(run, metrics):
            nonlocal replayed
            original["record"](run, metrics)
            replayed = len(replays)  # without those of the last preview
            losses.append(torch.stack([value for name, value in metrics.items() if "loss" in name]))
            if not first:
                first.append(parameters(run))
            if run.step + 1 == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        def steps(run, *args, **kwargs):
            for step in original["steps"](run, *args, **kwargs):
                if step in watched and device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("error")
                try:
                    yield step
                finally:
                    if device.type == "cuda":
                        torch.cuda.set_sync_debug_mode("default")

        with pytest.MonkeyPatch.context() as patch:
            make_small(patch.setattr)
            for name, replacement in (("__init__", init), ("record", record), ("steps", steps)):
                patch.setattr(Run, name, replacement)
            patch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(1), replay(graph))[1])
            if eager:
                patch.setattr(Captured, "__call__", lambda own, *inputs, **switches: own.function(*inputs, **switches))
            if "{teacher}" in flags:
                flags = flags.format(teacher=teacher())
                for kept in (runs, losses, first, replays):  # of the teacher
                    kept.clear()
            try:
                code = main(module, f"{flags.format(width=width)} --device {on or device.type} {more}",
                            out or tmp_path_factory.mktemp(case) / "run")
            finally:
                if device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
        (run,) = runs
        buffers = vector(chain(*(network.buffers() for network in networks(run))))
        vectors = {"weights": parameters(run), "average": vector(run.weights.parameters()), "statistics": buffers}
        return Trained(code, vectors, first[0], [loss.double().cpu() for loss in losses], replayed, run)

    folder = tmp_path_factory.mktemp("teacher")
    width = 32 if device.type == "cuda" else 8
    return train


@pytest.fixture(scope="module")
def eager(train):
    """Two trainings of a case without graphs; each pair is made once."""
    known = {}

    def eager(case, precision):
        if (case, precision) not in known:
            pair = [train(case, f"{QUIET} --precision {precision}", eager=True) for _ in range(2)]
            assert [one.replays for one in pair] == [0, 0]
            known[case, precision] = pair
        return known[case, precision]

    return eager


def differences(a: Trained, b: Trained) -> dict[str, float]:
    """Return how far two trainings are apart, relative to the size of what is compared; nan counts as equal to nan."""
    found = {name: float((a.vectors[name] - x).norm() / x.norm()) for name, x in b.vectors.items() if x.numel()}
    pairs = zip(a.losses[-len(b.losses):], b.losses[-len(a.losses):], strict=True)  # of a resumed one, the last
    return found | {"losses": max(float(((x - y).abs() / (1 + y.abs())).nan_to_num(0).max()) for x, y in pairs)}


def require_equal(got: Trained, pair: list[Trained], floor: float, say, what: str) -> None:
    """Fail if a training is farther from an eager one than another eager one is, but for a factor and a floor.

    A fifth of the way that training moves the weights is too far in any case: with other data or numbers it would go
    elsewhere.
    """
    expected, again = pair
    found, noise = differences(got, expected), differences(again, expected)
    weights = expected.vectors["weights"]
    moved = float((weights - expected.first).norm() / weights.norm())
    bounds = {name: max(floor, min(NOISE * noise[name], moved / 5)) if name in ("weights", "average") else
              max(10 * floor, NOISE * noise[name]) for name in found}
    text = f"{what}, difference (of two eager ones): " + ", ".join(
        f"{name} {found[name]:.0e} ({noise[name]:.0e})" for name in found) + f"; moved {moved:.0e}"
    say(f"{text}, {got.replays} replays")
    bad = {name: f"more than {bounds[name]:.0e}" for name in found if not found[name] <= bounds[name]}
    assert not bad, f"{text}: {bad}"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_equals_eager(case, precision, train, eager, device, say):
    captured = train(case, f"{QUIET} --precision {precision}")
    if device.type == "cuda":
        graphs = 2 if case == "plus" else 1
        assert captured.replays == STEPS - 3 * graphs
    require_equal(captured, eager(case, precision), FLOORS[precision], say, f"{case} {precision}")


def test_a_stop_and_a_resume_change_nothing(case, train, eager, tmp_path, say):
    half = train(case, f"{QUIET} --precision fp32", tmp_path / "run", stop_at=8)
    assert half.code == 128 + signal.SIGTERM and half.run.step == 8
    assert torch.load(tmp_path / "run" / "last.pt", map_location="cpu", weights_only=True)["step"] == 8
    whole = train(case, "--resume auto", tmp_path / "run")
    assert (whole.code, whole.run.step) == (0, STEPS)
    require_equal(whole, eager(case, "fp32"), FLOORS["fp32"], say, f"{case} resumed")


def test_logs_previews_and_checkpoints_change_nothing(case, train, eager, say):
    busy = train(case, f"--steps {STEPS} --log-every 3 --save-every 4 --sample-every 5 --precision fp32")
    require_equal(busy, eager(case, "fp32"), FLOORS["fp32"], say, f"{case} with previews")


def test_a_step_waits_for_nothing(case, train):
    assert train(case, f"{QUIET} --precision fp32", watched=WITHOUT_WAITING).code == 0


def test_a_run_moves_between_devices(case, train, device, tmp_path):
    def same_as_in_the_file(run):
        stored = torch.load(tmp_path / "run" / "last.pt", map_location="cpu", weights_only=True)["parts"]
        for name, part in run.parts.items():
            expected = dict(_float_tensors(stored[name]))
            found = {key: value.cpu() for key, value in _float_tensors(part.state_dict())}
            for key in found.keys() | expected.keys():
                if not key.endswith(".lr"):
                    assert torch.equal(found[key], expected[key]), f"{name}.{key}"

    first = train(case, f"{QUIET} --precision fp32", tmp_path / "run", on="cpu", stop_at=2)
    second = train(case, "--resume auto", tmp_path / "run", stop_at=11, opened=same_as_in_the_file)
    third = train(case, "--resume auto", tmp_path / "run", on="cpu", opened=same_as_in_the_file)
    assert [part.code for part in (first, second, third)] == [143, 143, 0]
    assert [part.run.step for part in (first, second, third)] == [2, 11, STEPS]
    assert all(loss.nan_to_num(0).isfinite().all() for loss in (*first.losses, *second.losses, *third.losses))
    for on, trained in (("cpu", first), (device.type, second), ("cpu", third)):
        for optimizer in (part for part in trained.run.parts.values() if isinstance(part, Optimizer)):
            for group in optimizer.param_groups:
                found = isinstance(group["lr"], Tensor), group["capturable"]
                assert found == (on == "cuda", on == "cuda"), f"on {on}: lr {group['lr']!r}, {found}"
