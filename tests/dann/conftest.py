"""A tiny canonical data folder: ten separable digits, drawn as bars, in two domains."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import runlog
from dann.train import main

COUNTS = {"train": 40, "val": 20, "test": 20}


def draw(digit: int, rng: np.random.Generator) -> np.ndarray:
    """A bright bar whose place says the digit, on noise: (28, 28, 3) uint8."""
    image = rng.integers(0, 60, (28, 28, 3), dtype=np.uint8)
    row, column = divmod(digit, 5)
    image[4 + 12 * row:12 + 12 * row, 2 + 5 * column:6 + 5 * column] = 230
    return image


@pytest.fixture(autouse=True)
def one_thread():
    """Batches of eight gain nothing from threads, and lose much to them on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """hw2_data/digits/{mnistm,usps}, 28x28 PNGs and three CSVs; USPS is darker."""
    root = tmp_path_factory.mktemp("hw2_data")
    for domain, gain in (("mnistm", 1.0), ("usps", 0.7)):
        rng = np.random.default_rng(len(domain))
        folder = root / "digits" / domain
        (folder / "data").mkdir(parents=True)
        for split, count in COUNTS.items():
            rows = ["image_name,label"]
            for i in range(count):
                name = f"{split}{i:03d}.png"
                Image.fromarray((draw(i % 10, rng) * gain).astype(np.uint8)).save(folder / "data" / name)
                rows.append(f"{name},{i % 10}")
            (folder / f"{split}.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def bar():
    """The function that draws a digit."""
    return draw


@pytest.fixture
def train(data, tmp_path, monkeypatch):
    """Run dann.train in this process for six small steps, without curves (slow); returns the run folder."""
    monkeypatch.setattr(runlog, "plot_curves", lambda run_dir: None)

    def run(name: str, *flags: str) -> Path:
        out = tmp_path / name
        assert main(["--data", str(data), "--out", str(out), "--device", "cpu", "--precision", "fp32",
                     "--steps", "6", "--batch-size", "8", "--log-every", "2", *flags]) == 0
        return out

    return run


@pytest.fixture
def weights():
    """Read the network of a run folder, by tensor name."""
    return lambda out: torch.load(out / "last.pt", weights_only=True)["weights"]
