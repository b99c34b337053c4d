"""What all three trainers promise of their numbers: finite, the same in both precisions, on any number of threads."""

import contextlib
import json
import shutil

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from common.errors import UserError
from common.metrics_log import read_metrics
from tests.trainers import FLAGS, MODULES, arguments, content, finish, make_small, result

pytestmark = pytest.mark.slow

STEPS = "--steps 6 --precision fp32"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """As the forks have it: tiny sets."""
    make_small(monkeypatch.setattr)


def train(task, out, more=STEPS):
    MODULES[task].main(arguments(task, out, more))
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an undisturbed run of six steps, by task; each is made once."""
    known = {}
    return lambda task: known.get(task) or known.setdefault(task, train(task, tmp_path_factory.mktemp("whole") / task))


@contextlib.contextmanager
def spoiled_update(number):
    """Put a NaN into the gradient that the number-th update of a weight descends, when its loss is known already."""
    done = []

    def spoil(optimizer, args, kwargs):
        done.append(optimizer)
        if len(done) == number:
            optimizer.param_groups[0]["params"][0].grad[0] = float("nan")

    hook = register_optimizer_step_pre_hook(spoil)
    yield
    hook.remove()


@pytest.mark.parametrize("step", [4, 6])
@pytest.mark.parametrize("task", FLAGS)
def test_a_gradient_that_is_no_number_stops_with_its_step_and_costs_no_good_one(task, step, whole, tmp_path):
    """It is found by the next step's loss, or before its own step is saved, every third here."""
    said = {4: r"became nan before step 5", 6: r"became not finite before step 6"}[step]
    with (spoiled_update(step * (2 if task == "gan" else 1)),  # D and G
          pytest.raises(UserError, match=f"{said}: .*is from before") as mistake):
        train(task, tmp_path / "run")
    assert "\n" not in str(mistake.value)
    saved = content(tmp_path / "run")
    assert saved["step"] == 3
    assert all(value.isfinite().all() for value in saved["weights"].values())
    assert not (tmp_path / "run" / "done").exists()
    assert result(train(task, tmp_path / "run", f"{STEPS} --resume auto")) == result(whole(task))


@pytest.mark.parametrize("task", FLAGS)
def test_the_average_takes_in_every_step(task, whole):
    parts = content(whole(task))["parts"]
    name, network = {"gan": ("g_ema", "generator"), "diffusion": ("ema", "model"), "dann": ("teacher", "model")}[task]
    assert parts[name]["updates"] == 6
    for parameter, value in parts[network].items():
        if parameter.endswith("weight") and value.ndim > 1 and not parameter.startswith("discriminator"):
            assert 0 < (parts[name]["module"][parameter] - value).norm() < 0.1 * value.norm()


@pytest.mark.parametrize("task", FLAGS)
def test_resume_needs_no_other_flag(task, whole, tmp_path):
    out = shutil.copytree(whole(task), tmp_path / "run")
    before = json.loads((out / "args.json").read_text())
    MODULES[task].main(["--out", str(out), "--resume", "auto", "--steps", "7"])
    assert json.loads((out / "args.json").read_text()) == before | {"resume": "auto", "steps": 7, "out": str(out)}


@pytest.mark.parametrize("task", FLAGS)
def test_a_run_with_the_settings_of_another_is_the_same_run(task, whole, tmp_path):
    MODULES[task].main(["--config", str(whole(task)), "--out", str(tmp_path / "run"), "--device", "cpu"])
    assert result(tmp_path / "run") == result(whole(task))


# Measured over four seeds: losses of three steps agree to 0.01 (DANN, whose batches of four are normalised: 0.06),
# gradients of the first to 0.20, 0.19, 0.03 and 0.27 of their length.
PRECISE = {"dcgan": ("gan", "", 0.03, 0.4), "sagan": ("gan", "--model sagan", 0.03, 0.4),
           "diffusion": ("diffusion", "", 0.02, 0.08), "dann": ("dann", "", 0.15, 0.5)}


@pytest.mark.parametrize("name", PRECISE)
def test_bfloat16_agrees_with_float32(name, tmp_path):
    task, more, loss_tolerance, gradient_tolerance = PRECISE[name]
    gradients, rows = {}, {}
    for precision in ("fp32", "bf16"):
        out = train(task, tmp_path / precision, f"{more} --precision {precision} --steps 1")
        parts = content(out)["parts"]
        gradients[precision] = {  # after one step Adam's first average is the gradient, but for a factor
            name: torch.cat([entry["exp_avg"].flatten() for entry in part["state"].values()])
            for name, part in parts.items() if name.endswith("optimizer")}
        train(task, out, f"{more} --precision {precision} --steps 3 --resume auto")
        rows[precision] = [[value for name, value in row.items() if "loss" in name] for row in read_metrics(out)]
    assert rows["bf16"] != rows["fp32"]
    torch.testing.assert_close(torch.tensor(rows["bf16"]), torch.tensor(rows["fp32"]), rtol=loss_tolerance,
                               atol=loss_tolerance / 5)
    for name, exact in gradients["fp32"].items():
        assert (gradients["bf16"][name] - exact).norm() < gradient_tolerance * exact.norm(), name


@pytest.mark.parametrize("task", FLAGS)
def test_processes_of_as_many_threads_give_equal_bytes_and_others_close_ones(task, start, whole, tmp_path):
    """Another number of threads adds in another order: bytes may differ, and training makes more of it step by step."""
    threads = {"one": 1, "two": 2, "too": 2}
    processes = [start(task, tmp_path / name, "--steps 6", count) for name, count in threads.items()]
    assert [finish(process) for process in processes] == [0, 0, 0]
    one, two, too = (result(tmp_path / name) for name in threads)
    assert one == result(whole(task))
    assert two == too
    rows = zip(read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two"), strict=True)
    for (here, there), tolerance in zip(rows, (1e-4, 0.01, 0.01), strict=False):
        losses = [name for name in here if "loss" in name]
        assert [here[name] for name in losses] == pytest.approx([there[name] for name in losses], abs=tolerance)
