"""Learning rates: what each schedule gives, and that an optimizer gets it."""

import pytest
import torch

from common.lr_schedule import LR_SCHEDULES, lr_at, set_lr


@pytest.mark.parametrize(("schedule", "expected"), [
    ("constant", [8] * 8),
    ("linear", [8, 7, 6, 5, 4, 3, 2, 1]),
    ("linear-half", [8, 8, 8, 8, 8, 6, 4, 2]),
    ("cosine", [8, 7.6955, 6.8284, 5.5307, 4, 2.4693, 1.1716, 0.3045]),
])
def test_rates_of_a_run_of_eight_steps(schedule, expected):
    assert [lr_at(8.0, schedule, step, 8) for step in range(8)] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("schedule", LR_SCHEDULES)
def test_a_warm_up_comes_before_the_schedule(schedule):
    warm = [lr_at(3.0, schedule, step, 11, warmup=3) for step in range(11)]
    assert warm == pytest.approx([1, 2, 3, *(lr_at(3.0, schedule, step, 8) for step in range(8))])


@pytest.mark.parametrize("schedule", LR_SCHEDULES)
def test_rates_stay_where_a_run_is_shorter_than_its_warm_up_or_over(schedule):
    assert lr_at(1.0, schedule, 4, 3, warmup=10) == 0.5
    assert 0 <= lr_at(1.0, schedule, 12, 8) == lr_at(1.0, schedule, 8, 8) <= 1


def test_a_rate_is_set_for_all_parameters():
    one, two = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [one]}, {"params": [two], "lr": 5.0}], lr=1.0)
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
