"""What several processes share, as each of them sees it; they meet in tests/test_processes.py."""

import pytest
import torch

from common import distributed
from common.errors import UserError


@pytest.fixture
def process(monkeypatch):
    def be(rank, size):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(size))

    return be


def test_shares_are_the_batch_in_order(process):
    batch = torch.arange(12).view(6, 2)
    assert distributed.shard(batch) is not batch and torch.equal(distributed.shard(batch), batch)
    shares = []
    for rank in range(3):
        process(rank, 3)
        shares.append(distributed.shard(batch))
    assert [len(share) for share in shares] == [2, 2, 2] and torch.equal(torch.cat(shares), batch)


def test_a_rank_without_a_world_is_the_first(monkeypatch):
    monkeypatch.setenv("RANK", "1")  # left by an earlier job
    assert distributed.rank() == 0


def test_a_world_that_nobody_started_is_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="cannot join the other processes .* unset WORLD_SIZE"):
        distributed.init_process_group(torch.device("cpu"))
