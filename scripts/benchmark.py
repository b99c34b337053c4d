"""Measure this project's defaults against the plain loops of `scripts/plain.py`, alternating, in one run.

    bash scripts/benchmark.sh [--device cpu|cuda] [--quick] [--out runs/benchmark.json]
    bash scripts/benchmark.sh --scaling

Both train the same networks with the same batch size on the same embedded images. Every round times plain, then
ours; the ratio is the median over rounds, its spread the smallest and largest round. Sampling compares the default
sampler with the plain 1000 steps, so images that are equally good and not equal. Time to the first step, the memory
it takes and its floating-point operations come from a fresh process each, after its imports and with the images
drawn; the operations are compared with those of a large matrix product on the same machine, which is what can be
reached there.

Beside the JSON file stand the figures as a plot and as tables, one of them the epochs an hour that several
processes would reach: computed from the throughput of one, the size of the gradients and the bandwidth.
`--scaling` measures cost against the size of the data set and of the batch instead (`scripts/scaling.py`).
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from common.batches import Batches, MicroBatches
from common.checkpoint import RELEASED
from common.cli import Parser, add_device_flags, run_main
from common.datasets import DIGIT_SIZE, ImageSet, load_readable
from common.device import (
    autocast,
    describe_machine,
    peak_memory,
    place,
    seed_everything,
    select_device,
    select_dtype,
    synchronize,
)
from common.ema import EMA
from common.files import whole, write_json, write_text
from common.images import seeded_normal, to_float, to_uint8
from dann import train as dann_train
from dann.inputs import network_input, scale_range
from dann.networks import DANN
from dann.predict import predict
from diffusion import train as diffusion_train
from diffusion.generate import DISTILLED, chain, load_network
from diffusion.schedule import make_schedule
from diffusion.unet import ConditionalUNet
from gan import train as gan_train
from gan.models import build_discriminator, build_generator
from scripts import plain, scaling
from scripts.plain import BATCH_SIZE, EVALUATION_BATCH_SIZE, PngFiles, Stopwatch, Work, drawn

EPOCH = 50_000  # images; MNIST-M's training set has 48,000
PROCESSES = (1, 2, 4, 8, 64)
# Bytes a second one way, as their makers state them; what all-reduce reaches is less.
LINKS = {"NVLink 4": 450e9, "PCIe 4.0 x16": 32e9, "Ethernet 100 Gbit/s": 12.5e9, "Ethernet 10 Gbit/s": 1.25e9}


def our_batches(images: ImageSet, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (B, 3, H, W) uint8 and labels (B,) for ever, from resident tensors."""
    resident = images.images.to(device)
    labels = images.labels.to(device) if images.labels is not None else torch.zeros(len(resident), device=device)
    batches = Batches(len(resident), batch_size, seed=0)
    while True:
        index = batches.next().to(device)
        yield resident[index], labels[index]


def our_diffusion_training(device: torch.device, dtype: torch.dtype) -> Work:
    """Return one step of `diffusion.train`."""
    args = diffusion_train.parse_args([])
    model, schedule = place(ConditionalUNet(), device), make_schedule(args.schedule).to(device)
    ema, whole = EMA(model, args.ema_decay), MicroBatches()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batches = Stopwatch(our_batches(drawn()["mnistm"], BATCH_SIZE["diffusion"], device))

    def step() -> int:
        images, labels = next(batches)
        diffusion_train.train_step(model, ema, optimiser, schedule, to_float(images), labels, whole, args, dtype)
        return len(images)

    return Work(step, (batches,), (model,))


def our_gan_training(device: torch.device, dtype: torch.dtype) -> Work:
    """Return one step of `gan.train --model dcgan`."""
    args = gan_train.parse_args(["--model", "dcgan"])
    generator, discriminator = (place(build({"model": "dcgan", "width": 64}), device)
                                for build in (build_generator, build_discriminator))
    g_ema = EMA(generator, args.ema_decay)
    g_optimiser, d_optimiser = (torch.optim.Adam(network.parameters(), lr=lr, betas=(0.5, 0.999), fused=True)
                                for network, lr in ((generator, args.g_lr), (discriminator, args.d_lr)))
    batches = Stopwatch(our_batches(drawn()["face"], BATCH_SIZE["gan"], device))

    def step() -> int:
        images, _ = next(batches)
        gan_train.train_step(generator, discriminator, g_ema, g_optimiser, d_optimiser, None, to_float(images), 0, args,
                             dtype)
        return len(images)

    return Work(step, (batches,), (generator, discriminator))


