"""The benchmark: plain and ours see the same images, and its figures are what the clock says."""

import itertools
import json
import tracemalloc

import pytest
import torch
from PIL import Image

from common.datasets import ImageSet, load_digits, load_readable
from common.errors import UserError
from dann.networks import DANN
from scripts import benchmark, plain, scaling

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_digits(monkeypatch):
    some = ImageSet(torch.randint(0, 256, (16, 3, 28, 28), dtype=torch.uint8), torch.arange(16) % 10, [""] * 16)
    monkeypatch.setattr(plain, "_drawn", {"mnistm": some, "usps": some})


def test_both_loops_see_the_same_images():
    images = torch.randint(0, 256, (8, 3, 28, 28), dtype=torch.uint8)
    some = ImageSet(images, torch.arange(8), [""] * 8)
    theirs, labels = next(plain.plain_batches(some, 8, CPU))
    ours, our_labels = next(benchmark.our_batches(some, 8, CPU))
    assert sorted(labels.tolist()) == sorted(our_labels.tolist()) == list(range(8))
    torch.testing.assert_close(theirs[labels.argsort()], images / 127.5 - 1)
    assert torch.equal(ours[our_labels.argsort()], images)


@pytest.mark.parametrize("make", [make for makers in benchmark.PAIRS.values() for make in makers],
                         ids=lambda make: make.__name__)
def test_every_work_can_be_done_again(make, monkeypatch):
    for task in plain.BATCH_SIZE:
        monkeypatch.setitem(plain.BATCH_SIZE, task, 2)
    for module in (plain, benchmark):
        monkeypatch.setattr(module, "EVALUATION_BATCH_SIZE", 2)
    faces = ImageSet(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8), None, [""] * 4)
    monkeypatch.setitem(plain._drawn, "face", faces)
    work = make(CPU, torch.float32)
    assert work.step() == work.step() > 0


def test_ratio_is_the_median_of_rounds(monkeypatch):
    readings = iter([(10, 0.5), (30, 0.1), (10, 0.75), (20, 0.0), (10, 1.0), (80, 0.2)])  # plain and ours, 3 rounds
    monkeypatch.setattr(benchmark, "measure", lambda work, device, seconds: next(readings))
    work = plain.Work(lambda: 1)
    row = benchmark.compare(work, work, CPU, rounds=3, seconds=1)
    assert row == {"plain": 10, "ours": 30, "ratio": 3, "ratio_min": 2, "ratio_max": 8,
                   "plain_waiting": 0.75, "ours_waiting": 0.1}


def test_measure_counts_what_the_work_says_and_how_long_it_waits():
    # A start, then for each of two steps a look at the clock and one before and after the data, a last look, the end.
    clock = iter([0.0, 0.0, 0.0, 1.0, 2.0, 2.0, 2.5, 3.0, 4.0])
    batches = plain.Stopwatch(iter([6, 6]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
        rate, waiting = benchmark.measure(plain.Work(lambda: next(batches), (batches,)), CPU, seconds=3)
    assert (rate, waiting) == (3, 1.5 / 4)  # twelve images in four seconds


def test_a_step_of_a_sampler_is_its_share_of_the_images():
    states = iter(range(100))
    chain = plain.sampling(lambda: (next(states) for _ in range(5)), 4)  # noise and four steps
    assert sum(chain.step() for _ in range(8)) == 2 * plain.EVALUATION_BATCH_SIZE
    assert next(states) == 10  # two whole chains


def test_the_prediction_for_one_process_is_the_measurement_and_the_link_costs():
    alone = benchmark.epochs_per_hour(500, 50, 10**9, 1, 1e9)
    assert alone == pytest.approx(3600 * 500 / benchmark.EPOCH)
    # A step of 0.1 s, and 2 * 3/4 of a second for the gradients.
    assert benchmark.epochs_per_hour(500, 50, 10**9, 4, 1e9) == pytest.approx(4 * alone * 0.1 / 1.6)


def test_a_slow_rate_is_not_shown_as_none():
    assert [benchmark.shown(rate) for rate in (1234.56, 1.0, 0.3456, 0.004873)] == ["1,234.6", "1.0", "0.35", "0.0049"]


def test_command_writes_figures_tables_and_a_plot(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "PAIRS", {"DANN training": benchmark.PAIRS["DANN training"]})
    monkeypatch.setitem(plain.BATCH_SIZE, "dann", 4)
    monkeypatch.setattr(benchmark, "in_fresh_process", lambda function, *args: function(*args))
    assert benchmark.main(["--quick", "--device", "cpu", "--out", str(tmp_path / "b.json")]) == 0
    figures = json.loads((tmp_path / "b.json").read_text())
    row = figures["images_per_second"]["DANN training"]
    assert row["ratio"] > 0 and figures["rounds"] == 1 and figures["matrix_product"] > 0
    assert 0 < row["ours_waiting"] < 1 and 0 < row["plain_waiting"] < 1
    # The two do the same arithmetic, but for the grid of our augmentation.
    assert row["fresh_ours"]["operations"] == pytest.approx(row["fresh_plain"]["operations"], rel=0.05)
    costs = figures["costs"]["DANN training"]
    assert costs["batch_size"] == 8 and costs["gradient_bytes"] == 4 * sum(p.numel() for p in DANN().parameters())
    said, table = capsys.readouterr().out, (tmp_path / "b.md").read_text()
    assert "DANN training" in said and "Predicted and not measured" in table
    assert table.count("| DANN training | ") == 2 + len(benchmark.LINKS)
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.format == "PNG"


def test_out_is_json():
    with pytest.raises(UserError, match=r"--out: got b\.txt, expected a name that ends in \.json"):
        benchmark.parse_args(["--out", "b.txt"])


def test_scaling_measures_loading_and_batches_and_draws_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "QUICK_SIZES", (3, 6))
    monkeypatch.setattr(scaling, "DISTINCT", 4)  # the last two are links
    monkeypatch.setattr(scaling, "QUICK_BATCHES", (4,))
    monkeypatch.setattr(benchmark, "TRAINERS", {"dann": "DANN training"})
    monkeypatch.setitem(plain.BATCH_SIZE, "dann", 4)
    monkeypatch.setattr(benchmark, "in_fresh_process", lambda function, *args: function(*args))
    peaks = itertools.count(0, 2**20)  # in a process that is not fresh the peak may be an older one, and the memory 0
    monkeypatch.setattr(scaling, "peak_memory", lambda device: next(peaks))
    assert benchmark.main(["--scaling", "--quick", "--device", "cpu", "--out", str(tmp_path / "s.json")]) == 0
    figures = json.loads((tmp_path / "s.json").read_text())
    assert list(figures["loading"]) == ["3", "6"] and figures["loading"]["6"]["second"]["seconds"] > 0
    assert figures["loading"]["3"]["first"]["memory"] == pytest.approx(2**20 / (3 * 3 * 28 * 28))
    batch = figures["batches"]["DANN training"]["4"]
    assert batch["images_per_second"] > 0 and batch["memory"] == 2**20
    assert "loading       6 PNGs: first " in capsys.readouterr().out
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize("load", [
    lambda data: load_digits(data, "mnistm", "train").images,
    lambda data: load_readable(data / "digits" / "mnistm" / "data", 28)[0].images,
])
def test_loading_takes_a_tenth_more_memory_than_the_images(tmp_path, load):
    scaling.write_digits(tmp_path, 2000)
    for _ in range(2):  # decoded, and from the cache
        tracemalloc.start()
        images = load(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(images) == 2000 and peak < 1.1 * images.nbytes
