"""The benchmark: both sides see the same images, and its figures are what the clock says."""

import itertools
import json
import tracemalloc

import pytest
import torch
from PIL import Image

from common.data.folder import ImageSet, load_digits, load_readable
from common.errors import UserError
from common.images import save_image
from scripts import benchmark, plain

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


def random_images(count, size=28, labels=True):
    return ImageSet(torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8),
                    torch.arange(count) % 10 if labels else None, [""] * count)


@pytest.fixture
def images():
    return {"mnistm": random_images(16), "usps": random_images(16), "face": random_images(4, 64, labels=False)}


def test_both_loops_see_the_same_images():
    some = random_images(8)
    theirs, labels = next(plain.plain_batches(some, 8, CPU))
    ours, our_labels = next(benchmark.our_batches(some, 8, CPU))
    assert sorted(labels.tolist()) == sorted(our_labels.tolist()) == list(range(8))
    torch.testing.assert_close(theirs[labels.argsort()], some.images / 127.5 - 1)
    assert torch.equal(ours[our_labels.argsort()], some.images)


@pytest.mark.parametrize("make", [make for makers in benchmark.PAIRS.values() for make in makers],
                         ids=lambda make: make.__name__)
def test_every_work_can_be_done_again(make, images, monkeypatch):
    for task in plain.BATCH_SIZE:
        monkeypatch.setitem(plain.BATCH_SIZE, task, 2)
    for module in (plain, benchmark):
        monkeypatch.setattr(module, "EVALUATION_BATCH_SIZE", 2)
    work = make(images, CPU, torch.float32)
    (first, _), (second, waited) = next(work), next(work)
    assert first == second > 0 and waited >= 0


def test_ratio_is_the_median_of_rounds(monkeypatch):
    readings = iter([(10, 0.5), (30, 0.1), (10, 0.75), (20, 0.0), (10, 1.0), (80, 0.2)])  # plain and ours, 3 rounds
    monkeypatch.setattr(benchmark, "measure", lambda work, device, seconds: next(readings))
    work = itertools.repeat((1, 0.0))
    row = benchmark.compare(work, work, CPU, rounds=3, seconds=1)
    assert row == {"plain": 10, "ours": 30, "ratio": 3, "ratio_min": 2, "ratio_max": 8,
                   "plain_waiting": 0.75, "ours_waiting": 0.1}


def test_measure_counts_what_the_work_says_and_how_long_it_waits(monkeypatch):
    # The start, then for each of two steps a look at the clock and one before and after the data, a last look, the end.
    clock = iter([0.0, 0.0, 0.0, 1.0, 2.0, 2.0, 2.5, 3.0, 4.0])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    rate, waiting = benchmark.measure(plain.timed(iter([6, 6])), CPU, seconds=3)
    assert (rate, waiting) == (3, 1.5 / 4)  # twelve images in four seconds


def test_a_step_of_a_sampler_is_its_share_of_the_images():
    states = iter(range(100))
    work = plain.sampling(lambda: (next(states) for _ in range(5)), 4)  # noise and four steps
    assert sum(done for done, _ in itertools.islice(work, 8)) == 2 * plain.EVALUATION_BATCH_SIZE
    assert next(states) == 10  # two whole chains


def test_a_slow_rate_is_not_shown_as_none():
    assert [benchmark.shown(rate) for rate in (1234.56, 1.0, 0.3456, 0.004873)] == ["1,234.6", "1.0", "0.35", "0.0049"]


def test_command_writes_figures_tables_and_a_plot(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "PAIRS", {"DANN training": benchmark.PAIRS["DANN training"]})
    monkeypatch.setitem(plain.BATCH_SIZE, "dann", 4)
    monkeypatch.setattr(benchmark, "load_digits", lambda data, name, split: images[name])
    monkeypatch.setattr(benchmark, "load_faces", lambda data, split: images["face"])
    monkeypatch.setattr(benchmark, "in_fresh_process", lambda function, *args: function(*args))
    assert benchmark.main(["--quick", "--device", "cpu", "--out", str(tmp_path / "b.json")]) == 0
    figures = json.loads((tmp_path / "b.json").read_text())
    row = figures["images_per_second"]["DANN training"]
    assert row["ratio"] > 0 and figures["rounds"] == 1 and figures["matrix_product"] > 0
    assert 0 < row["ours_waiting"] < 1 and 0 < row["plain_waiting"] < 1
    # Both do the same arithmetic, except for the grid of our augmentation.
    assert row["fresh_ours"]["operations"] == pytest.approx(row["fresh_plain"]["operations"], rel=0.05)
    assert "DANN training" in capsys.readouterr().out
    assert (tmp_path / "b.md").read_text().count("| DANN training | ") == 2
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.format == "PNG"


def test_a_fresh_process_has_nothing_but_the_imports(images):
    costs = benchmark.in_fresh_process(benchmark.first_step, plain.gan_sampling, images, CPU, torch.float32)
    assert costs["first_step"] > 0 and costs["operations"] > 1e8


def test_the_machine_of_the_figures_is_the_one_that_computed_them(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(benchmark, "PAIRS", {})
    monkeypatch.setattr(benchmark, "describe_machine", lambda device: asked.append(device.type) or "a processor")
    for name in ("load_digits", "load_faces"):
        monkeypatch.setattr(benchmark, name, lambda *args: random_images(1))
    monkeypatch.setattr(benchmark, "plot", lambda figures, path: None)
    assert benchmark.main(["--quick", "--device", "cpu", "--out", str(tmp_path / "b.json")]) == 0
    assert asked == ["cpu"] and (tmp_path / "b.md").read_text().startswith("a processor, ")


def test_out_is_json_and_new(tmp_path):
    (tmp_path / "b.md").touch()
    with pytest.raises(UserError, match="b.md exists already: name another file, or replace it with --force"):
        benchmark.parse_args(["--out", str(tmp_path / "b.json")])
    benchmark.parse_args(["--out", str(tmp_path / "b.json"), "--force"])
    with pytest.raises(UserError, match=r"--out: got b\.txt, expected a name that ends in \.json"):
        benchmark.parse_args(["--out", "b.txt"])


@pytest.mark.parametrize("load", [
    lambda data: load_digits(data, "mnistm", "train").images,
    lambda data: load_readable(data / "digits" / "mnistm" / "data", 28)[0].images,
])
def test_loading_takes_a_tenth_more_memory_than_the_images(tmp_path, load):
    folder = tmp_path / "digits" / "mnistm"
    names = [f"{i:04d}.png" for i in range(2000)]
    save_image(random_images(1).images[0], folder / "data" / names[0])
    for name in names[1:]:
        (folder / "data" / name).hardlink_to(folder / "data" / names[0])
    (folder / "train.csv").write_text("image_name,label\n" + "".join(f"{name},0\n" for name in names))
    for _ in range(2):  # decoded, and from the cache
        tracemalloc.start()
        images = load(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(images) == 2000 and peak < 1.1 * images.nbytes
