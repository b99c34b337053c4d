"""Training: steps replayed by hand, determinism, exact resume, the defaults of each model, mistakes."""

import copy
import json
import os
import signal

import pytest
import torch
from torch.nn import functional as F

from common.checkpoint import load_weights
from common.errors import UserError
from common.metrics_log import read_metrics
from common.run import Run
from gan.augment import augment, random_flip
from gan.inference import main as inference
from gan.models import MODELS, build_discriminator, build_generator
from gan.train import parse_args, train_step
from tests.trainers import content, same


@pytest.mark.parametrize("augmented", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_two_steps_replayed_by_hand(model, augmented):
    torch.manual_seed(0)
    generator = build_generator({"model": model, "width": 8})
    discriminator = build_discriminator({"model": model, "width": 8})
    G, D = (copy.deepcopy(m) for m in (generator, discriminator))
    # Plain descent shows the gradients themselves. Adam would blow up the rounding of gradients that are zero, such as
    # that of a bias before batch normalisation.
    g_sgd, d_sgd, *optimizers = (torch.optim.SGD(net.parameters(), lr=0.01)
                                 for net in (G, D, generator, discriminator))
    view = augment if augmented else (lambda x: x)
    bce = F.binary_cross_entropy_with_logits

    layers = {"gamma_g1": G.attn1, "gamma_g2": G.attn2, "gamma_d1": D.attn1, "gamma_d2": D.attn2} \
        if model == "sagan" else {}
    reported, gammas = [], []
    for n in range(2):
        real = torch.rand(4, 3, 64, 64) * 2 - 1
        torch.manual_seed(n)
        metrics = train_step(generator, discriminator, *optimizers, real, loss=MODELS[model].loss, augmented=augmented,
                             dtype=torch.float32)

        torch.manual_seed(n)
        fake = G(torch.randn(4, 100 if model == "dcgan" else 128))
        real_logits = D(view(random_flip(real)))
        fake_logits = D(view(fake.detach()))
        if model == "dcgan":
            d_loss = bce(real_logits, torch.ones(4)) + bce(fake_logits, torch.zeros(4))
        else:
            d_loss = (1 - real_logits).clamp(min=0).mean() + (1 + fake_logits).clamp(min=0).mean()
        D.zero_grad()
        d_loss.backward()
        d_sgd.step()
        logits = D(view(fake))
        g_loss = bce(logits, torch.ones(4)) if model == "dcgan" else -logits.mean()
        G.zero_grad()
        g_loss.backward()
        g_sgd.step()

        assert metrics["d_loss"].item() == pytest.approx(d_loss.item(), rel=1e-5)
        assert metrics["g_loss"].item() == pytest.approx(g_loss.item(), rel=1e-5)
        assert metrics["d_real"].item() == pytest.approx(torch.sigmoid(real_logits).mean().item(), rel=1e-5)
        assert metrics["d_fake"].item() == pytest.approx(torch.sigmoid(fake_logits).mean().item(), rel=1e-5)
        for ours, by_hand in ((generator, G), (discriminator, D)):
            torch.testing.assert_close(ours.state_dict(), by_hand.state_dict(), rtol=1e-4, atol=1e-6)
        reported.append({name: value for name, value in metrics.items() if name.startswith("gamma")})
        gammas.append({name: layer.gamma.detach()[0].clone() for name, layer in layers.items()})
    # Compared only now: a metric must not change together with the weight that it was read from.
    torch.testing.assert_close(reported, gammas, rtol=1e-4, atol=1e-7)


def test_run_folder(trained):
    model, run = trained
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {"d_loss", "g_loss", "d_real", "d_fake", "d_auc", "near_duplicates"} <= rows[0].keys()
    assert ("gamma_g1" in rows[0]) == (model == "sagan")
    assert {"args.json", "versions.json", "done", "samples/0000004.png"} <= {
        str(path.relative_to(run)) for path in run.rglob("*")}
    saved = content(run)
    assert saved["kind"] == f"gan/{model}" and saved["model_args"] == {"model": model, "width": 8}
    assert same(saved["weights"], saved["parts"]["g_ema"]["module"])
    assert not same(saved["weights"], saved["parts"]["generator"])
    g_adam, d_adam = (saved["parts"][name]["param_groups"][0] for name in ("g_optimizer", "d_optimizer"))
    g_lr, d_lr, betas = {"dcgan": (2e-4, 2e-4, (0.5, 0.999)), "sagan": (4e-4, 4e-4, (0.0, 0.9))}[model]
    # The rates of the last of four steps are half of the first ones.
    assert (g_adam["lr"], d_adam["lr"], g_adam["betas"], d_adam["betas"]) == (g_lr / 2, d_lr / 2, betas, betas)


@pytest.mark.parametrize("model", MODELS)
def test_a_signal_before_the_first_log_saves_a_recalibrated_average(model, run_gan, tmp_path, monkeypatch):
    def stop(self, metrics):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Run, "record", stop)
    with pytest.raises(SystemExit):
        run_gan(tmp_path / "run", model, 9, "--log-every", "9")
    weights = content(tmp_path / "run")["weights"]
    means = [value for name, value in weights.items() if name.endswith("running_mean")]
    assert means and all(mean.abs().max() > 0 for mean in means)  # 0 is where a new network starts


