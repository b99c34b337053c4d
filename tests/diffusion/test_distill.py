"""Distillation: targets of the student, a step by hand, resume, and the setting that a checkpoint stores."""

import copy
import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from common import checkpoint
from common.errors import UserError
from diffusion import adversarial, distill, inference, pipeline
from diffusion.pipeline import Pipeline, Setting, load_pipeline
from diffusion.samplers import State, ddim, ddim_step
from diffusion.schedule import make_schedule
from diffusion.unet import KIND, ConditionalUNet
from tests.trainers import content, killed, same

MODEL_ARGS = {"width": 8, "prediction": "velocity", "schedule": "cosine"}
FLAGS = ["--batch-size", "8", "--steps", "4", "--log-every", "2", "--sample-every", "4", "--save-every", "2",
         "--device", "cpu"]


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return Pipeline(ConditionalUNet(8).eval(), make_schedule("cosine"), MODEL_ARGS)


def save(path, model, **more):
    checkpoint.save(path, {"kind": KIND, "model_args": MODEL_ARGS | more, "weights": model.state_dict()})
    return path


@pytest.fixture(scope="module")
def released(teacher, tmp_path_factory):
    return save(tmp_path_factory.mktemp("teacher") / "teacher.pt", teacher.model)


def run(digits_dir, teacher, out, *more):
    return distill.main(["--data", str(digits_dir), "--teacher", str(teacher), "--out", str(out), *FLAGS, *more])


@pytest.mark.parametrize("first", [0, 2, 6])  # of the student's four steps: the first, the second and the last
def test_one_step_of_the_student_ends_where_two_of_a_distilled_teacher_end(teacher, first):
    teacher = dataclasses.replace(teacher, model_args=MODEL_ARGS | {"distilled": ["ddim", 8, 1.0]})
    labels = torch.tensor([3, 7])
    states = list(ddim(lambda x_t, t: teacher.denoise(x_t, torch.full_like(labels, t), labels, 2.0), teacher.schedule,
                       lambda: torch.randn(2, 3, 28, 28), 8))
    start, _, end = states[first:first + 3]
    times = [torch.tensor([state.t] * 2) for state in states[first:first + 3]]
    x_0 = distill.distill_target(teacher, 2.0, start.x, times, labels)
    reached = ddim_step(teacher.schedule, start.x, x_0, start.t, end.t)
    torch.testing.assert_close(reached, end.x, rtol=1e-4, atol=1e-4)


class Gaussian(torch.nn.Module):
    """Predict the exact velocity for images that are normal with mean 0 and standard deviation 0.2."""

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


def test_any_other_teacher_takes_a_step_of_second_order():
    schedule = make_schedule("cosine")
    exact = Gaussian(schedule)
    teacher, errors = Pipeline(exact, schedule, MODEL_ARGS), []
    x_t, labels = torch.full((1, 3, 28, 28), 0.1), torch.zeros(1, dtype=torch.int64)
    for length in (40, 80):
        times = [torch.tensor([500 - i * length]) for i in range(3)]
        target = distill.distill_target(teacher, 1.0, x_t, times, labels)
        reached = ddim_step(schedule, x_t, target, times[0], times[2])
        expected = x_t * exact.deviation(times[2]) / exact.deviation(times[0])
        errors.append((reached - expected).abs().mean().item())
    assert 6 < errors[1] / errors[0] < 12  # the error of one step grows by 2^3; with two DDIM steps, by 2^2
    t, middle, end = (torch.tensor([t]) for t in (120, 60, -1))  # the last step is of first order
    x_middle = ddim_step(schedule, x_t, teacher.denoise(x_t, t, labels, 1.0), t, middle)
    torch.testing.assert_close(distill.distill_target(teacher, 1.0, x_t, (t, middle, end), labels),
                               teacher.denoise(x_middle, middle, labels, 1.0))


