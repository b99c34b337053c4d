"""Measure this project's defaults against the plain loops of `scripts/plain.py`.

    bash scripts/benchmark.sh [--device cpu|cuda] [--quick] [--out runs/benchmark.json]

Both sides train the same networks with the same batch size on the same embedded images. Each round times the plain
loop, then ours; the ratio is the median over rounds, its spread the smallest and the largest. For sampling, the
released student of one step is compared with 1000 guided steps: the images differ. On a GPU, larger batches are tried
too, and the fastest of ours is compared with the plain loop at the same batch.

The figures go to --out as JSON.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch

from common.cli import Parser, add_device_flags, add_force_flag, ending, run_main
from common.device import describe_machine, select_device, select_dtype, synchronize
from common.files import require_new, write_json
from common.tables import markdown
from scripts import ours, plain
from scripts.plain import Data, Work, load_embedded

IMAGES = {"cpu": 512, "cuda": 2000}  # per data set
WARM_UP = {"cpu": 1, "cuda": 5}  # steps of ours; on a GPU it is captured in the fourth
ROUNDS = {"cpu": (5, 5), "cuda": (3, 0.7)}  # and the seconds of each side
QUEUED = {"cpu": 1, "cuda": 10}  # steps between two looks at the clock, for which the device must be waited for


class Pair(NamedTuple):
    """What is compared: how to make each Work, the batch size, and larger ones to try on a GPU."""

    plain: Callable[[Data, torch.device, int], Work]
    ours: Callable[[Data, torch.device, int, torch.dtype], Work]
    batch_size: int
    larger: tuple[int, ...] = ()


class Setup(NamedTuple):
    """On what pairs are compared, and for how long."""

    data: Data
    device: torch.device
    gpu: bool
    dtype: torch.dtype
    rounds: int
    seconds: float  # of each side in a round


PAIRS = {
    "diffusion training": Pair(plain.diffusion_training, ours.diffusion_training, 64, (256, 512)),
    "GAN training": Pair(plain.gan_training, ours.gan_training, 64, (256, 1024)),
    "DANN training": Pair(plain.dann_training, ours.dann_training, 128, (256, 1024)),
    "diffusion evaluation": Pair(plain.diffusion_evaluation, ours.diffusion_evaluation, 100),
    "diffusion sampling": Pair(plain.diffusion_sampling, ours.diffusion_sampling, 100, (500,)),
    "GAN sampling": Pair(plain.gan_sampling, ours.gan_sampling, 50, (500,)),
    "DANN inference": Pair(plain.dann_inference, ours.dann_inference, 128),
}


def measure(work: Work, device: torch.device, seconds: float) -> float:
    """Repeat `work` for at least `seconds`, and return images/s."""
    synchronize(device)
    start, images = time.perf_counter(), 0.0
    while time.perf_counter() - start < seconds:
        images += sum(next(work) for _ in range(QUEUED[device.type]))
        synchronize(device)
    return images / (time.perf_counter() - start)


def compare(plain: Work, ours: Work, device: torch.device, rounds: int, seconds: float) -> dict[str, float]:
    """Time plain and ours in turn; return the medians and the spread of the ratio."""
    pairs = [(measure(plain, device, seconds), measure(ours, device, seconds)) for _ in range(rounds)]
    ratios = [fast / slow for slow, fast in pairs]
    plain_rate, our_rate = map(statistics.median, zip(*pairs, strict=True))
    return {"plain": plain_rate, "ours": our_rate, "ratio": statistics.median(ratios), "ratio_min": min(ratios),
            "ratio_max": max(ratios)}


def started(work: Work, steps: int) -> Work:
    """Take the first steps of a work: they allocate memory, pick kernels, and on a GPU capture ours."""
    for _ in range(steps):
        next(work)
    return work


def fastest(pair: Pair, rate: float, setup: Setup) -> int:
    """Return the batch size with most images/s: the pair's own, which has `rate`, or a larger one that both can run."""
    rates = {pair.batch_size: rate}
    for size in pair.larger:
        try:
            next(pair.plain(setup.data, setup.device, size))
            work = started(pair.ours(setup.data, setup.device, size, setup.dtype), WARM_UP[setup.device.type])
            rates[size] = measure(work, setup.device, setup.seconds)
        except torch.OutOfMemoryError:
            break
    return max(rates, key=rates.get)


