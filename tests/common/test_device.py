"""Devices and precisions, on whatever machine runs this."""

import pytest
import torch
from torch import nn

from common import device
from common.errors import UserError

CPU = torch.device("cpu")


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
