"""Devices, precisions and captured functions, on whatever machine runs this; tests/cuda/ has what needs a GPU."""

import contextlib
import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from common import device
from common.errors import UserError
from common.lr_schedule import set_lr

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_a_gpu_auto_is_the_cpu(no_gpu):
    assert device.select_device("auto") == device.select_device("cpu") == CPU


def test_asking_for_an_absent_gpu_says_what_to_do(no_gpu):
    with pytest.raises(UserError, match="--device cuda: .* use --device cpu or auto"):
        device.select_device("cuda")


def test_with_a_gpu_auto_takes_it_and_cpu_does_not(monkeypatch):
    settings = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [setting.allow_tf32 for setting in settings]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        assert device.select_device("auto").type == device.select_device("cuda").type == "cuda"
        assert device.select_device("cpu") == CPU
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.allow_tf32 = value


def test_a_process_without_a_gpu_of_its_own_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match=r"process 2 .* has no GPU of its own \(1 found\): use --nproc_per_node 1"):
        device.select_device("auto")


@pytest.mark.parametrize(("capabilities", "expected"), [
    ({}, torch.float32),
    ({"avx512_bf16": False, "amx_bf16": False}, torch.float32),
    ({"avx512_bf16": True}, torch.bfloat16),
    ({"amx_bf16": True}, torch.bfloat16),
])
def test_auto_precision_is_bf16_where_the_processor_has_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert device.select_dtype(CPU, "auto") == expected
    assert device.select_dtype(CPU, "fp32") == torch.float32
    assert device.select_dtype(CPU, "bf16") == torch.bfloat16


