"""Training: one step by hand, determinism, exact resume, the learning rate, and an overfitted batch."""

import copy
import json
import os
import signal

import pytest
import torch

from common.errors import UserError
from common.metrics_log import read_metrics
from common.run import Run
from diffusion import train
from diffusion.schedule import make_schedule
from diffusion.unet import ConditionalUNet
from tests.trainers import content, same

FLAGS = ["--width", "8", "--batch-size", "8", "--steps", "6", "--log-every", "2", "--sample-every", "6",
         "--save-every", "4", "--warmup", "2", "--device", "cpu"]


def run(digits_dir, out, *more):
    return train.main(["--data", str(digits_dir), "--out", str(out), *FLAGS, *more])


@pytest.fixture(scope="module")
def finished(digits_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    assert run(digits_dir, out) == 0
    return out


def test_run_folder_is_complete(finished):
    for name in ("args.json", "versions.json", "metrics.jsonl", "last.pt", "done", "samples/0000006.png"):
        assert (finished / name).exists(), name
    rows = read_metrics(finished)
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert {"loss", "loss_q0", "loss_q3", "grad_norm"} <= rows[0].keys()
    assert json.loads((finished / "done").read_text())["steps"] == 6


@pytest.mark.slow
def test_another_seed_gives_other_numbers(digits_dir, finished, tmp_path):
    run(digits_dir, tmp_path / "other", "--seed", "1")
    assert read_metrics(tmp_path / "other") != read_metrics(finished)


@pytest.mark.slow
def test_stopped_and_resumed_equals_unbroken(digits_dir, finished, tmp_path, monkeypatch):
    record = Run.record

    def record_then_stop(self, metrics):
        record(self, metrics)
        if self.step == 2:  # in the middle of a log interval
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Run, "record", record_then_stop)
    with pytest.raises(SystemExit) as stop:
        run(digits_dir, tmp_path / "run")
    assert stop.value.code == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert content(tmp_path / "run")["step"] == 3
    run(digits_dir, tmp_path / "run", "--resume", "auto")
    for part in ("parts", "weights", "log", "step"):
        assert same(content(tmp_path / "run")[part], content(finished)[part]), part
    assert read_metrics(tmp_path / "run") == read_metrics(finished)
    assert (tmp_path / "run/samples/0000006.png").read_bytes() == (finished / "samples/0000006.png").read_bytes()


def test_one_step_by_hand(monkeypatch):
    monkeypatch.setattr(train, "LABEL_DROPOUT", 0.5)
    torch.manual_seed(0)
    schedule = make_schedule("linear")
    model = ConditionalUNet(8)
    by_hand = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x_0, labels = torch.rand(6, 3, 28, 28) * 2 - 1, torch.arange(6)

    torch.manual_seed(1)
    metrics = train.train_step(model, optimizer, schedule, x_0, labels, prediction="noise", min_snr=False,
                               dtype=torch.float32)

    torch.manual_seed(1)
    t = torch.randint(0, 1000, (6,))
    noise = torch.randn(6, 3, 28, 28)
    keep = torch.rand(6) >= 0.5
    assert 0 < keep.sum() < 6
    alpha_bar = schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-3)
    loss = ((by_hand(x_t, t, labels, keep) - noise) ** 2).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
    optimizer.step()

    torch.testing.assert_close(metrics["loss"], loss)
    torch.testing.assert_close(dict(model.named_parameters()), dict(by_hand.named_parameters()))


@pytest.mark.slow
def test_the_loop_warms_the_learning_rate_up_and_lowers_it_to_zero(digits_dir, tmp_path, monkeypatch):
    rates, step = [], train.train_step

    def train_step(model, optimizer, *args, **values):
        rates.extend(group["lr"] for group in optimizer.param_groups)
        return step(model, optimizer, *args, **values)

    monkeypatch.setattr(train, "train_step", train_step)
    run(digits_dir, tmp_path / "cosine", "--width", "4", "--lr", "0.001")
    assert rates == pytest.approx([0.0005, 0.001, 0.001, 0.00085355, 0.0005, 0.00014645], rel=1e-4)
    rates.clear()
    run(digits_dir, tmp_path / "linear", "--width", "4", "--lr", "0.001", "--lr-schedule", "linear")
    assert rates == pytest.approx([0.0005, 0.001, 0.001, 0.00075, 0.0005, 0.00025])


def test_a_warm_up_as_long_as_the_run_is_noted(digits_dir, tmp_path, capsys):
    run(digits_dir, tmp_path / "run", "--width", "4", "--steps", "2")
    assert "note: --warmup 2 is as long as the run: the learning rate does not fall\n" in capsys.readouterr().out


@pytest.mark.slow
def test_overfits_one_batch():
    torch.manual_seed(0)
    schedule, model = make_schedule("cosine"), ConditionalUNet(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x_0, labels = (torch.rand(4, 3, 1, 1) * 2 - 1).expand(4, 3, 28, 28), torch.arange(4)
    losses = [train.train_step(model, optimizer, schedule, x_0, labels, prediction="velocity", min_snr=True,
                               dtype=torch.float32)["loss"].item() for _ in range(60)]
    assert sum(losses[-10:]) < 0.4 * sum(losses[:10])


@pytest.mark.slow
def test_starts_from_given_weights(digits_dir, finished, tmp_path):
    run(digits_dir, tmp_path / "run", "--init", str(finished / "last.pt"), "--lr", "1e-12", "--ema-decay", "0")
    given = content(finished)["weights"]
    for name, value in content(tmp_path / "run")["weights"].items():
        torch.testing.assert_close(value, given[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("more", "message"), [
    (["--init", "nowhere.pt"], "no checkpoint at nowhere.pt"),
    (["--width", "16"], "trained with --width 8, got --width 16: use the same"),
    (["--prediction", "noise"], "trained with --prediction velocity, got --prediction noise: use the same"),
    (["--schedule", "linear"], "trained with --schedule cosine, got --schedule linear: use the same"),
])
def test_weights_to_start_from_must_fit(digits_dir, finished, tmp_path, more, message):
    with pytest.raises(UserError, match=message) as mistake:
        run(digits_dir, tmp_path / "run", "--init", str(finished / "last.pt"), *more)
    assert "\n" not in str(mistake.value)
    assert not (tmp_path / "run").exists()
