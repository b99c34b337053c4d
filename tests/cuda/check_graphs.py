"""`common.device.Captured` on a GPU, with small functions: nothing runs twice, and a replay is what a call would be."""

import copy

import pytest
import torch
from torch import nn

from common.device import WARM_UP, Captured, capturable
from common.lr_schedule import set_lr
from common.randomness import seed_step

CALLS = 10


@pytest.fixture
def graphs(device):
    """Say how many graphs a captured function should have; on a CPU it has none."""
    return lambda captured, count: device.type == "cpu" or len(captured.graphs) == count


def test_every_call_runs_once(device):
    counter = torch.zeros((), device=device)

    def count(x):
        counter.add_(1)
        return counter + x

    captured, x = Captured(count, device), torch.zeros((), device=device)
    assert [captured(x).item() for _ in range(CALLS)] == list(range(1, CALLS + 1))
    assert counter.item() == CALLS


def test_random_numbers_follow_the_seed_and_are_those_of_an_eager_call(device, say):
    def draw(x):
        return {"normal": torch.randn_like(x), "uniform": torch.rand(100, device=device),
                "integers": torch.randint(0, 1000, (100,), device=device),
                "dropout": nn.functional.dropout(torch.ones_like(x), 0.5)}

    x, captured, found = torch.zeros(4, 1000, device=device), Captured(draw, device), []
    for step in range(CALLS):
        seed_step(1, step)
        expected = draw(x)
        seed_step(1, step)
        got = {name: value.clone() for name, value in captured(x).items()}
        for name, value in got.items():
            assert torch.equal(value, expected[name]), (
                f"call {step + 1}, {name}: differs by {(value - expected[name]).abs().max().item()} from an eager draw")
        found.append(got)
    for name in found[0]:
        distinct = {one[name].cpu().numpy().tobytes() for one in found}
        assert len(distinct) == CALLS, f"{name}: {len(distinct)} different draws in {CALLS} calls"
    say(f"draws: {CALLS} calls, all bit-equal to eager ones")


def test_draws_outside_a_graph_go_on_where_its_own_ended(device):
    def draw(x):
        return torch.randn_like(x)

    x, captured = torch.zeros(1000, device=device), Captured(draw, device)
    for step in range(CALLS):
        seed_step(2, step)
        expected = [draw(x) for _ in range(3)]
        seed_step(2, step)
        got = [captured(x).clone(), draw(x), captured(x).clone()]
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), f"round {step + 1}"


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_a_new_rate_is_used_by_the_next_replay(kind, device, say):
    rates = [0.1, 0.05, 0.2, 0.1, 0.0, 0.3, 0.01, 0.0, 0.1, 0.02]
    torch.manual_seed(0)
    model = nn.Linear(8, 8).to(device)
    batches = torch.randn(len(rates), 16, 8, device=device)
    weights = {}
    for name in ("eager", "captured"):
        network = copy.deepcopy(model)
        optimizer = capturable(kind(network.parameters(), lr=1.0, fused=True))

        def step(x, network=network, optimizer=optimizer):
            loss = (network(x) - x).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return loss.detach()

        call = Captured(step, device) if name == "captured" else step
        weights[name] = [network.weight.detach().clone()]
        for rate, x in zip(rates, batches, strict=True):
            set_lr(optimizer, rate)
            call(x)
            weights[name].append(network.weight.detach().clone())
    for i, rate in enumerate(rates):
        before, after = weights["captured"][i:i + 2]
        assert torch.equal(before, after) == (rate == 0), f"step {i + 1} with rate {rate}"
        difference = (after - weights["eager"][i + 1]).abs().max().item()
        assert difference <= 1e-5, f"step {i + 1} with rate {rate}: differs by {difference:.1e} from an eager step"
    say(f"{kind.__name__}: last difference {difference:.1e}")


def test_each_switch_has_its_graph(device, graphs):
    captured = Captured(lambda x, *, double: x * 2 if double else x + 1, device)
    for i in range(4 * WARM_UP):
        x = torch.full((5,), float(i), device=device)
        assert captured(x, double=i % 2 == 0).tolist() == [2.0 * i if i % 2 == 0 else i + 1.0] * 5, f"call {i + 1}"
    assert graphs(captured, 2)


def test_each_shape_and_type_has_its_graph(device, graphs):
    captured = Captured(lambda x: {"sum": x.sum(), "double": x * 2}, device)
    for i in range(6 * WARM_UP):
        size, dtype = (3, 5, 5)[i % 3], (torch.float32, torch.float32, torch.int64)[i % 3]
        result = captured(torch.full((size,), i, device=device, dtype=dtype))
        assert (result["sum"].item(), result["double"].tolist()) == (size * i, [2 * i] * size), f"call {i + 1}"
        assert result["double"].dtype == dtype
    assert graphs(captured, 3)


def test_inputs_that_change_in_place_or_are_views_are_read_anew(device):
    captured, order = Captured(lambda x: x * 1, device), torch.arange(100, device=device)
    for i in range(CALLS):
        assert captured(order[i:i + 4]).tolist() == [i, i + 1, i + 2, i + 3]
    x = torch.zeros(4, dtype=torch.int64, device=device)
    for i in range(3):
        x.fill_(i)
        assert captured(x).tolist() == [i] * 4


def test_later_calls_overwrite_what_a_replay_returned(device):
    if device.type == "cpu":
        pytest.skip("a CPU replays nothing")
    captured = Captured(lambda x: x + 1, device)
    results = [captured(torch.full((2,), float(i), device=device)) for i in range(CALLS)]
    assert [result[0].item() for result in results] == [1.0, 2.0, 3.0] + [float(CALLS)] * (CALLS - WARM_UP)


def test_gradients_of_an_eager_step_between_replays_are_not_mixed_up(device):
    """As the last part of recipe plus: its first steps are eager, after the other graph was replayed."""
    model = nn.Linear(4, 1).to(device)
    sums = []

    def step(x, *, factor):
        model.zero_grad(set_to_none=True)
        (factor * model(x)).sum().backward()
        return model.weight.grad.sum()

    captured = Captured(step, device)
    for i in range(30):
        x, factor = torch.full((2, 4), float(i + 1), device=device), 3 if i % 7 == 0 else 1
        sums.append((captured(x, factor=factor).item(), factor * 8.0 * (i + 1)))
    assert all(found == expected for found, expected in sums), sums