def test_autocast_touches_the_network_and_only_in_bf16():
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    with device.autocast(CPU, torch.float32):
        assert layer(x).dtype == torch.float32
    with device.autocast(CPU, torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.weight.dtype == torch.float32


def test_place_orders_convolutions_channels_last_and_keeps_the_numbers():
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = layers[0].weight.clone()
    assert device.place(layers, CPU) is layers
    assert layers[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layers[0].weight, before)


def test_the_machine_is_described_in_one_line():
    text = device.describe_machine(CPU)
    assert text and "\n" not in text


class FakeStream:
    """A CUDA stream on which nothing runs: events say in which order things were asked for."""

    def __init__(self, events, name):
        self.events, self.name = events, name

    def wait_stream(self, other):
        self.events.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def events(monkeypatch):
    """Pretend that there is a GPU; returns the list of what it is asked to do. Its tensors are those of the CPU."""
    events = []

    class FakeGraph:
        def replay(self):
            events.append("replay")

    @contextlib.contextmanager
    def on(what):
        events.append(f"({what}")
        yield
        events.append(")")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda *_: FakeStream(events, "side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: FakeStream(events, "main"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: on(stream.name))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: on(f"capture on {stream.name}"))
    return events


EAGER = ["side waits for main", "(side", "run", ")", "main waits for side"]
FIRST, LATER = ["(capture on side", "run", ")", "replay"], ["replay"]


def test_on_a_cpu_every_call_runs_the_function():
    calls = []
    captured = device.Captured(lambda x, **switches: calls.append((x, switches)) or x + 1, CPU)
    for i in range(2 * device.WARM_UP):
        assert captured(torch.tensor(i), double=bool(i % 2)) == i + 1
    assert [(int(x), switches) for x, switches in calls] == [(i, {"double": bool(i % 2)}) for i in range(6)]
    assert captured.graphs is None


def test_several_processes_capture_nothing(monkeypatch, events):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    captured = device.Captured(lambda x: events.append("run") or x, GPU)
    for i in range(5):
        assert captured(torch.tensor(i)) == i
    assert events == ["run"] * 5


def test_three_calls_are_eager_the_fourth_is_captured_and_later_ones_are_replayed(events):
    captured = device.Captured(lambda x: events.append("run") or x, GPU)
    for expected in (EAGER, EAGER, EAGER, FIRST, LATER, LATER, LATER):
        events.clear()
        captured(torch.zeros(2))
        assert events == expected


@pytest.mark.parametrize(("other", "switches"), [
    (torch.zeros(3), {}), (torch.zeros(2, dtype=torch.int64), {}), (torch.zeros(2), {"penalise": True}),
    (torch.zeros(2), {"penalise": None}), (torch.zeros(2), {"dtype": torch.bfloat16})])
def test_each_shape_dtype_and_switch_has_a_graph_of_its_own(other, switches, events):
    captured = device.Captured(lambda x, **_: events.append("run") or x, GPU)
    for expected in (EAGER, EAGER, EAGER, FIRST, LATER, LATER):
        for x, more in ((torch.zeros(2), {}), (other, switches)):
            events.clear()
            captured(x, **more)
            assert events == expected
    assert len(captured.graphs) == 2


def test_switches_in_another_order_are_the_same_ones(events):
    captured = device.Captured(lambda x, **_: x, GPU)
    captured(torch.zeros(2), a=1, b=2)
    captured(torch.zeros(2), b=2, a=1)
    assert len(captured.graphs) == 1


def test_a_replay_reads_the_new_inputs_and_returns_the_outputs_of_the_capture(events):
    seen = []
    captured = device.Captured(lambda x: seen.append(x) or {"twice": x * 2}, GPU)
    inputs = [torch.full((2,), float(i)) for i in range(6)]
    results = [captured(x) for x in inputs]
    assert all(x is given for x, given in zip(seen[:3], inputs, strict=False))  # as they are
    (own,) = seen[3:]
    assert own.tolist() == [5, 5] and own is not inputs[3]
    assert inputs[3].tolist() == [3, 3]  # the caller's are left alone
    assert results[3] is results[4] is results[5]
    assert [result["twice"].tolist() for result in results[:4]] == [[0, 0], [2, 2], [4, 4], [6, 6]]


def adam(lr=0.1, **more):
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.Adam([weight], lr=lr, fused=True)
    optimizer.param_groups[0].update(more)
    return weight, optimizer


def test_on_a_cpu_a_capturable_rate_stays_a_number():
    _, optimizer = adam()
    assert device.capturable(optimizer) is optimizer
    set_lr(optimizer, 0.25)
    (group,) = optimizer.param_groups
    assert (type(group["lr"]), group["lr"], group["capturable"]) == (float, 0.25, False)


def test_the_state_of_a_gpu_is_taken_over_but_for_its_rate():
    weight, optimizer = adam()
    weight.grad = torch.tensor([1.0, -1.0])
    optimizer.step()
    of_a_gpu = copy.deepcopy(optimizer.state_dict())
    of_a_gpu["param_groups"][0].update(lr=torch.tensor(0.5), capturable=True, betas=(0.5, 0.9))
    kept = copy.deepcopy(of_a_gpu)

    other_weight, other = adam(lr=0.3)
    other = device.capturable(other)
    other.load_state_dict(of_a_gpu)
    (group,) = other.param_groups
    assert (type(group["lr"]), group["lr"], group["capturable"]) == (float, 0.3, False)
    assert group["betas"] == (0.5, 0.9)
    assert torch.equal(other.state[other_weight]["exp_avg"], optimizer.state[weight]["exp_avg"])
    assert of_a_gpu["param_groups"][0]["capturable"] and kept["param_groups"] == of_a_gpu["param_groups"]
    other_weight.grad = torch.tensor([1.0, -1.0])
    other.step()
    assert torch.isfinite(other_weight).all()


def test_a_tensor_of_a_rate_is_filled_in_place_and_survives_a_state_of_a_cpu():
    """As on a GPU, but for the device."""
    _, optimizer = adam()
    stored = copy.deepcopy(optimizer.state_dict())
    _, own = adam()
    rate = torch.tensor(0.2)
    own.param_groups[0].update(lr=rate, capturable=True)
    own = device.capturable(own)
    own.load_state_dict(stored)
    set_lr(own, 0.4)
    (group,) = own.param_groups
    assert group["capturable"] is True
    assert isinstance(group["lr"], torch.Tensor) and group["lr"] == torch.tensor(0.4)


def test_a_device_is_exact_until_a_command_allows_tf32():
    settings = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [setting.allow_tf32 for setting in settings]
    try:
        for _ in range(2):
            device.allow_tf32(True)
            assert [setting.allow_tf32 for setting in settings] == [True, True]
            device.select_device("cpu")
            assert [setting.allow_tf32 for setting in settings] == [False, False]
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.allow_tf32 = value


def test_on_a_cpu_a_tensor_is_sent_nowhere():
    x = torch.zeros(2)
    assert device.send(x, CPU) is x


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_suite_for_a_gpu_ends_in_one_line_without_one():
    project = Path(__file__).resolve().parent.parent.parent
    command = [sys.executable, "-m", "pytest", "tests/", "--device", "cuda", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert (done.stdout + done.stderr).split("\n") == ["ERROR: --device cuda: PyTorch finds no GPU", "", ""]


def test_a_short_command_compiles_no_attention_kernels():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        device.avoid_cudnn_attention()
        assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