def our_dann_training(device: torch.device, dtype: torch.dtype) -> Work:
    """Return one step of `dann.train --recipe plain`, augmentation and all."""
    model = place(DANN(), device)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    pair = ("mnistm", "usps")
    source, target = (Stopwatch(our_batches(drawn()[domain], BATCH_SIZE["dann"], device))
                      for domain in pair)

    def step() -> int:
        (images, labels), (target_images, _) = next(source), next(target)
        x = network_input(images, scale=scale_range(*pair), recolour=True)
        target_x = network_input(target_images, scale=scale_range(pair[1], pair[1]), recolour=True)
        dann_train.train_step(model, optimiser, x, labels, target_x, None, True, 0.5, dtype)
        return len(images) + len(target_images)

    return Work(step, (source, target), (model,))


def our_diffusion_evaluation(device: torch.device, dtype: torch.dtype) -> Work:
    """Return one evaluation of our network."""
    work = plain.evaluation(place(ConditionalUNet(), device), device)

    def evaluate() -> float:
        with autocast(device, dtype):
            return work.step()

    return Work(evaluate)


def our_diffusion_sampling(device: torch.device, dtype: torch.dtype) -> Work:
    """Return one of the few steps of `diffusion.inference`."""
    network = load_network(RELEASED / DISTILLED, device)
    pairs = [(number % 10, number) for number in range(EVALUATION_BATCH_SIZE)]
    return plain.sampling(lambda: chain(network, network.setting, 0, pairs, device, dtype), network.setting.steps)


def our_gan_sampling(device: torch.device, dtype: torch.dtype) -> Work:
    """Return the drawing of a batch of faces as `gan.inference` does it."""
    generator = place(build_generator({"model": "dcgan", "width": 64}), device).eval()

    @torch.inference_mode()
    def step() -> int:
        z = seeded_normal([(0, i) for i in range(BATCH_SIZE["gan"])], (generator.z_dim,))
        return len(to_uint8(generator(z.to(device))).cpu())

    return Work(step)


def our_dann_inference(device: torch.device, dtype: torch.dtype) -> Work:
    """Return the reading of a folder of digits as `dann.inference` does it."""
    model = place(DANN(), device)
    files = PngFiles(drawn()["usps"])

    def step() -> int:
        images, _ = load_readable(files.folder.name, DIGIT_SIZE)
        return len(predict(model, images.images, True, device)[1])

    return Work(step)


PAIRS = {
    "diffusion training": (plain.plain_diffusion_training, our_diffusion_training),
    "GAN training": (plain.plain_gan_training, our_gan_training),
    "DANN training": (plain.plain_dann_training, our_dann_training),
    "diffusion evaluation": (plain.plain_diffusion_evaluation, our_diffusion_evaluation),
    "diffusion sampling": (plain.plain_diffusion_sampling, our_diffusion_sampling),
    "GAN sampling": (plain.plain_gan_sampling, our_gan_sampling),
    "DANN inference": (plain.plain_dann_inference, our_dann_inference),
}

TRAINERS = {"diffusion": "diffusion training", "gan": "GAN training", "dann": "DANN training"}


def measure(work: Work, device: torch.device, seconds: float) -> tuple[float, float]:
    """Repeat `work` for at least `seconds`; return images/s and the share of the time that data were waited for."""
    synchronize(device)
    waited = sum(batches.seconds for batches in work.batches)
    start, images = time.perf_counter(), 0.0
    while time.perf_counter() - start < seconds:
        images += work.step()
    synchronize(device)
    elapsed = time.perf_counter() - start
    return images / elapsed, (sum(batches.seconds for batches in work.batches) - waited) / elapsed


def compare(plain: Work, ours: Work, device: torch.device, rounds: int, seconds: float) -> dict[str, float]:
    """Time both alternately; return medians, the ratio's spread, and the shares of waiting for data."""
    plain.step(), ours.step()  # the first call allocates and picks kernels
    pairs = [(measure(plain, device, seconds), measure(ours, device, seconds)) for _ in range(rounds)]
    ratios = [fast / slow for (slow, _), (fast, _) in pairs]
    (plain_rate, plain_wait), (our_rate, our_wait) = (map(statistics.median, zip(*side, strict=True))
                                                      for side in zip(*pairs, strict=True))
    return {"plain": plain_rate, "ours": our_rate, "ratio": statistics.median(ratios), "ratio_min": min(ratios),
            "ratio_max": max(ratios), "plain_waiting": plain_wait, "ours_waiting": our_wait}


