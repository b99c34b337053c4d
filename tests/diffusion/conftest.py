"""A small digit folder in the layout of the project, and previews that take no time."""

import csv

import numpy as np
import pytest
from PIL import Image

from diffusion import pipeline


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """40 training and 40 validation images of domain mnistm; each digit is a bright bar at its own height."""
    root = tmp_path_factory.mktemp("data") / "hw2_data"
    folder = root / "digits" / "mnistm"
    (folder / "data").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, first in (("train", 0), ("val", 40)):
        with open(folder / f"{split}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image_name", "label"])
            for i in range(first, first + 40):
                pixels = rng.integers(0, 80, (28, 28, 3), dtype=np.uint8)
                pixels[4 + 2 * (i % 10), 4:24] = 255
                Image.fromarray(pixels).save(folder / "data" / f"{i:05d}.png")
                writer.writerow([f"{i:05d}.png", i % 10])
    return root


@pytest.fixture(scope="package", autouse=True)
def short_previews_and_no_curves():
    """Save time: they are not tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "STANDARD", pipeline.Setting("dpm-solver++", 2, 1.5))
        patch.setattr(pipeline, "PREVIEW_COLUMNS", 1)
        patch.setattr("common.run.plot_curves", lambda *_: None)
        yield
