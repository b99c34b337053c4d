"""A tiny data folder: ten digits that are easy to tell apart, drawn as bars, in two domains."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dann.train import main
from tests.trainers import content

COUNTS = {"train": 40, "val": 20, "test": 20}


def draw(digit: int, rng: np.random.Generator) -> np.ndarray:
    """Return a bright bar on noise, (28, 28, 3) uint8; its position encodes the digit."""
    image = rng.integers(0, 60, (28, 28, 3), dtype=np.uint8)
    row, column = divmod(digit, 5)
    image[4 + 12 * row:12 + 12 * row, 2 + 5 * column:6 + 5 * column] = 230
    return image


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Write hw2_data/digits/{mnistm,usps}: 28x28 PNGs and three CSV files each. USPS is darker."""
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
    """Return the function that draws a digit."""
    return draw


@pytest.fixture
def train(data, tmp_path, monkeypatch):
    """Train for six small steps in this process, without the slow curves; returns the run folder."""
    monkeypatch.setattr("common.run.plot_curves", lambda *_: None)

    def run(name: str, *flags: str) -> Path:
        out = tmp_path / name
        assert main(["--data", str(data), "--out", str(out), "--device", "cpu", "--precision", "fp32",
                     "--steps", "6", "--batch-size", "8", "--log-every", "2", *flags]) == 0
        return out

    return run


@pytest.fixture
def weights():
    """Return the function that reads the network of a run folder, by tensor name."""
    return lambda out: content(out)["weights"]