def first_step(make: Callable[[torch.device, torch.dtype], Work], device: torch.device,
               dtype: torch.dtype) -> dict[str, float]:
    """Build `make`'s work and do it once; this is the child.

    Returns:
        seconds to the end of the first step, bytes it took at most, and floating-point operations an image.
    """
    start, before = time.perf_counter(), peak_memory(device)
    seed_everything(0)
    work = make(device, dtype)
    work.step()
    synchronize(device)
    taken = {"first_step": time.perf_counter() - start, "memory": peak_memory(device) - before}
    with FlopCounterMode(display=False) as counter:
        images = work.step()
    return taken | {"operations": counter.get_total_flops() / images}


def in_fresh_process(function: Callable, *args: object) -> dict:
    """Call a function in a process that has imported what this module does and has the images, and nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scripts.scaling", "gan.train", "diffusion.train", "dann.train"])
    with context.Pool(1, plain.take, (drawn(),)) as pool:
        return pool.apply(function, args)


def matrix_product(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of a large matrix product, the best of five."""
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        a @ a
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])


def epochs_per_hour(images_per_second: float, batch_size: int, gradient_bytes: int, processes: int,
                    bytes_per_second: float) -> float:
    """Predict how often an hour N processes, each with a batch of its own of the size measured, see EPOCH images.

    A step takes what it takes alone, and a ring all-reduce of the gradients, which nothing hides (Patarasuk & Yuan
    2009): each process sends and receives 2 (N - 1) / N times their size.
    """
    step = batch_size / images_per_second + 2 * (processes - 1) / processes * gradient_bytes / bytes_per_second
    return 3600 * processes * batch_size / step / EPOCH


def cost(images_per_second: float, work: Work) -> dict:
    """Return what `epochs_per_hour` says of a trainer, by link and number of processes."""
    size = sum(4 * parameter.numel() for network in work.networks for parameter in network.parameters())
    batch = int(work.step())
    return {"gradient_bytes": size, "batch_size": batch, "epochs_per_hour": {
        link: {n: epochs_per_hour(images_per_second, batch, size, n, speed) for n in PROCESSES}
        for link, speed in LINKS.items()}}


def shown(rate: float) -> str:
    """Return a rate for reading: two digits of one below 1."""
    return f"{rate:,.1f}" if rate >= 1 else f"{rate:.2g}"


def speed_table(figures: dict) -> str:
    """Return images a second of both sides, and how many times as fast ours is, as Markdown."""
    lines = ["| images/s | plain | ours | ratio |", "|---|---|---|---|"]
    for name, row in figures["images_per_second"].items():
        lines.append(f"| {name} | {shown(row['plain'])} | {shown(row['ours'])} | {row['ratio']:.1f} "
                     f"({row['ratio_min']:.1f} to {row['ratio_max']:.1f}) |")
    return "\n".join(lines) + "\n"


def work_table(figures: dict) -> str:
    """Return what both sides wait for, take and reach, as Markdown."""
    lines = ["| plain / ours | waiting for data | memory | first step | of a matrix product |", "|---|---|---|---|---|"]
    for name, row in figures["images_per_second"].items():
        sides = row["fresh_plain"], row["fresh_ours"]
        memory, first = (" / ".join(form(side[key]) for side in sides) for key, form in (
            ("memory", lambda x: f"{x / 2**20:.0f} MiB"), ("first_step", lambda x: f"{x:.1f} s")))
        reached = " / ".join(f"{row[side] * fresh['operations'] / figures['matrix_product']:.0%}"
                             for side, fresh in zip(("plain", "ours"), sides, strict=True))
        lines.append(f"| {name} | {row['plain_waiting']:.0%} / {row['ours_waiting']:.0%} | {memory} | {first} "
                     f"| {reached} |")
    return "\n".join(lines) + "\n"


def cost_table(figures: dict, links: Iterable[str] = LINKS) -> str:
    """Return the epochs an hour of several processes over some of LINKS, as Markdown."""
    lines = [f"| epochs of {EPOCH:,} images an hour | gradients | link | {' | '.join(f'N = {n}' for n in PROCESSES)} |",
             "|---" * (3 + len(PROCESSES)) + "|"]
    for name, row in figures["costs"].items():
        for link in links:
            lines.append(f"| {name} | {row['gradient_bytes'] / 1e6:.1f} MB | {link} | "
                         f"{' | '.join(map(shown, row['epochs_per_hour'][link].values()))} |")
    return "\n".join(lines) + "\n"


def tables(figures: dict) -> str:
    """Return all figures as Markdown."""
    return "\n".join([
        f"{figures['machine']}, torch {figures['torch']}, {figures['precision']}, median of {figures['rounds']} "
        "rounds; `bash scripts/benchmark.sh`.\n",
        speed_table(figures), work_table(figures),
        "Predicted and not measured: N processes, each with the batch measured above, and an all-reduce of the "
        "gradients that nothing hides.\n",
        cost_table(figures)])


