"""Measure this project's defaults against the plain loops of `scripts/plain.py`.

    bash scripts/benchmark.sh [--device cpu|cuda] [--quick] [--out runs/benchmark.json]

Both sides train the same networks with the same batch size on the same embedded images. Each round times the plain
loop, then ours; the ratio is the median over rounds, its spread the smallest and the largest. For sampling, our
default sampler is compared with the plain 1000 steps: the images differ and are about equally good. First step, peak
memory and floating-point operations come from fresh processes that have done their imports and have the images. The
operations are compared with the rate of a large matrix product on the same machine, a practical upper limit.

The figures go to --out as JSON, and beside it as tables (.md) and a plot (.png).
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from common.batches import Batches
from common.checkpoint import RELEASED
from common.cli import Parser, add_device_flags, add_force_flag, run_main
from common.data.folder import ImageSet, load_digits, load_faces, load_readable
from common.device import describe_machine, peak_memory, place, select_device, select_dtype, synchronize
from common.ema import EMA
from common.files import atomic_path, require_new, write_json, write_text
from common.images import DIGIT_SIZE, to_float, to_uint8
from common.randomness import seeded_normal
from common.tables import markdown
from dann import train as dann_train
from dann.inputs import network_input, scale_range
from dann.networks import DANN
from dann.predict import predict
from diffusion import train as diffusion_train
from diffusion.pipeline import DISTILLED, load_pipeline, sample
from diffusion.schedule import make_schedule
from diffusion.unet import ConditionalUNet
from gan import train as gan_train
from gan.models import build_discriminator, build_generator
from scripts import plain
from scripts.plain import BATCH_SIZE, DCGAN, EVALUATION_BATCH_SIZE, Images, Work, png_files, timed

IMAGES = 512  # per data set


def our_batches(images: ImageSet, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (B, 3, H, W) uint8 and labels (B,) without end, from resident tensors."""
    resident = images.images.to(device)
    labels = images.labels.to(device) if images.labels is not None else torch.zeros(len(resident), device=device)
    batches = Batches(len(resident), batch_size, seed=0)
    while True:
        index = batches.next().to(device)
        yield resident[index], labels[index]


def our_diffusion_training(images: Images, device: torch.device, dtype: torch.dtype) -> Work:
    """Train as diffusion.train does."""
    args = diffusion_train.parse_args(["--data", "builtin"])
    model, schedule = place(ConditionalUNet(), device), make_schedule(args.schedule).to(device)
    ema, optimizer = EMA(model, args.ema_decay), torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    for (x_0, labels), waited in timed(our_batches(images["mnistm"], BATCH_SIZE["diffusion"], device)):
        diffusion_train.train_step(model, ema, optimizer, schedule, to_float(x_0), labels, dtype=dtype,
                                   label_dropout=args.label_dropout, prediction=args.prediction, min_snr=args.min_snr)
        yield len(x_0), waited


def our_gan_training(images: Images, device: torch.device, dtype: torch.dtype) -> Work:
    """Train as gan.train --model dcgan does."""
    args = gan_train.parse_args(["--model", "dcgan", "--data", "builtin"])
    generator, discriminator = place(build_generator(DCGAN), device), place(build_discriminator(DCGAN), device)
    g_ema = EMA(generator, args.ema_decay)
    optimizers = [torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True)
                  for network in (generator, discriminator)]
    for (real, _), waited in timed(our_batches(images["face"], BATCH_SIZE["gan"], device)):
        gan_train.train_step(generator, discriminator, g_ema, *optimizers, to_float(real), 0, loss=args.loss,
                             augmented=args.augment, r1=args.r1, dtype=dtype)
        yield len(real), waited


