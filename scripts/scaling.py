"""What data sets and batches of many sizes cost: `bash scripts/benchmark.sh --scaling`.

Data sets are drawn digits in PNG files, in a temporary folder that goes with the command; a thousand different
images, the others are hard links to them. The first load decodes, the second reads the cache; each is a fresh
process. Memory is what loading adds at most to the process, in shares of the images' size in uint8. The files were
just written, so the disk's share of the time is small.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.datasets import load_digits
from common.device import peak_memory, seed_everything, synchronize
from common.files import whole
from common.images import save_image
from scripts.plain import BATCH_SIZE, Work

SIZES, QUICK_SIZES = (1_000, 5_000, 20_000, 50_000, 100_000, 200_000), (200, 400)
BATCHES, QUICK_BATCHES = (8, 16, 32, 64, 128, 256, 512), (4, 8)  # 512 is all that the plain loops' sets hold
DISTINCT = 1000


def write_digits(data: Path, count: int) -> None:
    """Write a training set of `count` images of 28x28 in the canonical layout."""
    folder = data / "digits" / "mnistm"
    (folder / "data").mkdir(parents=True)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (min(count, DISTINCT), 3, 28, 28), np.uint8))
    names = [f"{i:06d}.png" for i in range(count)]
    for name, image in zip(names, pixels, strict=False):
        save_image(image, folder / "data" / name)
    for i in range(DISTINCT, count):
        os.link(folder / "data" / names[i % DISTINCT], folder / "data" / names[i])
    (folder / "train.csv").write_text("image_name,label\n" + "".join(f"{name},0\n" for name in names))


def load(data: Path) -> dict[str, float]:
    """Load the training set; this is the child. Returns seconds, and memory in shares of the images' size."""
    start, before = time.perf_counter(), peak_memory(torch.device("cpu"))
    images = load_digits(data, "mnistm", "train").images
    return {"seconds": time.perf_counter() - start,
            "memory": (peak_memory(torch.device("cpu")) - before) / images.nbytes}


def train(make: Callable[[torch.device, torch.dtype], Work], task: str, batch_size: int, device: torch.device,
          dtype: torch.dtype, seconds: float) -> dict[str, float]:
    """Train with a batch size for some seconds; this is the child. Returns images/s and bytes."""
    BATCH_SIZE[task] = batch_size
    before = peak_memory(device)
    seed_everything(0)
    work = make(device, dtype)
    work.step()
    synchronize(device)
    start, images = time.perf_counter(), 0.0
    while time.perf_counter() - start < seconds:
        images += work.step()
    synchronize(device)
    return {"images_per_second": images / (time.perf_counter() - start), "memory": peak_memory(device) - before}


def plot(figures: dict, path: Path) -> None:
    """Draw time and memory against both sizes, as four panels."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    loads = figures["loading"]
    sizes = [int(size) for size in loads]
    for which in ("first", "second"):
        axes[0, 0].plot(sizes, [row[which]["seconds"] for row in loads.values()], "o-", label=f"{which} load")
        axes[0, 1].plot(sizes, [row[which]["memory"] for row in loads.values()], "o-", label=f"{which} load")
    for task, rows in figures["batches"].items():
        batches = [int(batch) for batch in rows]
        axes[1, 0].plot(batches, [row["images_per_second"] for row in rows.values()], "o-", label=task)
        axes[1, 1].plot(batches, [row["memory"] / 2**20 for row in rows.values()], "o-", label=task)
    axes[0, 1].axhline(1.1, color="black", linewidth=1, linestyle=":")
    for panel, x, y in zip(axes.flat, ("images", "images", "batch size", "batch size"),
                           ("seconds", "memory / uint8 size", "images/s", "memory, MiB"), strict=True):
        panel.set(xlabel=x, ylabel=y, xscale="log")
        panel.legend(fontsize=8)
    for panel in (axes[0, 0], axes[1, 0], axes[1, 1]):
        panel.set_yscale("log")
    with whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
