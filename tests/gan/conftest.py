"""Random faces in the project's layout, a run of four steps for each model, stand-ins for packages of two scores."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gan import train as gan_train

SMALL = ["--device", "cpu", "--precision", "fp32", "--width", "8", "--batch-size", "4", "--log-every", "1"]


@pytest.fixture(scope="package", autouse=True)
def fast():
    """Save time: few images for the standing statistics, and no curves, which are not tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan_train, "NUM_IMAGES", 128)
        patch.setattr("common.run.plot_curves", lambda *_: None)
        yield


def smooth_images(count: int, seed: int) -> list[Image.Image]:
    """Generate smooth random colour fields of 64x64 pixels."""
    rng = np.random.default_rng(seed)
    fields = (Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(count))
    return [field.resize((64, 64), Image.Resampling.BICUBIC) for field in fields]


@pytest.fixture(scope="package")
def faces(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for seed, (split, count) in enumerate({"train": 10, "val": 8}.items()):
        folder = root / "face" / split
        folder.mkdir(parents=True)
        for i, image in enumerate(smooth_images(count, seed)):
            image.save(folder / f"{i:05d}.png")
    return root


@pytest.fixture(scope="package")
def smooth() -> torch.Tensor:
    """(40, 3, 64, 64) uint8."""
    arrays = np.stack([np.asarray(image) for image in smooth_images(40, seed=2)])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="package")
def run_gan(faces):
    """Train in this process on the small faces; return the run folder."""
    def run(out: Path, model: str, steps: int, *flags: str) -> Path:
        where = ["--data", str(faces), "--out", str(out)]
        assert gan_train.main(["--model", model, *where, "--steps", str(steps), *SMALL, *flags]) == 0
        return out

    return run


@pytest.fixture(scope="package", params=["dcgan", "sagan"])
def trained(request, run_gan, tmp_path_factory) -> tuple[str, Path]:
    """(model, run folder) of a run of four steps without interruption."""
    return request.param, run_gan(tmp_path_factory.mktemp("run") / request.param, request.param, 4)


@pytest.fixture
def packages(monkeypatch, tmp_path) -> list:
    """Stand-ins: a detector that finds as many faces as the first pixel's value, a network of mean colours.

    The list receives each image and upsampling that the detector is given.
    """
    seen = []

    def detector(image, upsampling):
        seen.append((image, upsampling))
        return [None] * int(image[0, 0, 0])

    class MeanColours(nn.Module):
        def forward(self, x):
            assert x.min() >= 0 and x.max() <= 1
            return [x.mean((2, 3), keepdim=True)]

    for name in ("dlib", "pytorch_fid", "pytorch_fid.inception"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["dlib"].get_frontal_face_detector = lambda: detector
    module.InceptionV3, module.FID_WEIGHTS_URL = MeanColours, "https://example.org/weights.pth"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return seen