def our_dann_training(images: Images, device: torch.device, dtype: torch.dtype) -> Work:
    """Train as dann.train --recipe plain does, with its augmentation."""
    model = place(DANN(), device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    pair = "mnistm", "usps"
    source, target = (our_batches(images[domain], BATCH_SIZE["dann"], device) for domain in pair)
    for ((x, labels), (target_x, _)), waited in timed(zip(source, target, strict=True)):
        x, target_x = (network_input(batch, scale=scale_range(domain, pair[1]), recolour=True)
                       for batch, domain in zip((x, target_x), pair, strict=True))
        dann_train.train_step(model, optimizer, x, labels, target_x, None, True, 0.5, dtype)
        yield len(x) + len(target_x), waited


def our_diffusion_evaluation(images: Images, device: torch.device, dtype: torch.dtype) -> Work:
    """Evaluate our U-Net."""
    return plain.evaluation(place(ConditionalUNet(), device), device, dtype)


def our_diffusion_sampling(images: Images, device: torch.device, dtype: torch.dtype) -> Work:
    """Take the few steps of diffusion.inference."""
    pipeline = load_pipeline(RELEASED / DISTILLED, device)
    pairs = [(number % 10, number) for number in range(EVALUATION_BATCH_SIZE)]
    return plain.sampling(lambda: sample(pipeline, pipeline.setting, 0, pairs, device, dtype), pipeline.setting.steps)


@torch.no_grad()
def our_gan_sampling(images: Images, device: torch.device, dtype: torch.dtype) -> Work:
    """Generate batches of faces as gan.inference does."""
    generator = place(build_generator(DCGAN), device).eval()
    while True:
        z = seeded_normal([(0, i) for i in range(BATCH_SIZE["gan"])], (generator.z_dim,))
        yield len(to_uint8(generator(z.to(device))).cpu()), 0.0


def our_dann_inference(images: Images, device: torch.device, dtype: torch.dtype) -> Work:
    """Predict the digits of a folder as dann.inference does."""
    model = place(DANN(), device)
    with tempfile.TemporaryDirectory() as folder:
        png_files(images["usps"]._replace(labels=None), folder)
        while True:
            found, _ = load_readable(f"{folder}/0", DIGIT_SIZE)
            yield len(predict(model, found.images, True, device)[1]), 0.0


PAIRS = {
    "diffusion training": (plain.diffusion_training, our_diffusion_training),
    "GAN training": (plain.gan_training, our_gan_training),
    "DANN training": (plain.dann_training, our_dann_training),
    "diffusion evaluation": (plain.diffusion_evaluation, our_diffusion_evaluation),
    "diffusion sampling": (plain.diffusion_sampling, our_diffusion_sampling),
    "GAN sampling": (plain.gan_sampling, our_gan_sampling),
    "DANN inference": (plain.dann_inference, our_dann_inference),
}


def measure(work: Work, device: torch.device, seconds: float) -> tuple[float, float]:
    """Repeat `work` for at least `seconds`; return images/s and the share of the time spent waiting for data."""
    synchronize(device)
    start, images, waited = time.perf_counter(), 0.0, 0.0
    while time.perf_counter() - start < seconds:
        done, wait = next(work)
        images, waited = images + done, waited + wait
    synchronize(device)
    elapsed = time.perf_counter() - start
    return images / elapsed, waited / elapsed


def compare(plain: Work, ours: Work, device: torch.device, rounds: int, seconds: float) -> dict[str, float]:
    """Time both in turn; return medians, the spread of the ratio, and the shares of time spent waiting for data."""
    next(plain), next(ours)  # the first step allocates memory and picks kernels
    pairs = [(measure(plain, device, seconds), measure(ours, device, seconds)) for _ in range(rounds)]
    ratios = [fast / slow for (slow, _), (fast, _) in pairs]
    (plain_rate, plain_wait), (our_rate, our_wait) = (map(statistics.median, zip(*side, strict=True))
                                                      for side in zip(*pairs, strict=True))
    return {"plain": plain_rate, "ours": our_rate, "ratio": statistics.median(ratios), "ratio_min": min(ratios),
            "ratio_max": max(ratios), "plain_waiting": plain_wait, "ours_waiting": our_wait}


def first_step(make: Callable[[Images, torch.device, torch.dtype], Work], images: Images, device: torch.device,
               dtype: torch.dtype) -> dict[str, float]:
    """Return the seconds and bytes that the first step takes, and operations per image; run in a fresh process."""
    start, before = time.perf_counter(), peak_memory(device)
    torch.manual_seed(0)
    work = make(images, device, dtype)
    next(work)
    synchronize(device)
    costs = {"first_step": time.perf_counter() - start, "memory": peak_memory(device) - before}
    with FlopCounterMode(display=False) as counter:
        done, _ = next(work)
    return costs | {"operations": counter.get_total_flops() / done}


def in_fresh_process(function: Callable, *args: object) -> dict:
    """Call a function in a new process that has this module's imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scripts.plain", "gan.train", "diffusion.train", "dann.train"])
    with context.Pool(1) as pool:
        return pool.apply(function, args)


def matrix_product(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations per second of a large matrix product, the best of five."""
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    times = [time.perf_counter()]
    for _ in range(6):  # the first one is a warm-up
        a @ a
        synchronize(device)
        times.append(time.perf_counter())
    return 2 * size**3 / min(end - start for start, end in pairwise(times[1:]))


def shown(rate: float) -> str:
    """Format a rate: one decimal, or two significant digits below 1."""
    return f"{rate:,.1f}" if rate >= 1 else f"{rate:.2g}"


def speed_table(figures: dict) -> str:
    """Return images/s of both sides and their ratio as Markdown."""
    return markdown(["images/s", "plain", "ours", "ratio"], [
        [name, shown(row["plain"]), shown(row["ours"]),
         f"{row['ratio']:.1f} ({row['ratio_min']:.1f} to {row['ratio_max']:.1f})"]
        for name, row in figures["images_per_second"].items()])


def work_table(figures: dict) -> str:
    """Return data wait, peak memory, time to the first step and fraction of peak matmul as Markdown."""
    def cells(row: dict, side: str) -> tuple[str, ...]:
        fresh = row[f"fresh_{side}"]
        return (f"{row[f'{side}_waiting']:.0%}", f"{fresh['memory'] / 2**20:.0f} MiB", f"{fresh['first_step']:.1f} s",
                f"{row[side] * fresh['operations'] / figures['matrix_product']:.0%}")

    return markdown(["plain / ours", "data wait", "peak memory", "first step", "fraction of peak matmul"], [
        [name, *map(" / ".join, zip(cells(row, "plain"), cells(row, "ours"), strict=True))]
        for name, row in figures["images_per_second"].items()])


def tables(figures: dict) -> str:
    """Return all figures as Markdown."""
    return (f"{figures['machine']}, torch {figures['torch']}, {figures['precision']}, median of {figures['rounds']} "
            f"rounds; `bash scripts/benchmark.sh`.\n\n{speed_table(figures)}\n{work_table(figures)}")


def plot(figures: dict, path: Path) -> None:
    """Plot the ratios with their spread."""
    rows = dict(reversed(figures["images_per_second"].items()))
    figure = Figure(figsize=(7, 0.5 + 0.4 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    low, ratio, high = ([row[key] for row in rows.values()] for key in ("ratio_min", "ratio", "ratio_max"))
    axes.barh(list(rows), ratio, xerr=[numpy.subtract(ratio, low), numpy.subtract(high, ratio)], capsize=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel=f"speed relative to the plain loop ({figures['machine']})")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_device_flags(parser)
    parser.add_argument("--quick", action="store_true", help="one short round instead of five long ones")
    parser.add_argument("--out", metavar="JSON", type=Path, default=Path("runs", "benchmark.json"))
    add_force_flag(parser)
    args = parser.parse_args(argv)
    if args.out.suffix != ".json":
        parser.error(f"--out: got {args.out}, expected a name that ends in .json")
    require_new(args.force, *(args.out.with_suffix(suffix) for suffix in (".json", ".md", ".png")))
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device = select_device(args.device)
    dtype = select_dtype(device, args.precision)
    rounds, seconds = (1, 0.1) if args.quick else (5, 5)
    figures = {"machine": describe_machine(device), "torch": torch.__version__, "numpy": numpy.__version__,
               "threads": torch.get_num_threads(), "precision": str(dtype), "rounds": rounds}
    print(", ".join(f"{name} {value}" for name, value in figures.items()))
    figures |= {"matrix_product": matrix_product(device, dtype), "images_per_second": {}}
    images = {name: load_digits("builtin", name, "train") for name in ("mnistm", "usps")}
    images = {name: ImageSet(*(part if part is None else part[:IMAGES] for part in every))
              for name, every in (images | {"face": load_faces("builtin", "train")}).items()}
    for name, makers in PAIRS.items():
        fresh = [in_fresh_process(first_step, make, images, device, dtype) for make in makers]
        torch.manual_seed(0)
        row = compare(*(make(images, device, dtype) for make in makers), device, rounds, seconds)
        figures["images_per_second"][name] = row | {"fresh_plain": fresh[0], "fresh_ours": fresh[1]}
        print(f"{name:22} plain {shown(row['plain']):>8}  ours {shown(row['ours']):>8} images/s  "
              f"ratio {row['ratio']:.2f} ({row['ratio_min']:.2f} .. {row['ratio_max']:.2f})", flush=True)
    write_json(args.out, figures)
    write_text(args.out.with_suffix(".md"), tables(figures))
    plot(figures, args.out.with_suffix(".png"))
    print(f"wrote {args.out}, and beside it the tables (.md) and the plot (.png)")
    return 0


if __name__ == "__main__":
    run_main(main)
