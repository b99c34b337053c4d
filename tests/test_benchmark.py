"""The benchmark: plain and ours see the same images, and its figures are what the clock says."""

import json

import pytest
import torch

from common.datasets import ImageSet
from scripts import benchmark

CPU = torch.device("cpu")


def test_both_loops_see_the_same_images():
    images = torch.randint(0, 256, (8, 3, 28, 28), dtype=torch.uint8)
    some = ImageSet(images, torch.arange(8), [""] * 8)
    plain, labels = next(benchmark.plain_batches(some, 8, CPU))
    ours, our_labels = next(benchmark.our_batches(some, 8, CPU))
    assert sorted(labels.tolist()) == sorted(our_labels.tolist()) == list(range(8))
    torch.testing.assert_close(plain[labels.argsort()], images / 127.5 - 1)
    assert torch.equal(ours[our_labels.argsort()], images)


def test_ratio_is_the_median_of_rounds(monkeypatch):
    readings = iter([10, 30, 10, 20, 10, 80])  # plain and ours of three rounds
    monkeypatch.setattr(benchmark, "images_per_second", lambda work, device, seconds: next(readings))
    row = benchmark.compare(lambda: 1, lambda: 1, CPU, rounds=3, seconds=1)
    assert row == {"plain": 10, "ours": 30, "ratio": 3, "ratio_min": 2, "ratio_max": 8}


def test_images_per_second_counts_what_the_work_says():
    clock = iter([0.0, 1.0, 2.0, 4.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
        assert benchmark.images_per_second(lambda: 6, CPU, seconds=3) == 3  # two calls in four seconds


def test_command_writes_its_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "PAIRS", {"DANN training": benchmark.PAIRS["DANN training"]})
    monkeypatch.setattr(benchmark, "BATCH_SIZE", {"dann": 4})
    assert benchmark.main(["--quick", "--device", "cpu", "--out", str(tmp_path / "b.json")]) == 0
    figures = json.loads((tmp_path / "b.json").read_text())
    assert figures["images_per_second"]["DANN training"]["ratio"] > 0 and figures["rounds"] == 1
    assert "DANN training" in capsys.readouterr().out
