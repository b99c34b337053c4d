"""Training: one step by hand, determinism, exact resume, per-model recipes, mistakes."""

import copy
import json

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from common.checkpoint import load_weights
from common.device import seed_everything
from common.ema import EMA
from common.errors import UserError
from common.runlog import read_metrics
from gan.augment import augment, random_flip
from gan.inference import main as draw
from gan.losses import Anchors
from gan.models import KINDS, build_discriminator, build_generator
from gan.train import diagnose, health, learning_rate, main, parse_args, settle, train_step, watched


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


@pytest.mark.parametrize("flags", ["--augment", "--no-augment", "--r1 5 --lecam 0.3"])
@pytest.mark.parametrize("model", KINDS)
def test_two_steps_replayed_by_hand(model, flags):
    args = parse_args(["--model", model, "--width", "8", *flags.split()])
    seed_everything(0)
    generator = build_generator({"model": model, "width": 8})
    discriminator = build_discriminator({"model": model, "width": 8})
    G, D, average = (copy.deepcopy(m) for m in (generator, discriminator, generator))
    g_ema = EMA(generator, args.ema_decay)
    # Plain descent shows the gradients themselves: Adam would blow up the rounding of those that are zero,
    # such as a bias before BatchNorm.
    g_sgd, d_sgd, *optimisers = (torch.optim.SGD(net.parameters(), lr=0.01)
                                 for net in (G, D, generator, discriminator))
    view = augment if args.augment else (lambda x: x)
    bce = F.binary_cross_entropy_with_logits
    anchors, by_hand_anchors = Anchors() if args.lecam else None, torch.zeros(2)

    layers = {"gamma_g1": G.attn1, "gamma_g2": G.attn2, "gamma_d1": D.attn1, "gamma_d2": D.attn2} \
        if model == "sagan" else {}
    reported, gammas = [], []
    for n in range(2):
        real = torch.rand(4, 3, 64, 64) * 2 - 1
        seed_everything(n)
        done = 16 * n + n  # R1 is due at the first of the two
        metrics = train_step(generator, discriminator, g_ema, *optimisers, anchors, real, done, args, torch.float32)

        seed_everything(n)
        fake = G(torch.randn(4, 100 if model == "dcgan" else 128))
        real_logits = D(view(random_flip(real)))
        fake_logits = D(view(fake.detach()))
        if model == "dcgan":
            d_loss = bce(real_logits, torch.ones(4)) + bce(fake_logits, torch.zeros(4))
        else:
            d_loss = (1 - real_logits).clamp(min=0).mean() + (1 + fake_logits).clamp(min=0).mean()
        penalties = torch.zeros(())
        if args.lecam:
            real_mean, fake_mean = by_hand_anchors
            lecam = ((real_logits - fake_mean) ** 2).mean() + ((fake_logits - real_mean) ** 2).mean()
            assert metrics["lecam"].item() == pytest.approx(lecam.item(), rel=1e-5)
            penalties = penalties + 0.3 * lecam
            by_hand_anchors = 0.99 * by_hand_anchors + 0.01 * torch.stack([real_logits, fake_logits]).detach().mean(1)
            assert [anchors.real.item(), anchors.fake.item()] == pytest.approx(by_hand_anchors.tolist(), rel=1e-4)
        assert ("r1" in metrics) == (bool(args.r1) and n == 0)
        if "r1" in metrics:
            x = real.clone().requires_grad_()
            with sdpa_kernel(SDPBackend.MATH):
                (gradient,) = torch.autograd.grad(D(view(random_flip(x))).sum(), x, create_graph=True)
            r1 = gradient.square().sum() / (2 * 4)
            assert metrics["r1"].item() == pytest.approx(r1.item(), rel=1e-4)
            penalties = penalties + 16 * 5 * r1
        D.zero_grad()
        (d_loss + penalties).backward()
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

        assert metrics["d_loss"].item() == pytest.approx(d_loss.item(), rel=1e-5)
        assert metrics["g_loss"].item() == pytest.approx(g_loss.item(), rel=1e-5)
        assert metrics["d_real"].item() == pytest.approx(torch.sigmoid(real_logits).mean().item(), rel=1e-5)
        assert metrics["d_fake"].item() == pytest.approx(torch.sigmoid(fake_logits).mean().item(), rel=1e-5)
        for ours, by_hand in ((generator, G), (discriminator, D)):
            torch.testing.assert_close(ours.state_dict(), by_hand.state_dict(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(list(g_ema.module.parameters()), list(average.parameters()), rtol=1e-4, atol=1e-6)
        reported.append({name: value for name, value in metrics.items() if name.startswith("gamma")})
        gammas.append({name: layer.gamma.detach()[0].clone() for name, layer in layers.items()})
    # Compared only now: a metric must not go on moving with the weight that it was read from.
    torch.testing.assert_close(reported, gammas, rtol=1e-4, atol=1e-7)


def test_the_average_has_running_statistics_of_its_own():
    # Weights that jump from step to step have an average whose activations are like none of theirs.
    torch.manual_seed(0)
    generator = build_generator({"model": "dcgan", "width": 8})
    average = EMA(generator, 0.5)
    for _ in range(20):
        torch.nn.init.normal_(generator.main[0].weight, std=0.1)
        generator(torch.randn(64, 100))
        average.update(generator)
    z = torch.randn(512, 100)
    settle(average.module, generator, z, torch.float32)
    with torch.no_grad():
        batches = [average.module.main[0](part[:, :, None, None]) for part in z.split(64)]
    norm = average.module.main[1]
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))
    assert not average.module.training
    assert (norm.running_var < 0.7 * generator.main[1].running_var).all()  # not those of the network in training

    before = copy.deepcopy(average.module.state_dict())
    settle(average.module, generator, z, torch.float32)
    assert same(average.module.state_dict(), before)  # however often