def test_the_student_is_trained_at_every_time_of_its_steps(teacher, monkeypatch):
    trained_at = []

    def distill_target(teacher, guidance, x_t, times, labels):
        trained_at.extend(times[0].tolist())
        return torch.zeros_like(x_t)

    class Student(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, t, labels):
            return self.scale * x

    monkeypatch.setattr(distill, "distill_target", distill_target)
    student = Student()
    torch.manual_seed(0)
    distill.train_step(student, torch.optim.Adam(student.parameters()), teacher,
                       torch.zeros(10_000, 3, 1, 1), torch.zeros(10_000, dtype=torch.int64), guidance=2.0,
                       times=distill.step_times(1000, 4), dtype=torch.float32)
    assert sorted(set(trained_at)) == [249, 499, 749, 999]


def test_one_step_by_hand(teacher):
    student = copy.deepcopy(teacher.model)
    torch.nn.init.normal_(student.outc.weight)
    by_hand = copy.deepcopy(student)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    x_0, labels = torch.rand(6, 3, 28, 28) * 2 - 1, torch.arange(6)
    torch.manual_seed(1)
    metrics = distill.train_step(student, optimizer, teacher, x_0, labels, guidance=2.0,
                                 times=distill.step_times(1000, 4), dtype=torch.float32)

    torch.manual_seed(1)
    position = torch.randint(0, 4, (6,))
    noise = torch.randn(6, 3, 28, 28)
    grid = torch.tensor([999, 874, 749, 624, 499, 374, 249, 124, -1])
    times = [grid[2 * position + i] for i in range(3)]
    alpha_bar = teacher.schedule.alphas_cumprod[times[0]].view(-1, 1, 1, 1)
    x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise
    target = distill.distill_target(teacher, 2.0, x_t, times, labels)
    predicted = alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * by_hand(x_t, times[0], labels)
    weight = (alpha_bar / (1 - alpha_bar)).clamp(min=1)
    loss = (weight * (predicted - target) ** 2).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
    torch.optim.Adam(by_hand.parameters(), lr=1e-3).step()

    torch.testing.assert_close(metrics["loss"], loss)
    torch.testing.assert_close(dict(student.named_parameters()), dict(by_hand.named_parameters()))


@pytest.mark.parametrize(("distilled", "guidance", "steps"), [(None, 1.5, 8), (["ddim", 8, 1.0], 1.0, 4)])
def test_the_first_teacher_is_guided_and_later_ones_are_halved(teacher, distilled, guidance, steps):
    teacher = dataclasses.replace(teacher, model_args=teacher.model_args | {"distilled": distilled})
    assert distill.stage(teacher, Path("teacher.pt")) == (guidance, steps)


@pytest.mark.slow
def test_two_stages_and_inference_without_a_flag(digits_dir, released, teacher, tmp_path, monkeypatch):
    previews, generate = [], pipeline.generate
    monkeypatch.setattr(pipeline, "generate", lambda *args: previews.append(args[1]) or generate(*args))
    assert run(digits_dir, released, tmp_path / "first", "--lr", "1e-12", "--ema-decay", "0") == 0
    first = load_pipeline(tmp_path / "first" / "last.pt", torch.device("cpu"))
    assert first.setting == Setting("ddim", 8, 1)
    for name, value in teacher.model.state_dict().items():  # it starts from the teacher's weights
        torch.testing.assert_close(first.model.state_dict()[name], value, rtol=0, atol=1e-6)

    assert run(digits_dir, tmp_path / "first" / "last.pt", tmp_path / "short") == 0
    short = load_pipeline(tmp_path / "short" / "last.pt", torch.device("cpu"))
    assert short.setting == Setting("ddim", 4, 1)
    assert previews == [first.setting, short.setting]
    inference.main([str(tmp_path / "denoising.gif"), "--weights", str(tmp_path / "short" / "last.pt"), "--gif",
                    "--per-digit", "1"])
    assert (tmp_path / "denoising.gif").exists()
    for name in ("samples/0000004.png", "done"):
        assert (tmp_path / "short" / name).exists()


