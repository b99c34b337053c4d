"""The benchmark: both sides see the same images, and its figures are what the clock says."""

import inspect
import itertools
import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common.data.folder import ImageSet
from common.device import Captured, allow_tf32
from common.errors import UserError
from common.metrics_log import MetricsLog
from diffusion.unet import ConditionalUNet
from scripts import benchmark, ours, plain

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


def random_images(count, size=28, labels=True):
    return ImageSet(torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8),
                    torch.arange(count) % 10 if labels else None, [""] * count)


@pytest.fixture
def data(tmp_path):
    sets = {"mnistm": random_images(16), "usps": random_images(16), "unlabelled": random_images(16, labels=False),
            "face": random_images(4, 64, labels=False)}
    return {name: plain.store(images, f"{tmp_path}/{name}") for name, images in sets.items()}


@pytest.fixture
def dann(data, monkeypatch):
    """A benchmark of DANN training alone, on few images."""
    monkeypatch.setattr(benchmark, "PAIRS", {"DANN training": benchmark.PAIRS["DANN training"]._replace(batch_size=4)})
    monkeypatch.setattr(benchmark, "load_embedded", lambda folder, count: data)


def setup(data, **other):
    return benchmark.Setup(data, CPU, gpu=True, dtype=torch.float32, rounds=1, seconds=0.01)._replace(**other)


def test_both_loops_see_the_same_images(data):
    theirs, labels = next(plain.plain_batches(data["usps"], 16, CPU))
    images, own_labels, _ = data["usps"].images
    assert sorted(labels.tolist()) == sorted(own_labels.tolist())
    theirs = {tuple(image.tolist()) for image in ((theirs + 1) * 127.5).round().flatten(1)}
    assert theirs == {tuple(image.tolist()) for image in images.float().flatten(1)}


@pytest.mark.parametrize("side", ["plain", "ours"])
@pytest.mark.parametrize("name", benchmark.PAIRS)
def test_every_work_can_be_done_again_and_sets_nothing_for_others(name, side, data):
    make = getattr(benchmark.PAIRS[name], side)
    work = make(data, CPU, 2, *([torch.bfloat16] if side == "ours" else []))
    first, second = next(work), next(work)
    assert first == second > 0
    assert not torch.is_autocast_enabled("cpu") and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_plain_work_runs_on_the_defaults_of_pytorch_and_ours_keeps_its_settings():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    allow_tf32(False)  # as select_device does
    seen = []

    @plain.by_default
    def work():
        for i in range(2):
            seen.append((cudnn.allow_tf32, matmul.allow_tf32))
            yield i

    assert list(itertools.islice(work(), 2)) == [0, 1] and seen == 2 * [(True, False)]
    assert (cudnn.allow_tf32, matmul.allow_tf32) == (False, False)
    for pair in benchmark.PAIRS.values():  # what is decorated refers to the undecorated function
        assert inspect.unwrap(pair.plain) is not pair.plain


def test_the_plain_network_has_the_layers_of_pytorch_and_computes_the_same():
    network = plain.plain_unet(CPU).eval()
    assert {type(m) for m in network.modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm | nn.Upsample)} == {
        nn.GroupNorm, nn.LayerNorm, nn.Upsample}
    same = ConditionalUNet().eval()
    same.load_state_dict(network.state_dict())
    inputs = torch.randn(2, 3, 28, 28), torch.tensor([3, 700]), torch.tensor([1, 2])
    with torch.no_grad():
        torch.testing.assert_close(network(*inputs), same(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [ours.diffusion_training, ours.gan_training, ours.dann_training],
                         ids=lambda make: make.__name__)
def test_our_trainings_capture_seed_and_record_every_step(make, data, monkeypatch):
    calls = []
    for owner, name in ((Captured, "__call__"), (MetricsLog, "add")):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, name=name, real=real, **switches: (
            calls.append(name), real(*args, **switches))[1])
    for name in ("seed_step", "set_lr"):
        real = getattr(ours, name)
        monkeypatch.setattr(ours, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))[1])
    list(itertools.islice(make(data, CPU, 2, torch.float32), 2))
    rates = ["set_lr"] * (2 if make is ours.gan_training else 1)
    assert calls == 2 * ["seed_step", *rates, "__call__", "add"]


def test_ratio_is_the_median_of_rounds(monkeypatch):
    readings = iter([10, 30, 10, 20, 10, 80])  # plain and ours, 3 rounds
    monkeypatch.setattr(benchmark, "measure", lambda *_: next(readings))
    row = benchmark.compare(None, None, CPU, rounds=3, seconds=1)
    assert row == {"plain": 10, "ours": 30, "ratio": 3, "ratio_min": 2, "ratio_max": 8}


def test_measure_counts_what_the_work_says(monkeypatch):
    clock = iter([0.0, 0.0, 2.0, 4.0, 4.0])  # the start, a look before each of two steps, a last look, the end
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    assert benchmark.measure(iter([6, 6]), CPU, seconds=3) == 3  # twelve images in four seconds


