"""Training: one step by hand, determinism, exact resume, per-model recipes, mistakes."""

import copy
import json

import pytest
import torch
from torch.nn import functional as F

from common.device import seed_everything
from common.ema import EMA
from common.errors import UserError
from gan.augment import augment, random_flip
from gan.models import KINDS, build_discriminator, build_generator
from gan.train import main, parse_args, train_step


def checkpoint(run):
    return torch.load(run / "last.pt", weights_only=True)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("augmented", [True, False])
@pytest.mark.parametrize("model", KINDS)
def test_two_steps_replayed_by_hand(model, augmented):
    args = parse_args(["--model", model, "--width", "8", "--augment" if augmented else "--no-augment"])
    seed_everything(0)
    generator = build_generator({"model": model, "width": 8})
    discriminator = build_discriminator({"model": model, "width": 8})
    G, D, average = (copy.deepcopy(m) for m in (generator, discriminator, generator))
    g_ema = EMA(generator, args.ema_decay)
    # Plain descent shows the gradients themselves: Adam would blow up the rounding of those that are zero,
    # such as a bias before BatchNorm.
    g_sgd, d_sgd, *optimisers = (torch.optim.SGD(net.parameters(), lr=0.01)
                                 for net in (G, D, generator, discriminator))
    view = augment if augmented else (lambda x: x)
    bce = F.binary_cross_entropy_with_logits

    layers = {"gamma_g1": G.attn1, "gamma_g2": G.attn2, "gamma_d1": D.attn1, "gamma_d2": D.attn2} \
        if model == "sagan" else {}
    reported, gammas = [], []
    for n in range(2):
        real = torch.rand(4, 3, 64, 64) * 2 - 1
        seed_everything(n)
        metrics = train_step(generator, discriminator, g_ema, *optimisers, real, args, torch.float32)

        seed_everything(n)
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
        decay = min(0.999, (1 + n) / (10 + n))
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), G.parameters(), strict=True):
                mine.mul_(decay).add_((1 - decay) * theirs)
            for mine, theirs in zip(average.buffers(), G.buffers(), strict=True):
                mine.copy_(theirs)

        assert metrics["d_loss"].item() == pytest.approx(d_loss.item(), rel=1e-5)
        assert metrics["g_loss"].item() == pytest.approx(g_loss.item(), rel=1e-5)
        assert metrics["d_real"].item() == pytest.approx(torch.sigmoid(real_logits).mean().item(), rel=1e-5)
        assert metrics["d_fake"].item() == pytest.approx(torch.sigmoid(fake_logits).mean().item(), rel=1e-5)
        for ours, by_hand in ((generator, G), (discriminator, D), (g_ema.module, average)):
            torch.testing.assert_close(ours.state_dict(), by_hand.state_dict(), rtol=1e-4, atol=1e-6)
        reported.append({name: value for name, value in metrics.items() if name.startswith("gamma")})
        gammas.append({name: layer.gamma.detach()[0].clone() for name, layer in layers.items()})
    # Compared only now: a metric must not go on moving with the weight that it was read from.
    torch.testing.assert_close(reported, gammas, rtol=1e-4, atol=1e-7)


def test_run_folder(trained):
    model, run = trained
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {"d_loss", "g_loss", "d_real", "d_fake"} <= rows[0].keys()
    assert ("gamma_g1" in rows[0]) == (model == "sagan")
    assert {"args.json", "versions.json", "curves.png", "done", "samples/0000004.png"} <= {
        str(path.relative_to(run)) for path in run.rglob("*")}
    content = checkpoint(run)
    assert content["kind"] == f"gan/{model}" and content["model_args"] == {"model": model, "width": 8}
    assert same(content["weights"], content["parts"]["g_ema"]["module"])
    assert not same(content["weights"], content["parts"]["generator"])
    g_adam, d_adam = (content["parts"][name]["param_groups"][0] for name in ("g_optimiser", "d_optimiser"))
    g_lr, d_lr, betas = {"dcgan": (2e-4, 2e-4, (0.5, 0.999)), "sagan": (1e-4, 4e-4, (0.0, 0.9))}[model]
    assert (g_adam["lr"], d_adam["lr"], g_adam["betas"], d_adam["betas"]) == (g_lr, d_lr, betas, betas)