@pytest.mark.slow
def test_killed_and_resumed_equals_unbroken(digits_dir, released, tmp_path):
    run(digits_dir, released, tmp_path / "whole")
    with killed(distill, 3):
        run(digits_dir, released, tmp_path / "broken")
    assert content(tmp_path / "broken")["step"] == 2
    run(digits_dir, released, tmp_path / "broken", "--resume", "auto")
    assert same(*(content(tmp_path / name)["parts"] for name in ("whole", "broken")))
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "broken/metrics.jsonl").read_text()


@pytest.mark.parametrize(("distilled", "more", "message"), [
    (None, ["--teacher", "nowhere.pt"], "no checkpoint at nowhere.pt"),
    (["ddim", 5, 1.0], [], "was distilled to 5 steps, which cannot be halved"),
    (["ddim", 1, 1.0], [], "was distilled to 1 step, which cannot be halved"),
])
def test_mistakes_end_in_one_line_and_write_nothing(digits_dir, teacher, tmp_path, distilled, more, message):
    path = save(tmp_path / "teacher.pt", teacher.model, **{"distilled": distilled} if distilled else {})
    with pytest.raises(UserError, match=message) as mistake:
        run(digits_dir, path, tmp_path / "run", *more)
    assert "\n" not in str(mistake.value) and not (tmp_path / "run").exists()


def test_a_teacher_that_predicts_noise_is_refused(digits_dir, teacher, tmp_path):
    path = save(tmp_path / "teacher.pt", teacher.model, prediction="noise")
    for train in (lambda: run(digits_dir, path, tmp_path / "run"),
                  lambda: adversarial.main(["--student", str(path), "--data", str(digits_dir), *FLAGS])):
        with pytest.raises(UserError, match="predicts noise, which at high t says too little of x_0"):
            train()
    assert not (tmp_path / "run").exists()


def test_a_distilled_network_is_sampled_as_it_was_trained(teacher, tmp_path):
    path = save(tmp_path / "student.pt", teacher.model, distilled=["ddim", 2, 1.0])
    for flags, got in ((["--guidance", "2"], "2 of ddim with guidance 2"),
                       (["--steps", "4"], "4 of ddim with guidance 1"),
                       (["--sampler", "ddpm"], "1000 of ddpm with guidance 1")):
        with pytest.raises(UserError, match=f"was distilled to 2 steps of ddim with guidance 1: got {got}; for others"):
            inference.main([str(tmp_path / "out"), "--weights", str(path), *flags])
    assert not (tmp_path / "out").exists()


def test_the_flags_choose_the_released_network(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "RELEASED", tmp_path)
    save(tmp_path / "diffusion-distilled.pt", teacher.model, distilled=["ddim", 2, 1.0])
    student = copy.deepcopy(teacher.model)
    torch.nn.init.normal_(student.outc.bias)
    save(tmp_path / "diffusion.pt", student)
    used = []

    def sample(pipeline, setting, *args, **values):
        used.append((pipeline.distilled is not None, *setting))
        return iter([State(-1, torch.zeros(1, 3, 28, 28))])

    monkeypatch.setattr(inference, "sample", sample)
    monkeypatch.setattr("diffusion.pipeline.sample", sample)
    monkeypatch.setattr("diffusion.pipeline.STANDARD", inference.STANDARD)
    for flags in ([], ["--grid"], ["--process"], ["--gif"], ["--sampler", "ddpm"], ["--steps", "7"],
                  ["--guidance", "3"], ["--process", "--sampler", "ddim"]):
        name = {"--grid": "x.png", "--process": "x.png", "--gif": "x.gif"}.get((flags or [""])[0], "x")
        inference.main([str(tmp_path / name), "--digits", "0", "--per-digit", "1", *flags, "--force"])
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
    assert used == [(True, "ddim", 2, 1), (True, "ddim", 2, 1), (False, "ddpm", 1000, 1.5), (False, "ddim", 40, 1.5),
                    (False, "ddpm", 1000, 1.5), (False, "dpm-solver++", 7, 1.5), (False, "dpm-solver++", 20, 3),
                    (False, "ddim", 20, 1.5)]
