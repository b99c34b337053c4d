"""The order of the training images: whole permutations, by seed and epoch, put back by two integers."""

import pytest
import torch

from common.batches import Batches


def draw(batches, count):
    return [batches.next().tolist() for _ in range(count)]


def test_an_epoch_is_a_permutation():
    batches = Batches(12, 4, seed=0)
    first, second = (torch.cat([batches.next() for _ in range(3)]) for _ in range(2))
    assert first.dtype == torch.int64
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12))
    assert first.tolist() != second.tolist()
    assert first.tolist() != list(range(12))


def test_an_incomplete_last_batch_is_left_out():
    batches = Batches(10, 4, seed=0)
    drawn = draw(batches, 4)
    assert {len(batch) for batch in drawn} == {4}
    assert len(set(drawn[0] + drawn[1])) == len(set(drawn[2] + drawn[3])) == 8
    assert batches.state_dict() == {"epoch": 1, "position": 8}
    # Whoever is left out changes from epoch to epoch: nobody is out for good.
    assert {index for batch in draw(batches, 40) for index in batch} == set(range(10))


def test_every_order_comes_up_about_equally_often():
    counts = {}
    batches = Batches(3, 3, seed=0)
    for batch in draw(batches, 1200):
        counts[tuple(batch)] = counts.get(tuple(batch), 0) + 1
    assert len(counts) == 6
    assert all(140 < count < 260 for count in counts.values())  # 200 +- 4.6 standard deviations


def test_seeds_and_epochs_are_unrelated_and_repeatable():
    orders = [tuple(batch) for seed in range(4) for batch in draw(Batches(50, 50, seed), 4)]
    assert len(set(orders)) == 16
    assert [tuple(batch) for seed in range(4) for batch in draw(Batches(50, 50, seed), 4)] == orders


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    draw(Batches(10, 5, seed=0), 6)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("done", [0, 1, 2, 3, 7])
def test_resume_at_any_place_goes_on_as_if_unbroken(done):
    unbroken = Batches(11, 4, seed=3)
    draw(unbroken, done)
    resumed = Batches(11, 4, seed=3)
    draw(resumed, 5)
    resumed.load_state_dict(unbroken.state_dict())
    assert draw(resumed, 6) == draw(unbroken, 6)


def test_a_batch_may_be_the_whole_set_and_no_more():
    assert len(Batches(5, 5, 0).next()) == 5
    for wrong in (0, 6):
        with pytest.raises(ValueError, match=rf"got {wrong}, expected 1\.\.5"):
            Batches(5, wrong, 0)
