"""Compare samplers on the same weights, noise and digits: scores against network evaluations.

    python -m diffusion.compare dpm-solver++:10:2 ddim:20:2 heun:5:2:200-800 --out report/samplers.json

A setting is SAMPLER:STEPS:GUIDANCE, or SAMPLER:STEPS:GUIDANCE:LOW-HIGH for guidance at these times only. Each
draws the images that `diffusion.inference` would and is scored as `diffusion.evaluate` does. An evaluation is one
image's way through the network; where guidance is on, a step takes two. `--out` writes the scores as JSON, the table
as Markdown and a plot of distance against evaluations; settings that the JSON has already are kept.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from common.checkpoint import RELEASED, sha256
from common.cli import Parser, add_data_flag, add_device_flags, positive_int, run_main
from common.datasets import load_digits
from common.device import select_device, select_dtype, synchronize
from common.errors import UserError
from common.files import whole, write_json, write_text
from common.images import to_uint8
from diffusion.classifier import DigitClassifier, default_path, load_or_train, predict
from diffusion.evaluate import score
from diffusion.generate import ALL_TIMES, FULL, Network, Setting, chain, load_network

SEED = 0
COLUMNS = ("sampler", "steps", "guidance", "evaluations an image", "accuracy", "Frechet distance", "variety",
           "seconds")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_data_flag(parser)
    add_device_flags(parser)
    parser.add_argument("settings", metavar="SETTING", nargs="+", help="e.g. dpm-solver++:10:2, see above")
    parser.add_argument("--weights", metavar="PATH", type=Path, default=RELEASED / "diffusion.pt")
    parser.add_argument("--domain", default="mnistm")
    parser.add_argument("--per-digit", metavar="N", type=positive_int, default=100)
    parser.add_argument("--batch-size", metavar="N", type=positive_int, default=100)
    parser.add_argument("--out", metavar="PATH.json", type=Path)
    args = parser.parse_args(argv)
    if args.out is not None and args.out.suffix != ".json":
        parser.error(f"--out: got {args.out}, expected a name that ends in .json")
    args.settings = {text: read_setting(text) for text in args.settings}
    return args


def read_setting(text: str) -> Setting:
    """Read SAMPLER:STEPS:GUIDANCE or SAMPLER:STEPS:GUIDANCE:LOW-HIGH."""
    try:
        sampler, steps, guidance, *interval = text.split(":")
        low, high = interval[0].split("-") if interval else ALL_TIMES
        setting = Setting(sampler, int(steps), float(guidance), (int(low), int(high)))
        if len(interval) > 1:
            raise ValueError
    except ValueError:
        raise UserError(f"{text}: expected SAMPLER:STEPS:GUIDANCE, or that and :LOW-HIGH") from None
    if mistake := setting.mistake():
        raise UserError(f"{text}: {mistake}")
    return setting


class Counted(nn.Module):
    """A network that counts the images it has seen."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.images = network, 0

    def forward(self, x: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        """Call the network: x (B, 3, 28, 28) and what else `ConditionalUNet.forward` takes."""
        self.images += len(x)
        return self.network(x, *args)


def measure(network: Network, setting: Setting, per_digit: int, batch_size: int, device: torch.device,
            dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """Draw images with one setting.

    Returns:
        images (N, 3, 28, 28) uint8, their digits (N,) int64, and what they cost.
    """
    counted = Counted(network.model)
    network = network._replace(model=counted)
    pairs = [(digit, number) for digit in range(10) for number in range(1, per_digit + 1)]
    synchronize(device)
    start, made = time.perf_counter(), []
    for i in tqdm(range(0, len(pairs), batch_size), unit="batch", leave=False, disable=None):
        *_, last = chain(network, setting, SEED, pairs[i:i + batch_size], device, dtype)
        made.append(to_uint8(last.x).cpu())
    return torch.cat(made), torch.tensor([digit for digit, _ in pairs]), {
        "evaluations": counted.images / len(pairs), "seconds": time.perf_counter() - start}


def read_rows(path: Path, about: dict) -> list[dict]:
    """Return the rows that the JSON file of an earlier comparison has; none where there is no file.

    Raises:
        UserError: it is another file, or what it is about differs.
    """
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text())
        before, rows = dict(content["about"]), list(content["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a comparison of samplers: name another --out") from None
    for name, value in about.items():
        if before.get(name) != value:
            raise UserError(f"{path} has rows of {name} {before.get(name)}, got {value}: name another --out")
    return rows


def to_markdown(rows: list[dict]) -> str:
    """Lay the rows out as a table, the fewest evaluations first."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    for row in sorted(rows, key=lambda row: row["evaluations"]):
        sampler, steps, guidance, *interval = row["setting"].split(":")
        lines.append([sampler, steps, " at t = ".join([guidance, *interval]), f"{row['evaluations']:g}",
                      f"{row['accuracy']:.1%}", f"{row['frechet']:.2f}", f"{row['variety']:.2f}",
                      f"{row['seconds']:.0f}"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plot(rows: list[dict], path: Path) -> None:
    """Draw Frechet distance against evaluations, a line a sampler and guidance, and the floor of real images."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    lines: dict[str, list[tuple[float, float]]] = {}
    for row in sorted(rows, key=lambda row: row["evaluations"]):
        sampler, _, *guidance = row["setting"].split(":")
        lines.setdefault(f"{sampler}, guidance {' at t = '.join(guidance)}", []).append(
            (row["evaluations"], row["frechet"]))
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, points in lines.items():
        if name.startswith(FULL):  # one point far to the right: what the others are to come close to
            axes.axhline(points[0][1], color="black", linewidth=1, linestyle="--", label=f"{name}: 1000 steps")
        else:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=1, label=name)
    axes.axhline(rows[0]["frechet_real"], color="grey", linewidth=1, linestyle=":", label="real against real")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):  # 20 and not 2 x 10^1
        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(LogFormatter())
    axes.set_xlabel("network evaluations an image")
    axes.set_ylabel("Frechet distance to validation digits")
    axes.legend(fontsize=8)
    with whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device = select_device(args.device)
    dtype = select_dtype(device, args.precision)
    network = load_network(args.weights, device)
    for setting in args.settings.values():
        network.check_guidance(setting.guidance, args.weights)
    about = {"weights": sha256(args.weights), "domain": args.domain, "images": 10 * args.per_digit,
             "device": str(device), "threads": torch.get_num_threads(), "dtype": str(dtype)}
    rows = [] if args.out is None else read_rows(args.out, about)
    real = load_digits(args.data, args.domain, "val")
    classifier: DigitClassifier = load_or_train(default_path(args.data, args.domain),
                                                load_digits(args.data, args.domain, "train"), device, dtype)
    real_features, _ = predict(classifier, real.images, device, dtype)

    for text, setting in args.settings.items():
        if text in (row["setting"] for row in rows):
            continue
        images, digits, cost = measure(network, setting, args.per_digit, args.batch_size, device, dtype)
        features, predicted = predict(classifier, images, device, dtype)
        scores = score(*map(np.asarray, (features, digits, predicted, real_features, real.labels)))
        kept = {name: scores[name] for name in ("accuracy", "frechet", "frechet_real", "variety")}
        rows.append({"setting": text, **cost, **kept})
        print(f"{text}: {cost['evaluations']:g} evaluations an image, {cost['seconds']:.0f} s, "
              f"accuracy {kept['accuracy']:.1%}, Frechet distance {kept['frechet']:.2f}, "
              f"variety {kept['variety']:.2f}", flush=True)
        if args.out is not None:
            write_json(args.out, {"about": about, "rows": rows})
            write_text(args.out.with_suffix(".md"), to_markdown(rows))
            plot(rows, args.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    run_main(main)