@pytest.mark.parametrize("model", KINDS)
def test_what_is_saved_draws_alike_in_training_and_in_evaluation_mode(model, run_gan, tmp_path):
    # At one step of many, so that what a run saves is what it has settled, not what a preview left behind.
    run = run_gan(tmp_path / "run", model, 20, "--log-every", "20", "--sample-every", "20", "--save-every", "20",
                  "--g-lr", "1e-2")
    generator = build_generator({"model": model, "width": 8})
    generator.load_state_dict(checkpoint(run)["weights"])
    z = torch.randn(256, generator.z_dim)
    with torch.no_grad():
        evaluation, training = generator.eval()(z), generator.train()(z)
    assert (evaluation.mean((0, 2, 3)) - training.mean((0, 2, 3))).abs().max() < 0.05
    assert evaluation.std() == pytest.approx(training.std().item(), rel=0.1)


def test_run_folder(trained):
    model, run = trained
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {"d_loss", "g_loss", "d_real", "d_fake", "d_gap", "near_duplicates"} <= rows[0].keys()
    assert ("gamma_g1" in rows[0]) == (model == "sagan")
    assert {"args.json", "versions.json", "curves.png", "done", "samples/0000004.png"} <= {
        str(path.relative_to(run)) for path in run.rglob("*")}
    content = checkpoint(run)
    assert content["kind"] == f"gan/{model}" and content["model_args"] == {"model": model, "width": 8}
    assert same(content["weights"], content["parts"]["g_ema"]["module"])
    assert not same(content["weights"], content["parts"]["generator"])
    g_adam, d_adam = (content["parts"][name]["param_groups"][0] for name in ("g_optimiser", "d_optimiser"))
    g_lr, d_lr, betas = {"dcgan": (2e-4, 2e-4, (0.5, 0.999)), "sagan": (4e-4, 4e-4, (0.0, 0.9))}[model]
    # Of the last of four steps, so halfway down.
    assert (g_adam["lr"], d_adam["lr"], g_adam["betas"], d_adam["betas"]) == (g_lr / 2, d_lr / 2, betas, betas)


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


def test_penalties_resume_exactly(run_gan, tmp_path):
    flags = ["--r1", "10", "--lecam", "0.3", "--spectral-norm"]
    whole, broken = run_gan(tmp_path / "whole", "dcgan", 4, *flags), run_gan(tmp_path / "broken", "dcgan", 2, *flags)
    torch.manual_seed(99)
    run_gan(broken, "dcgan", 4, *flags, "--resume", "auto")
    for key in ("parts", "weights", "rng", "log"):
        assert same(checkpoint(whole)[key], checkpoint(broken)[key])
    assert (whole / "metrics.jsonl").read_bytes() == (broken / "metrics.jsonl").read_bytes()
    assert ["r1" in row for row in read_metrics(whole)] == [True, False, False, False]
    with pytest.raises(UserError, match=r"trained with r1=10\.0, got r1=5\.0"):
        run_gan(broken, "dcgan", 6, *flags, "--r1", "5", "--resume", "auto")


def test_without_attention_inference_knows(run_gan, tmp_path):
    run = run_gan(tmp_path / "run", "sagan", 1, "--no-attention")
    model_args, weights = load_weights(run / "last.pt", "gan/sagan")
    assert model_args == {"model": "sagan", "width": 8, "attention": False}
    assert not [name for name in weights if "attn" in name]
    assert not [name for name in read_metrics(run)[0] if "gamma" in name]
    assert draw([str(tmp_path / "out"), "--model", "sagan", "--weights", str(run / "last.pt"), "--n", "2"]) == 0