def test_one_seed_one_result(trained, run_gan, tmp_path):
    model, run = trained
    again, other = run_gan(tmp_path / "again", model, 4), run_gan(tmp_path / "other", model, 4, "--seed", "1")
    for key in ("parts", "weights", "rng", "log"):
        assert same(checkpoint(run)[key], checkpoint(again)[key])
    assert (run / "metrics.jsonl").read_bytes() == (again / "metrics.jsonl").read_bytes()
    assert (run / "samples/0000004.png").read_bytes() == (again / "samples/0000004.png").read_bytes()
    assert not same(checkpoint(run)["weights"], checkpoint(other)["weights"])


def test_stopped_and_resumed_equals_unbroken(trained, run_gan, tmp_path):
    model, run = trained
    broken = run_gan(tmp_path / "broken", model, 2)
    torch.manual_seed(99)  # a new process knows nothing of the old one's generator
    run_gan(broken, model, 4, "--resume", "auto")
    for key in ("parts", "weights", "rng", "log"):
        assert same(checkpoint(run)[key], checkpoint(broken)[key])
    assert (run / "metrics.jsonl").read_bytes() == (broken / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("model", KINDS)
def test_bf16_trains(model, run_gan, tmp_path):
    run = run_gan(tmp_path / "run", model, 1, "--precision", "bf16")
    assert all(value.isfinite().all() for value in checkpoint(run)["weights"].values())


def test_recipes_and_overrides():
    def recipe(args):
        return args.loss, args.g_lr, args.d_lr, str(args.out)

    dcgan, sagan = parse_args(["--model", "dcgan"]), parse_args(["--model", "sagan"])
    assert recipe(dcgan) == ("non-saturating", 2e-4, 2e-4, "runs/gan-dcgan")
    assert recipe(sagan) == ("hinge", 1e-4, 4e-4, "runs/gan-sagan")
    assert sagan.batch_size == 64 and sagan.ema_decay == 0.999 and sagan.augment
    mixed = parse_args(["--model", "dcgan", "--loss", "hinge", "--d-lr", "1e-3", "--no-augment"])
    assert (mixed.loss, mixed.g_lr, mixed.d_lr, mixed.augment) == ("hinge", 2e-4, 1e-3, False)


def test_mistakes_are_one_line(trained, run_gan, faces, tmp_path):
    with pytest.raises(UserError, match="--width: got 12, expected a multiple of 8"):
        parse_args(["--model", "sagan", "--width", "12"])
    assert parse_args(["--model", "dcgan", "--width", "12"]).width == 12
    with pytest.raises(UserError, match="--model"):
        parse_args([])
    with pytest.raises(UserError, match="no data folder"):
        main(["--model", "dcgan", "--data", str(tmp_path / "none")])
    with pytest.raises(UserError, match="larger than the training set"):
        run_gan(tmp_path / "large", "dcgan", 1, "--batch-size", "11")
    model, run = trained
    with pytest.raises(UserError, match="--resume auto"):
        run_gan(run, model, 6)
    other = "dcgan" if model == "sagan" else "sagan"
    with pytest.raises(UserError, match=f"got a checkpoint of gan/{model}, expected gan/{other}"):
        run_gan(tmp_path / "foreign", other, 6, "--resume", str(run / "last.pt"))


def test_dry_run_writes_nothing(run_gan, tmp_path, capsys):
    run_gan(tmp_path / "dry", "sagan", 1, "--dry-run")
    assert not (tmp_path / "dry").exists() and "loss=hinge" in capsys.readouterr().out
