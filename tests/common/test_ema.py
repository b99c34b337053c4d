"""The average of the weights: its warm-up, its buffers, and that it survives a checkpoint."""

import copy

import pytest
import torch
from torch import nn

from common.ema import EMA


def network():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    return layers.to(memory_format=torch.channels_last)


def move(module):
    """Change every parameter and every buffer, as a step of training does."""
    module(torch.randn(2, 3, 5, 5))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_warm_up_follows_its_formula_to_the_final_decay():
    module = nn.Linear(1, 1, bias=False).double()
    ema, expected = EMA(module, decay=0.6), module.weight.item()
    for n in range(40):
        with torch.no_grad():
            module.weight.fill_(float(n * n))
        ema.update(module)
        decay = min(0.6, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n * n
        assert ema.module.weight.item() == pytest.approx(expected, rel=1e-12), n


def test_parameters_are_averaged_and_buffers_left_alone():
    module = network()
    start = copy.deepcopy(module)
    ema = EMA(module, 0.999)
    move(module)
    ema.update(module)
    for mine, old, new in zip(ema.module.parameters(), start.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(mine, 0.1 * old + 0.9 * new)
    assert not torch.equal(module[1].running_mean, start[1].running_mean)
    for mine, old in zip(ema.module.buffers(), start.buffers(), strict=True):
        assert torch.equal(mine, old)


def test_decay_zero_is_the_network_itself():
    module = network()
    ema = EMA(module, 0)
    move(module)
    ema.update(module)
    for name, value in module.named_parameters():
        assert torch.equal(ema.module.get_parameter(name), value), name


def test_the_copy_is_for_inference_and_apart_from_the_network():
    module = network()
    ema = EMA(module, 0.9)
    assert module.training and not ema.module.training
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
    before = ema.module[0].weight.clone()
    move(module)
    assert torch.equal(ema.module[0].weight, before)
    module(torch.randn(2, 3, 5, 5)).sum().backward()
    ema.update(module)
    assert module[0].weight.requires_grad and ema.module[0].weight.grad is None


def test_channels_last_stays_and_changes_no_number():
    last, plain = network(), network().to(memory_format=torch.contiguous_format)
    averages = [EMA(last, 0.9), EMA(plain, 0.9)]
    for module, ema in zip((last, plain), averages, strict=True):
        torch.manual_seed(1)
        for _ in range(3):
            noise = torch.randn(4, 3, 3, 3)
            with torch.no_grad():
                module[0].weight.add_(noise)
            ema.update(module)
    assert averages[0].module[0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(averages[0].module[0].weight, averages[1].module[0].weight)


def test_resumed_average_goes_on_as_if_unbroken():
    module = network()
    ema = EMA(module, 0.99)
    for _ in range(3):
        move(module)
        ema.update(module)
    resumed = EMA(network(), 0.99)
    resumed.load_state_dict(copy.deepcopy(ema.state_dict()))
    move(module)
    ema.update(module)
    resumed.update(module)
    assert resumed.updates == ema.updates == 4
    for name, value in ema.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[name], value), name


def test_a_long_run_stays_within_its_rounding_of_the_exact_average():
    """20,000 updates in float32, as in training, against float64.

    An update moves the average by (1 - decay) of its distance to the weight. A move of less than half a unit in the
    last place is lost, so the average may stay behind by that over 1 - decay; rounding otherwise averages out.
    """
    decay, steps = 0.999, 20_000
    generator = torch.Generator().manual_seed(0)
    start, drift = torch.tensor([1.0, -3.0, 1e-4]), torch.tensor([2.0, 3.5, 2e-4])
    module = nn.Linear(3, 1, bias=False)
    module.weight.data[0] = start
    ema, exact = EMA(module, decay), start.double()
    bound = (start.abs() + drift.abs()).double() * torch.finfo(torch.float32).eps / 2 / (1 - decay)
    for n in range(steps):  # weights that move and tremble, and come to rest
        noise = torch.randn(3, generator=generator) * 0.05 * start * (n < steps / 2)
        module.weight.data[0] = start + min(1.0, 2 * n / steps) * drift + noise
        ema.update(module)
        share = 1 - min(decay, (1 + n) / (10 + n))
        exact = exact + share * (module.weight.data[0].double() - exact)
        if n % 500 == 499:
            error = (ema.module.weight.data[0].double() - exact).abs()
            assert (error <= bound).all(), (n, (error / bound).tolist())


def test_the_average_of_weights_at_rest_is_these_weights_exactly():
    module = network()
    ema = EMA(module, 0.999)
    before = copy.deepcopy(module.state_dict())
    for _ in range(5000):
        ema.update(module)
    for name, value in before.items():
        assert torch.equal(ema.module.state_dict()[name], value), name
