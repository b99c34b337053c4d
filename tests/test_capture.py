"""What a captured step may not do, tried on a CPU: a pretended graph stands for CUDA's.

A replay repeats the operations of the capture with its numbers and addresses, and writes into its outputs. Here the
function runs instead; what a replay could not have known shows as another operation, number or address.
"""

import importlib
from collections import defaultdict

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from common.device import WARM_UP, Captured
from tests.cuda.cases import CASES
from tests.trainers import make_small, result

pytestmark = pytest.mark.slow

FLAGS = "--data builtin --device cpu --precision fp32 --batch-size 4 --steps 12"
OFTEN = "--log-every 3 --save-every 4 --sample-every 5"


def tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def address(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()


class Trace(TorchDispatchMode):
    """Writes down operations with their numbers, and the addresses of tensors that they have not made themselves."""

    def __init__(self):
        super().__init__()
        self.operations, self.made = [], {}  # what is made is kept, or its address would be used again

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        leaves = pytree.tree_leaves((args, kwargs))
        seen = [leaf if not isinstance(leaf, torch.Tensor) else
                tuple(leaf.shape) if address(leaf) in self.made else (tuple(leaf.shape), address(leaf))
                for leaf in leaves]
        if "fused_adam" in str(operation):  # the rate is a tensor on a GPU
            seen = [leaf for leaf in seen if not isinstance(leaf, float)]
        if "profiler" not in str(operation):
            self.operations.append((str(operation), repr(seen)))
        outputs = operation(*args, **kwargs or {})
        given = {address(x) for x in tensors(leaves)}
        self.made |= {address(x): x for x in tensors(outputs) if address(x) not in given}
        return outputs


class PretendedGraph:
    def __init__(self):
        self.calls = 0

    def __call__(self, function, inputs, switches):
        self.calls += 1
        if self.calls <= WARM_UP:
            return function(*inputs, **switches)
        first = self.calls == WARM_UP + 1
        if first:
            self.inputs = [x.clone() for x in inputs]
        for own, x in zip(self.inputs, inputs, strict=True):
            own.copy_(x)
        with Trace() as trace:
            outputs = function(*self.inputs, **switches)
        if first:
            self.trace, self.outputs = trace, outputs
            self.places = tensors(outputs)  # a caller may change a dict that it was given, and a replay does not notice
        for now, captured in zip(trace.operations, self.trace.operations, strict=True):
            assert now == captured
        for own, x in zip(self.places, tensors(outputs), strict=True):
            own.copy_(x)
        return self.outputs


def train(case, out, folder):
    module, flags = CASES[case]
    if "{teacher}" in flags:
        teacher = folder / "teacher"
        if not teacher.exists():
            importlib.import_module("diffusion.train").main(f"--width 4 {FLAGS} --steps 1 --out {teacher}".split())
        flags = flags.replace("{teacher}", str(teacher / "last.pt"))
    importlib.import_module(module).main(f"{flags.format(width=8)} {FLAGS} {OFTEN} --out {out}".split())
    return result(out)


@pytest.mark.parametrize("case", CASES)
def test_a_training_of_replays_is_the_eager_one(case, tmp_path, monkeypatch):
    make_small(monkeypatch.setattr)
    eager = train(case, tmp_path / "eager", tmp_path)
    graphs = []

    def call(self, *inputs, **switches):
        graphs.append(self.__dict__.setdefault("pretended", defaultdict(PretendedGraph)))
        return graphs[-1][*((x.shape, x.dtype) for x in inputs), *sorted(switches.items())](
            self.function, inputs, switches)

    monkeypatch.setattr(Captured, "__call__", call)
    captured = train(case, tmp_path / "captured", tmp_path)
    assert captured == eager
    calls = [graph.calls for graph in graphs[0].values()]
    assert min(calls) > WARM_UP + 1