def test_the_fastest_batch_is_the_best_of_those_that_fit(monkeypatch):
    asked = []

    def training(data, device, batch_size, dtype=None):
        asked.append((batch_size, dtype))
        if batch_size == 1024 and dtype is None:
            raise torch.OutOfMemoryError
        while True:
            yield batch_size

    monkeypatch.setattr(benchmark, "measure", lambda work, *_: {256: 5, 512: 4, 2048: 99}[next(work)])
    pair = benchmark.Pair(training, training, 64, (256, 512, 1024, 2048))
    assert benchmark.fastest(pair, 3, setup({})) == 256 and asked[-1] == (1024, None)  # 2048 was not tried
    assert benchmark.fastest(pair, 7, setup({})) == 64
    assert benchmark.fastest(pair._replace(larger=()), 7, setup({})) == 64


def test_a_gpu_is_measured_at_the_best_batch_too(data, dann, monkeypatch):
    pair = benchmark.PAIRS["DANN training"]._replace(larger=(8,))
    monkeypatch.setattr(benchmark, "fastest", lambda pair, rate, setup: pair.larger[0])
    rows = dict(benchmark.rows_of("DANN training", pair, setup(data)))
    assert [(name, row["batch_size"]) for name, row in rows.items()] == [
        ("DANN training", 4), ("DANN training, batch 8", 8)]
    assert set(dict(benchmark.rows_of("DANN training", pair, setup(data, gpu=False)))) == {"DANN training"}


def test_a_step_of_a_sampler_is_its_share_of_the_images():
    states = iter(range(100))
    work = plain.sampling(lambda: (next(states) for _ in range(5)), 4, 100)  # noise and four steps
    assert sum(itertools.islice(work, 8)) == 2 * 100
    assert next(states) == 10  # two whole chains


def test_a_table_of_two_machines_leaves_out_what_one_lacks():
    row = {"plain": 10, "ours": 30, "ratio": 3, "ratio_min": 2, "ratio_max": 400}
    cpu = {"device": "CPU", "images_per_second": {"a": row, "b": row}}
    gpu = {"device": "GPU", "images_per_second": {"b": row, "b, batch 512": row}}
    assert benchmark.speed_table(cpu, gpu).splitlines() == [
        "| images/s | plain, CPU | ours, CPU | ratio, CPU | plain, GPU | ours, GPU | ratio, GPU |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| a | 10.0 | 30.0 | 3.0 (2.0 to 400) | - | - | - |",
        "| b | 10.0 | 30.0 | 3.0 (2.0 to 400) | 10.0 | 30.0 | 3.0 (2.0 to 400) |",
        "| b, batch 512 | - | - | - | 10.0 | 30.0 | 3.0 (2.0 to 400) |"]


def test_a_slow_rate_is_not_shown_as_none():
    assert [benchmark.shown(rate) for rate in (1234.56, 71.19, 1.0, 0.3456, 0.004873)] == [
        "1,235", "71.2", "1.0", "0.35", "0.0049"]


@pytest.mark.parametrize("gpu", [False, True])
def test_command_prints_and_writes_figures(gpu, dann, tmp_path, monkeypatch, capsys):
    rows_of = benchmark.rows_of
    monkeypatch.setattr(benchmark, "rows_of", lambda name, pair, setup: rows_of(name, pair, setup._replace(gpu=gpu)))
    pair = benchmark.PAIRS["DANN training"]._replace(larger=(8,))
    monkeypatch.setitem(benchmark.PAIRS, "DANN training", pair)
    monkeypatch.setattr(benchmark, "fastest", lambda pair, rate, setup: pair.larger[0])
    assert benchmark.main(["--quick", "--device", "cpu", "--out", str(tmp_path / "b.json")]) == 0
    figures = json.loads((tmp_path / "b.json").read_text())
    assert len(figures["images_per_second"]) == 1 + gpu
    row = figures["images_per_second"]["DANN training"]
    assert row["ratio"] > 0 and figures["rounds"] == 1
    printed = capsys.readouterr().out
    assert "DANN training" in printed and ("to plain at batch 4" in printed) == gpu and " s; wrote " in printed


def test_both_sides_of_a_training_do_the_same_arithmetic(data):
    pair, operations = benchmark.PAIRS["DANN training"], []
    for work in (pair.plain(data, CPU, 4), pair.ours(data, CPU, 4, torch.float32)):
        with FlopCounterMode(display=False) as counter:
            next(work)
        operations.append(counter.get_total_flops())
    assert operations[0] == pytest.approx(operations[1], rel=0.05)  # except for the grid of our augmentation


def test_the_machine_of_the_figures_is_the_one_that_computed_them(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(benchmark, "PAIRS", {})
    monkeypatch.setattr(benchmark, "describe_machine", lambda device: asked.append(device.type) or "a processor")
    monkeypatch.setattr(benchmark, "load_embedded", lambda folder, count: {})
    assert benchmark.main(["--quick", "--device", "cpu", "--out", str(tmp_path / "b.json")]) == 0
    assert asked == ["cpu"] and json.loads((tmp_path / "b.json").read_text())["machine"] == "a processor"


def test_out_is_json_and_new(tmp_path):
    (tmp_path / "b.json").touch()
    with pytest.raises(UserError, match="b.json exists already: name another file, or replace it with --force"):
        benchmark.parse_args(["--out", str(tmp_path / "b.json")])
    benchmark.parse_args(["--out", str(tmp_path / "b.json"), "--force"])
    with pytest.raises(UserError, match=r"--out: got b\.txt, expected a name that ends in \.json"):
        benchmark.parse_args(["--out", "b.txt"])