def row_of(pair: Pair, setup: Setup) -> dict[str, Any]:
    """Compare a pair at its batch size."""
    args = setup.data, setup.device, pair.batch_size
    torch.manual_seed(0)
    works = started(pair.plain(*args), 1), started(pair.ours(*args, setup.dtype), WARM_UP[setup.device.type])
    return {"batch_size": pair.batch_size} | compare(*works, setup.device, setup.rounds, setup.seconds)


def rows_of(name: str, pair: Pair, setup: Setup) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield title and figures of a pair; on a GPU also at the batch size at which ours is fastest."""
    row = row_of(pair, setup)
    yield name, row
    if setup.gpu and (best := fastest(pair, row["ours"], setup)) != pair.batch_size:
        yield f"{name}, batch {best}", row_of(pair._replace(batch_size=best), setup)


def shown(rate: float) -> str:
    """Format a rate: a whole number from 100 on, one decimal from 1 on, or two significant digits."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


def speed_table(*machines: dict) -> str:
    """Return images/s of both sides and their ratio as Markdown, from the figures of each machine."""
    def cells(row: dict | None) -> list[str]:
        if row is None:
            return ["-"] * 3
        return [shown(row["plain"]), shown(row["ours"]),
                f"{shown(row['ratio'])} ({shown(row['ratio_min'])} to {shown(row['ratio_max'])})"]

    titles = [f"{title}, {figures['device']}" for figures in machines for title in ("plain", "ours", "ratio")]
    measured = [figures["images_per_second"] for figures in machines]
    names = dict.fromkeys(name for rows in measured for name in rows)
    return markdown(["images/s", *titles],
                    [[name, *(cell for rows in measured for cell in cells(rows.get(name)))] for name in names])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_device_flags(parser)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--out", metavar="JSON", type=ending(".json"), default=Path("runs", "benchmark.json"))
    add_force_flag(parser)
    args = parser.parse_args(argv)
    require_new(args.force, args.out)
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    began = time.perf_counter()
    args = parse_args(argv)
    device = select_device(args.device)
    dtype = select_dtype(device, args.precision)
    rounds, seconds = (1, 0.1) if args.quick else ROUNDS[device.type]
    gpu = device.type != "cpu"
    figures = {"machine": describe_machine(device), "device": "GPU" if gpu else "CPU",
               "torch": torch.__version__, "numpy": numpy.__version__, "threads": torch.get_num_threads(),
               "precision": str(dtype), "rounds": rounds}
    print(", ".join(f"{name} {value}" for name, value in figures.items()))
    figures["images_per_second"] = {}
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(load_embedded(folder, IMAGES[device.type]), device, gpu, dtype, rounds, seconds)
        for name, pair in PAIRS.items():
            for title, row in rows_of(name, pair, setup):
                figures["images_per_second"][title] = row
                first = figures["images_per_second"][name]["plain"]
                more = f", {row['ours'] / first:.1f} to plain at batch {pair.batch_size}" * (title != name)
                print(f"{title:30} plain {shown(row['plain']):>8}  ours {shown(row['ours']):>8} images/s  ratio "
                      f"{row['ratio']:.2f} ({row['ratio_min']:.2f} .. {row['ratio_max']:.2f}){more}", flush=True)
    write_json(args.out, figures)
    print(f"{time.perf_counter() - began:.0f} s; wrote {args.out}")
    return 0


if __name__ == "__main__":
    run_main(main)