@pytest.mark.parametrize("flags", ["--augment", "--seed 1"])
def test_augment_and_another_seed_change_the_training(flags, trained, run_gan, tmp_path):
    model, run = trained
    other = run_gan(tmp_path / "other", model, 4, *flags.split())
    assert not same(content(run)["weights"], content(other)["weights"])


@pytest.mark.slow
def test_stopped_and_resumed_equals_unbroken(trained, run_gan, tmp_path):
    model, run = trained
    broken = run_gan(tmp_path / "broken", model, 2)
    torch.manual_seed(99)  # a new process does not know the old one's random state
    run_gan(broken, model, 4, "--resume", "auto")
    for key in ("parts", "weights", "log"):
        assert same(content(run)[key], content(broken)[key])
    assert (run / "metrics.jsonl").read_bytes() == (broken / "metrics.jsonl").read_bytes()


def test_inference_knows_of_a_network_without_attention(run_gan, tmp_path):
    run = run_gan(tmp_path / "run", "sagan", 1, "--no-attention")
    model_args, weights = load_weights(run / "last.pt", "gan/sagan")
    assert model_args == {"model": "sagan", "width": 8, "attention": False}
    assert not [name for name in weights if "attn" in name]
    assert not [name for name in read_metrics(run)[0] if "gamma" in name]
    assert inference([str(tmp_path / "out"), "--model", "sagan", "--weights", str(run / "last.pt"), "--n", "2"]) == 0


def test_defaults_of_each_model_and_overrides():
    def recipe(args):
        return args.loss, args.g_lr, args.d_lr, str(args.out)

    dcgan, sagan = (parse_args(["--model", model, "--data", "x"]) for model in ("dcgan", "sagan"))
    assert recipe(dcgan) == ("non-saturating", 2e-4, 2e-4, "runs/gan-dcgan")
    assert recipe(sagan) == ("hinge", 4e-4, 4e-4, "runs/gan-sagan")
    assert (sagan.batch_size, sagan.ema_decay, sagan.augment, sagan.lr_schedule) == (64, 0.998, False, "linear-half")
    mixed = parse_args(["--model", "dcgan", "--loss", "hinge", "--d-lr", "1e-3", "--augment", "--data", "x"])
    assert (mixed.loss, mixed.g_lr, mixed.d_lr, mixed.augment) == ("hinge", 2e-4, 1e-3, True)


def test_constant_rates(run_gan, tmp_path):
    run = run_gan(tmp_path / "run", "dcgan", 4, "--lr-schedule", "constant", "--d-lr", "1e-3")
    parts = content(run)["parts"]
    assert [parts[name]["param_groups"][0]["lr"] for name in ("g_optimizer", "d_optimizer")] == [2e-4, 1e-3]


def test_mistakes_are_one_line(trained, run_gan, tmp_path):
    assert parse_args(["--model", "dcgan", "--width", "12", "--data", "x"]).width == 12
    with pytest.raises(UserError, match="--model"):
        parse_args(["--data", "x"])
    model, run = trained
    other = "dcgan" if model == "sagan" else "sagan"
    with pytest.raises(UserError, match=f"got a checkpoint of gan/{model}, expected gan/{other}"):
        run_gan(tmp_path / "foreign", other, 6, "--resume", str(run / "last.pt"))
