"""Random numbers: noise per image, and the draws of a training step."""

import pytest
import torch

from common.randomness import generator_for, mix_seeds, seed_step, seeded_normal


def test_noise_does_not_depend_on_batching():
    seeds = [(0, i) for i in range(7)]
    together = seeded_normal(seeds, (3, 8, 8))
    assert (together.shape, together.dtype) == ((7, 3, 8, 8), torch.float32)
    apart = torch.cat([seeded_normal(seeds[i:i + 3], (3, 8, 8)) for i in range(0, 7, 3)])
    assert torch.equal(together, apart)
    assert torch.equal(seeded_normal([(0, 4)], (3, 8, 8))[0], together[4])


@pytest.mark.parametrize("shape", [(), (1,), (5,), (15,), (16,), (17,), (100,), (3, 28, 28)])
def test_noise_is_that_of_a_generator_per_image(shape):
    seeds = [(3, i, 7) for i in range(5)]
    expected = torch.stack([torch.randn(shape, generator=generator_for(*seed)) for seed in seeds])
    assert torch.equal(seeded_normal(seeds, shape), expected)


def test_noise_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    seeded_normal([(0, 0)], (4,))
    assert torch.equal(torch.rand(1), expected)


def test_neighbouring_seeds_are_unrelated():
    seeds = [(i, j) for i in range(8) for j in range(8)] + [(i,) for i in range(8)] + [(0, 0, 0), (0, 1, 0)]
    noise = seeded_normal(seeds, (2000,))
    correlation = torch.corrcoef(noise).fill_diagonal_(0)
    assert correlation.abs().max() < 0.12  # 5.4 standard deviations of 1 / sqrt(2000)
    assert noise.mean().abs() < 0.02
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert not torch.equal(*seeded_normal([(0, 1), (1, 0)], (10,)))


def test_seeds_do_not_collide():
    states = {generator_for(i, j).initial_seed() for i in range(100) for j in range(100)}
    assert len(states) == 10_000


def test_the_draws_of_a_step_depend_on_seed_step_and_rank_alone(monkeypatch):
    def draw(seed, step, rank):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        torch.rand(7)  # whatever was drawn before
        seed_step(seed, step)
        return torch.rand(3).tolist()

    keys = [(seed, step, rank) for seed in (0, 1) for step in (0, 1) for rank in (0, 1)]
    draws = [draw(*key) for key in keys]
    assert len(set(map(tuple, draws))) == len(keys)
    assert [draw(*key) for key in reversed(keys)] == draws[::-1]


def test_seeds_are_64_bit():
    assert all(0 <= mix_seeds(seed, 2**40) < 2**64 for seed in range(100))
    seed_step(2**32 - 1, 10**9)