def plot(figures: dict, path: Path) -> None:
    """Draw the ratios with their spread."""
    rows = dict(reversed(figures["images_per_second"].items()))
    figure = Figure(figsize=(7, 0.5 + 0.4 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ratios = [row["ratio"] for row in rows.values()]
    spread = [[row["ratio"] - row["ratio_min"] for row in rows.values()],
              [row["ratio_max"] - row["ratio"] for row in rows.values()]]
    axes.barh(list(rows), ratios, xerr=spread, capsize=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel(f"times as fast as the plain loop ({figures['machine']})")
    with whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def measure_scaling(device: torch.device, dtype: torch.dtype, quick: bool) -> dict[str, dict]:
    """Return cost against the size of the data set and of the batch."""
    loading, batches = {}, {}
    for size in scaling.QUICK_SIZES if quick else scaling.SIZES:
        with tempfile.TemporaryDirectory() as folder:
            scaling.write_digits(Path(folder), size)
            row = loading[size] = {which: in_fresh_process(scaling.load, Path(folder)) for which in ("first", "second")}
        first, second = row["first"], row["second"]
        print(f"loading {size:7,} PNGs: first {first['seconds']:.2f} s, second {second['seconds']:.3f} s, "
              f"ratio {first['seconds'] / second['seconds']:.0f}; memory {first['memory']:.2f} and "
              f"{second['memory']:.2f} of the uint8 size", flush=True)
    for task, name in TRAINERS.items():
        batches[name] = {}
        for size in scaling.QUICK_BATCHES if quick else scaling.BATCHES:
            row = batches[name][size] = in_fresh_process(scaling.train, PAIRS[name][1], task, size, device, dtype,
                                                         0.1 if quick else 5)
            print(f"{name}, batch {size:3}: {row['images_per_second']:8.1f} images/s, "
                  f"{row['memory'] / 2**20:6.0f} MiB", flush=True)
    return {"loading": loading, "batches": batches}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_device_flags(parser)
    parser.add_argument("--quick", action="store_true", help="one short round instead of five; small sizes")
    parser.add_argument("--scaling", action="store_true", help="measure cost against sizes instead")
    parser.add_argument("--out", metavar="JSON", type=Path, help="(default: runs/benchmark.json, runs/scaling.json); "
                        "plot and tables stand beside it")
    args = parser.parse_args(argv)
    if args.out is None:
        args.out = Path("runs", "scaling.json" if args.scaling else "benchmark.json")
    if args.out.suffix != ".json":
        parser.error(f"--out: got {args.out}, expected a name that ends in .json")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device = select_device(args.device)
    dtype = select_dtype(device, args.precision)
    rounds, seconds = (1, 0.1) if args.quick else (5, 5)
    figures = {"machine": describe_machine(), "torch": torch.__version__, "numpy": numpy.__version__,
               "threads": torch.get_num_threads(), "precision": str(dtype), "rounds": rounds}
    print(", ".join(f"{name} {value}" for name, value in figures.items()))
    if args.scaling:
        figures |= measure_scaling(device, dtype, args.quick)
        write_json(args.out, figures)
        scaling.plot(figures, args.out.with_suffix(".png"))
        print(f"wrote {args.out} and {args.out.with_suffix('.png')}")
        return 0
    figures |= {"matrix_product": matrix_product(device, dtype), "images_per_second": {}, "costs": {}}
    for name, makers in PAIRS.items():
        fresh = [in_fresh_process(first_step, make, device, dtype) for make in makers]
        seed_everything(0)
        theirs, ours = (make(device, dtype) for make in makers)
        row = compare(theirs, ours, device, rounds, seconds)
        figures["images_per_second"][name] = row | {"fresh_plain": fresh[0], "fresh_ours": fresh[1]}
        print(f"{name:22} plain {shown(row['plain']):>8}  ours {shown(row['ours']):>8} images/s  "
              f"ratio {row['ratio']:.2f} ({row['ratio_min']:.2f} .. {row['ratio_max']:.2f})", flush=True)
        if name in TRAINERS.values():
            figures["costs"][name] = cost(row["ours"], ours)
    write_json(args.out, figures)
    write_text(args.out.with_suffix(".md"), tables(figures))
    plot(figures, args.out.with_suffix(".png"))
    print(f"wrote {args.out}, and beside it the tables (.md) and the plot (.png)")
    return 0


if __name__ == "__main__":
    run_main(main)