def test_spectral_norm_is_in_d_alone_and_no_matter_of_inference(run_gan, tmp_path):
    content = checkpoint(run_gan(tmp_path / "run", "dcgan", 1, "--spectral-norm"))
    assert content["model_args"] == {"model": "dcgan", "width": 8}
    assert "main.2.parametrizations.weight.original" in content["parts"]["discriminator"]
    assert not [name for name in content["weights"] if "parametrizations" in name]


def test_looking_changes_nothing(trained, run_gan, tmp_path):
    model, run = trained  # every step is logged
    once = run_gan(tmp_path / "once", model, 4, "--log-every", "4")
    for key in ("parts", "weights", "rng"):
        assert same(checkpoint(run)[key], checkpoint(once)[key])
    assert read_metrics(run)[-1]["d_gap"] == read_metrics(once)[-1]["d_gap"]


@pytest.mark.parametrize("model", KINDS)
def test_health_is_of_d_as_it_trains(model, smooth):
    torch.manual_seed(0)
    discriminator = build_discriminator({"model": model, "width": 8})
    before, rng = copy.deepcopy(discriminator.state_dict()), torch.get_rng_state()
    seen, unseen = smooth[:6], smooth[6:10]
    drawn = smooth[10:14].clone()
    drawn[1] = drawn[0]
    found = health(discriminator, drawn, seen, unseen, torch.device("cpu"), torch.float32)
    assert same(discriminator.state_dict(), before) and torch.equal(torch.get_rng_state(), rng)
    probability = [discriminator(x.float() / 127.5 - 1).sigmoid().mean().item() for x in (seen, unseen)]
    assert found["d_gap"].item() == pytest.approx(probability[0] - probability[1], abs=1e-6)
    assert found["near_duplicates"].item() == 0.5


def test_watched_faces_are_from_all_over_the_set():
    assert watched(torch.arange(101), 5).tolist() == [0, 25, 50, 75, 100]
    assert watched(torch.arange(3), 3).tolist() == [0, 1, 2]


WELL = {"step": 2000, "d_loss": 0.9, "d_real": 0.7, "d_fake": 0.3, "d_gap": 0.05, "near_duplicates": 0.1}


@pytest.mark.parametrize("change, said", [
    ({}, None),
    ({"near_duplicates": 0.9}, "G has collapsed"),
    ({"near_duplicates": 1.0, "step": 50}, None),  # every G begins so
    ({"d_loss": 0.01}, "D tells nearly all faces"),
    ({"d_fake": 0.69}, "D cannot tell"),
    ({"d_gap": 0.5}, "by heart"),
])
def test_diagnosis(change, said):
    found = diagnose(WELL | change)
    assert said in found if said else found is None


@pytest.mark.parametrize("model", KINDS)
def test_bf16_trains_and_keeps_r1_in_float32(model, run_gan, tmp_path):
    exact, run = (run_gan(tmp_path / precision, model, 1, "--r1", "10", "--precision", precision)
                  for precision in ("fp32", "bf16"))
    assert all(value.isfinite().all() for value in checkpoint(run)["weights"].values())
    (exact,), (row,) = read_metrics(exact), read_metrics(run)
    assert row["r1"] == pytest.approx(exact["r1"], rel=1e-4) and row["d_loss"] != exact["d_loss"]


def test_recipes_and_overrides():
    def recipe(args):
        return args.loss, args.g_lr, args.d_lr, str(args.out)

    dcgan, sagan = parse_args(["--model", "dcgan"]), parse_args(["--model", "sagan"])
    assert recipe(dcgan) == ("non-saturating", 2e-4, 2e-4, "runs/gan-dcgan")
    assert recipe(sagan) == ("hinge", 4e-4, 4e-4, "runs/gan-sagan")
    assert sagan.batch_size == 64 and sagan.ema_decay == 0.999 and sagan.augment
    mixed = parse_args(["--model", "dcgan", "--loss", "hinge", "--d-lr", "1e-3", "--no-augment"])
    assert (mixed.loss, mixed.g_lr, mixed.d_lr, mixed.augment) == ("hinge", 2e-4, 1e-3, False)


def test_rates_fall_to_0_over_the_second_half(run_gan, tmp_path):
    assert [learning_rate(8.0, step / 8) for step in range(8)] == [8, 8, 8, 8, 8, 6, 4, 2]
    constant = checkpoint(run_gan(tmp_path / "run", "dcgan", 4, "--no-lr-decay", "--d-lr", "1e-3"))["parts"]
    assert [constant[name]["param_groups"][0]["lr"] for name in ("g_optimiser", "d_optimiser")] == [2e-4, 1e-3]


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
