"""What several processes share, as each of them sees it; they meet in tests/test_processes.py."""

import pytest
import torch
from torch import nn

from common import distributed
from common.errors import UserError
from dann import teacher
from dann.networks import DANN


@pytest.fixture
def process(monkeypatch):
    def be(rank, size):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(size))

    return be


def test_shares_are_the_batch_in_order(process):
    batch = torch.arange(12).view(6, 2)
    assert distributed.share(batch) is not batch and torch.equal(distributed.share(batch), batch)
    shares = []
    for rank in range(3):
        process(rank, 3)
        shares.append(distributed.share(batch))
    assert [len(share) for share in shares] == [2, 2, 2] and torch.equal(torch.cat(shares), batch)


def test_own_draws_differ_between_processes_and_leave_one_random_state(process):
    inside, after = [], []
    for rank in range(2):
        process(rank, 2)
        torch.manual_seed(0)
        with distributed.own_draws():
            inside.append(torch.rand(3).tolist())
        after.append(torch.rand(3).tolist())
    assert inside[0] != inside[1] and after[0] == after[1] not in inside


def test_own_draws_of_one_process_are_the_plain_ones():
    torch.manual_seed(0)
    with distributed.own_draws():
        drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))


def test_synchronous_batch_norm_needs_a_gpu():
    with pytest.raises(UserError, match="--sync-bn works on GPUs only: leave it out"):
        distributed.sync_batch_norm(DANN(), torch.device("cpu"))


def test_synchronous_batch_norm_keeps_names_and_the_teacher_knows_it():
    plain = DANN()
    model = distributed.sync_batch_norm(DANN(), torch.device("meta"))
    assert model.state_dict().keys() == plain.state_dict().keys()
    layers = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert len(layers) == sum(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in plain.modules()) == 5
    model.eval().features, model.classifier = (lambda images: torch.zeros(len(images), 10)), nn.Identity()
    teacher.pseudo_labels(model, torch.zeros(2, 3, 28, 28), balance=True)
    assert all(layer.training for layer in layers if layer in set(model.modules()))
