"""Distillation: what the teacher shows, a step by hand, resume, and a checkpoint that says how it draws."""

import copy
import shutil

import pytest
import torch

from common import checkpoint
from common.batches import MicroBatches
from common.ema import EMA
from common.errors import UserError
from diffusion import distill, inference
from diffusion.generate import STANDARD, Network, Setting, load_network
from diffusion.samplers import ddim, guided_denoiser
from diffusion.schedule import make_schedule
from diffusion.unet import KIND, ConditionalUNet

MODEL_ARGS = {"width": 8, "prediction": "velocity", "schedule": "cosine"}
FLAGS = ["--batch-size", "8", "--steps", "4", "--log-every", "2", "--sample-every", "4", "--save-every", "2",
         "--device", "cpu"]


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return Network(ConditionalUNet(8).eval(), make_schedule("cosine"), MODEL_ARGS)


def save(path, network, **more):
    checkpoint.save(path, {"kind": KIND, "model_args": MODEL_ARGS | more, "weights": network.state_dict()})
    return path


@pytest.fixture(scope="module")
def released(teacher, tmp_path_factory):
    return save(tmp_path_factory.mktemp("teacher") / "teacher.pt", teacher.model)


def run(digits_dir, teacher, out, *more):
    return distill.main(["--data", str(digits_dir), "--teacher", str(teacher), "--out", str(out), *FLAGS, *more])


def weights(out):
    return torch.load(out / "last.pt", weights_only=True)


@pytest.mark.parametrize("first", [0, 2, 6])  # of four steps: the first, the second, and the one that ends the chain
def test_one_step_of_the_student_goes_where_two_of_a_distilled_teacher_go(teacher, first):
    teacher = teacher._replace(model_args=MODEL_ARGS | {"distilled": ["ddim", 8, 1.0]})
    labels = torch.tensor([3, 7])
    denoise = guided_denoiser(teacher.model, teacher.schedule, labels, 2.0, "velocity")
    states = list(ddim(denoise, teacher.schedule, lambda: torch.randn(2, 3, 28, 28), 8))
    here, _, there = states[first:first + 3]
    times = [torch.tensor([state.t] * 2) for state in states[first:first + 3]]
    x_0 = distill.teach(teacher, 2.0, here.x, times, labels)
    torch.testing.assert_close(ddim_step(teacher, here.x, x_0, times), there.x, rtol=1e-4, atol=1e-4)


def ddim_step(teacher, x_t, x_0, times):
    (signal, sigma), (end_signal, end_sigma) = map(teacher.schedule.scales, (times[0], times[-1]))
    return end_signal * x_0 + end_sigma / sigma * (x_t - signal * x_0)


class Gaussian(torch.nn.Module):
    """The velocity in x_t where images are normal with mean 0 and standard deviation 0.2."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x, t, labels):
        signal, sigma = self.schedule.scales(t)
        x_0 = signal * 0.04 / (signal**2 * 0.04 + sigma**2) * x
        return (signal * x - x_0) / sigma

    def deviation(self, t):
        signal, sigma = self.schedule.scales(t)
        return (signal**2 * 0.04 + sigma**2).sqrt()


def test_any_other_teacher_goes_by_a_method_of_second_order():
    schedule = make_schedule("cosine")
    exact = Gaussian(schedule)
    teacher, errors = Network(exact, schedule, MODEL_ARGS), []
    x_t, labels = torch.full((1, 3, 28, 28), 0.1), torch.zeros(1, dtype=torch.int64)
    for length in (40, 80):
        times = [torch.tensor([500 - i * length]) for i in range(3)]
        arrived = ddim_step(teacher, x_t, distill.teach(teacher, 1.0, x_t, times, labels), times)
        there = x_t * exact.deviation(times[2]) / exact.deviation(times[0])
        errors.append((arrived - there).abs().mean().item())
    assert 6 < errors[1] / errors[0] < 12  # of one step: third order; two DDIM steps have 4
    last = [torch.tensor([t]) for t in (120, 60, -1)]
    x_middle = ddim_step(teacher, x_t, distill.teach(teacher, 1.0, x_t, last[:2], labels), last[:2])
    torch.testing.assert_close(distill.teach(teacher, 1.0, x_t, last, labels),
                               distill.teach(teacher, 1.0, x_middle, last[1:], labels))


def test_a_single_step_shows_what_the_guided_teacher_sees(teacher):
    x_t, labels, t = torch.randn(3, 3, 28, 28), torch.tensor([1, 2, 3]), torch.tensor([0, 500, 999])
    seen = distill.teach(teacher, 3.0, x_t, [t, t - 1], labels)
    for i in range(3):
        one = slice(i, i + 1)
        denoise = guided_denoiser(teacher.model, teacher.schedule, labels[one], 3.0, "velocity")
        torch.testing.assert_close(seen[one], denoise(x_t[one], int(t[i])), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("chain", "times"), [([], list(range(1000))), (["--chain", "4"], [249, 499, 749, 999])])
def test_the_student_learns_at_every_time_of_its_chain(teacher, monkeypatch, chain, times):
    seen = []

    def teach(teacher, guidance, x_t, times, labels):
        seen.extend(times[0].tolist())
        return torch.zeros_like(x_t)

    class Student(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, t, labels):
            return self.scale * x

    monkeypatch.setattr(distill, "teach", teach)
    student, args = Student(), distill.parse_args(chain)
    optimiser = torch.optim.Adam(student.parameters())
    torch.manual_seed(0)
    distill.train_step(student, EMA(student, 0.9), optimiser, teacher, torch.zeros(10_000, 3, 1, 1),
                       torch.zeros(10_000, dtype=torch.int64), MicroBatches(), args, torch.float32)
    assert sorted(set(seen)) == times


def test_one_step_by_hand(teacher):
    args = distill.parse_args(["--chain", "4", "--guidance", "2", "--lr", "1e-3"])
    student = copy.deepcopy(teacher.model)
    torch.nn.init.normal_(student.outc.weight)
    by_hand, start = copy.deepcopy(student), copy.deepcopy(student.state_dict())
    optimiser, ema = torch.optim.Adam(student.parameters(), lr=1e-3), EMA(student, 0.99)
    x_0, labels = torch.rand(6, 3, 28, 28) * 2 - 1, torch.arange(6)
    torch.manual_seed(1)
    metrics = distill.train_step(student, ema, optimiser, teacher, x_0, labels, MicroBatches(), args, torch.float32)

    torch.manual_seed(1)
    position = torch.randint(0, 4, (6,))
    noise = torch.randn(6, 3, 28, 28)
    grid = torch.tensor([999, 874, 749, 624, 499, 374, 249, 124, -1])
    times = [grid[2 * position + i] for i in range(3)]
    alpha_bar = teacher.schedule.alphas_cumprod[times[0]].view(-1, 1, 1, 1)
    x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise
    target = distill.teach(teacher, 2.0, x_t, times, labels)
    seen = alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * by_hand(x_t, times[0], labels)
    weight = (alpha_bar / (1 - alpha_bar)).clamp(min=1)
    loss = (weight * (seen - target) ** 2).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
    torch.optim.Adam(by_hand.parameters(), lr=1e-3).step()

    torch.testing.assert_close(metrics["loss"], loss)
    torch.testing.assert_close(dict(student.named_parameters()), dict(by_hand.named_parameters()))
    name = "inc.double_conv.0.weight"
    expected = start[name] + 0.9 * (by_hand.state_dict()[name] - start[name])
    torch.testing.assert_close(ema.module.state_dict()[name], expected)


def test_overfits_one_batch(teacher):
    args, student, losses = distill.parse_args(["--guidance", "4"]), copy.deepcopy(teacher.model), []
    optimiser, ema, whole = torch.optim.Adam(student.parameters(), lr=3e-3), EMA(student, 0.9), MicroBatches()
    for _ in range(20):
        torch.manual_seed(0)  # the same times and noise
        losses.append(distill.train_step(student, ema, optimiser, teacher, torch.zeros(4, 3, 28, 28), torch.arange(4),
                                         whole, args, torch.float32)["loss"])
    assert losses[-1] < 0.3 * losses[0]


def test_two_stages_and_inference_without_a_flag(digits_dir, released, teacher, tmp_path):
    assert run(digits_dir, released, tmp_path / "guided", "--lr", "1e-12", "--ema-decay", "0") == 0
    guided = load_network(tmp_path / "guided" / "last.pt", torch.device("cpu"))
    assert guided.setting == STANDARD._replace(guidance=1)
    for name, value in teacher.model.state_dict().items():  # where it starts from
        torch.testing.assert_close(guided.model.state_dict()[name], value, rtol=0, atol=1e-6)

    assert run(digits_dir, tmp_path / "guided" / "last.pt", tmp_path / "short", "--chain", "3") == 0
    assert weights(tmp_path / "short")["args"]["guidance"] == 1
    short = load_network(tmp_path / "short" / "last.pt", torch.device("cpu"))
    assert short.setting == Setting("ddim", 3, 1)
    inference.main([str(tmp_path / "way.gif"), "--weights", str(tmp_path / "short" / "last.pt"), "--gif",
                    "--per-digit", "1"])
    assert (tmp_path / "way.gif").exists()
    for name in ("samples/0000004.png", "curves.png", "done"):
        assert (tmp_path / "short" / name).exists()


def test_stopped_and_resumed_equals_unbroken(digits_dir, released, tmp_path):
    flags = ["--chain", "2"]
    run(digits_dir, released, tmp_path / "whole", *flags)
    step = distill.train_step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        calls = iter([step, step, step])

        def killed(*args):
            try:
                return next(calls)(*args)
            except StopIteration:
                raise RuntimeError("killed") from None

        patch.setattr(distill, "train_step", killed)
        run(digits_dir, released, tmp_path / "broken", *flags)
    assert weights(tmp_path / "broken")["step"] == 2
    run(digits_dir, released, tmp_path / "broken", *flags, "--resume", "auto")
    parts = [weights(tmp_path / name)["parts"] for name in ("whole", "broken")]
    torch.testing.assert_close(*(part["model"] for part in parts), rtol=0, atol=0)
    torch.testing.assert_close(*(part["ema"]["module"] for part in parts), rtol=0, atol=0)
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "broken/metrics.jsonl").read_text()


@pytest.mark.parametrize(("distilled", "more", "message"), [
    (None, ["--guidance", "1"], "nothing to learn"),
    (None, ["--chain", "501"], "at most 500"),
    (None, ["--chain", "0"], ">= 1"),
    (None, ["--teacher", "nowhere.pt"], "no checkpoint at nowhere.pt"),
    (["dpm-solver++", 10, 1.0], [], "nothing to learn"),
    (["dpm-solver++", 10, 1.0], ["--guidance", "2", "--chain", "4"], "was distilled with its guidance"),
    (["ddim", 8, 1.0], ["--chain", "8"], "chain of 8 steps: got --chain 8, expected half of them, 4"),
    (["ddim", 8, 1.0], [], "expected half of them, 4"),
])
def test_mistakes_end_in_one_line_and_write_nothing(digits_dir, teacher, tmp_path, distilled, more, message):
    path = save(tmp_path / "teacher.pt", teacher.model, **{"distilled": distilled} if distilled else {})
    with pytest.raises(UserError, match=message) as mistake:
        run(digits_dir, path, tmp_path / "run", *more)
    assert "\n" not in str(mistake.value) and not (tmp_path / "run").exists()


def test_a_distilled_network_is_not_guided(teacher, tmp_path):
    path = save(tmp_path / "student.pt", teacher.model, distilled=["ddim", 2, 1.0])
    with pytest.raises(UserError, match="was distilled with its guidance: got guidance 2"):
        inference.main([str(tmp_path / "out"), "--weights", str(path), "--guidance", "2"])
    assert not (tmp_path / "out").exists()


def test_released_networks_are_chosen_by_what_is_asked(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "RELEASED", tmp_path)
    save(tmp_path / "diffusion-distilled.pt", teacher.model, distilled=["ddim", 2, 1.0])
    student = copy.deepcopy(teacher.model)
    torch.nn.init.normal_(student.outc.bias)
    save(tmp_path / "diffusion.pt", student)
    drawn = []

    def chain(network, setting, *rest):
        drawn.append((network.distilled is not None, *setting[:3]))
        return iter([inference.State(-1, torch.zeros(1, 3, 28, 28))])

    monkeypatch.setattr(inference, "chain", chain)
    for flags in ([], ["--grid"], ["--process"], ["--gif"], ["--full"], ["--steps", "7"], ["--guidance", "3"],
                  ["--process", "--sampler", "ddim"]):
        name = {"--grid": "x.png", "--process": "x.png", "--gif": "x.gif"}.get((flags or [""])[0], "x")
        inference.main([str(tmp_path / name), "--digits", "0", "--per-digit", "1", *flags])
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
    assert drawn == [(True, "ddim", 2, 1), (True, "ddim", 2, 1), (False, "ddpm", 10, 2), (False, "ddim", 40, 2),
                     (False, "ddpm", 10, 2), (False, "dpm-solver++", 7, 2), (False, "dpm-solver++", 10, 3),
                     (False, "ddim", 10, 2)]
