"""Compare sampler settings: scores and network evaluations per image, for one network and the same noise.

    python -m diffusion.compare dpm-solver++:10:2 ddim:20:2 --out report/samplers.json

A setting is SAMPLER:STEPS:GUIDANCE. It generates the images that `diffusion.inference` would, and they are scored as in
`diffusion.evaluate`. With guidance other than 1, each step takes two evaluations. `--out` writes the scores as JSON,
and next to it a Markdown table and a plot. Settings that the JSON file already has are not computed again.
"""

import argparse
import contextlib
import json
import math
import time
from pathlib import Path

import torch
from tqdm import tqdm

from common import cli
from common.checkpoint import RELEASED, sha256
from common.data.folder import load_digits
from common.device import select_device, select_dtype, synchronize
from common.errors import UserError
from common.files import atomic_path, write_json, write_text
from common.images import to_uint8
from diffusion.classifier import default_path, load_or_train, predict
from diffusion.evaluate import score
from diffusion.pipeline import FULL, SAMPLERS, Pipeline, Setting, load_pipeline, sample
from diffusion.schedule import NUM_TIMESTEPS

SEED = 0
COLUMNS = "sampler", "steps", "guidance", "evaluations per image", "accuracy", "Frechet distance", "variety", "seconds"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(__doc__)
    cli.add_data_flag(parser)
    cli.add_device_flags(parser)
    parser.add_argument("settings", metavar="SETTING", nargs="+", help="e.g. dpm-solver++:10:2")
    parser.add_argument("--weights", metavar="CKPT", type=Path, default=RELEASED / "diffusion.pt",
                        help="(default: the released network that is not distilled)")
    parser.add_argument("--domain", default="mnistm", help="real digits to compare with (default: %(default)s)")
    parser.add_argument("--per-digit", metavar="N", type=cli.positive_int, default=100,
                        help="images per digit (default: %(default)s)")
    parser.add_argument("--batch-size", metavar="N", type=cli.positive_int, default=100, help="(default: %(default)s)")
    parser.add_argument("--out", metavar="PATH.json", type=Path)
    args = parser.parse_args(argv)
    if args.out is not None and args.out.suffix != ".json":
        parser.error(f"--out: got {args.out}, expected a name that ends in .json")
    args.settings = {text: read_setting(text) for text in args.settings}
    return args


def read_setting(text: str) -> Setting:
    """Parse SAMPLER:STEPS:GUIDANCE; UserError for another form or a value out of range."""
    with contextlib.suppress(ValueError):
        sampler, steps, guidance = text.split(":")
        setting = Setting(sampler, int(steps), float(guidance))
        if sampler in (FULL, *SAMPLERS) and 1 <= setting.steps <= NUM_TIMESTEPS and 0 <= setting.guidance < math.inf:
            return setting
    raise UserError(f"{text}: expected SAMPLER:STEPS:GUIDANCE, with a sampler of {', '.join((FULL, *SAMPLERS))}; "
                    f"1 to {NUM_TIMESTEPS} steps; and a guidance scale >= 0")


def measure(pipeline: Pipeline, setting: Setting, per_digit: int, batch_size: int, device: torch.device,
            dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """Return images (N, 3, 28, 28) uint8, their digits (N,) int64, and the cost: evaluations per image, and seconds."""
    pairs = [(digit, number) for digit in range(10) for number in range(1, per_digit + 1)]
    images, evaluations = [], []
    synchronize(device)
    start = time.perf_counter()
    with pipeline.model.register_forward_pre_hook(lambda model, inputs: evaluations.append(len(inputs[0]))):
        for i in tqdm(range(0, len(pairs), batch_size), unit="batch", leave=False, disable=None):
            *_, last = sample(pipeline, setting, SEED, pairs[i:i + batch_size], device, dtype)
            images.append(to_uint8(last.x).cpu())
    cost = {"evaluations": sum(evaluations) / len(pairs), "seconds": time.perf_counter() - start}
    return torch.cat(images), torch.tensor([digit for digit, _ in pairs]), cost


def read_rows(path: Path, about: dict) -> list[dict]:
    """Return the rows of an earlier comparison, if there is one; UserError if it compared something else."""
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text())
        before, rows = dict(content["about"]), list(content["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a comparison of samplers: name another --out") from None
    for name, value in about.items():
        if before.get(name) != value:
            raise UserError(f"{path} was made with {name} {before.get(name)}, got {value}: name another --out")
    return rows


def to_markdown(rows: list[dict]) -> str:
    """Return the rows as a Markdown table, fewest evaluations first."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    for row in sorted(rows, key=lambda row: row["evaluations"]):
        lines.append([*row["setting"].split(":"), f"{row['evaluations']:g}", f"{row['accuracy']:.1%}",
                      f"{row['frechet']:.2f}", f"{row['variety']:.2f}", f"{row['seconds']:.0f}"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plot(rows: list[dict], path: Path) -> None:
    """Plot Frechet distance against evaluations: one line per sampler and guidance, and the value of real images."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    lines: dict[str, list[tuple[float, float]]] = {}
    for row in sorted(rows, key=lambda row: row["evaluations"]):
        sampler, _, guidance = row["setting"].split(":")
        lines.setdefault(f"{sampler}, guidance {guidance}", []).append((row["evaluations"], row["frechet"]))
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, points in lines.items():
        if name.startswith(FULL):  # one point, far to the right: show it as a horizontal line
            axes.axhline(points[0][1], color="black", linewidth=1, linestyle="--", label=f"{name}: 1000 steps")
        else:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=1, label=name)
    axes.axhline(rows[0]["frechet_real"], color="grey", linewidth=1, linestyle=":", label="real against real")
    axes.set(xscale="log", yscale="log", xlabel="network evaluations per image",
             ylabel="Frechet distance to validation digits")
    for axis in (axes.xaxis, axes.yaxis):  # 20 instead of 2 x 10^1
        axis.set(major_formatter=LogFormatter(), minor_formatter=LogFormatter())
    axes.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device = select_device(args.device)
    dtype = select_dtype(device, args.precision)
    pipeline = load_pipeline(args.weights, device)
    for setting in args.settings.values():
        pipeline.check_guidance(setting.guidance, args.weights)
    about = {"weights": sha256(args.weights), "domain": args.domain, "images": 10 * args.per_digit,
             "device": str(device), "threads": torch.get_num_threads(), "dtype": str(dtype)}
    rows = [] if args.out is None else read_rows(args.out, about)
    real = load_digits(args.data, args.domain, "val")
    classifier = load_or_train(default_path(args.data, args.domain), load_digits(args.data, args.domain, "train"),
                               device, dtype)
    real_features, _ = predict(classifier, real.images, device, dtype)

    for text, setting in args.settings.items():
        if text in (row["setting"] for row in rows):
            continue
        images, digits, cost = measure(pipeline, setting, args.per_digit, args.batch_size, device, dtype)
        features, predicted = predict(classifier, images, device, dtype)
        scores = score(*(x.numpy() for x in (features, digits, predicted, real_features, real.labels)))
        kept = {name: scores[name] for name in ("accuracy", "frechet", "frechet_real", "variety")}
        rows.append({"setting": text, **cost, **kept})
        print("{setting}: {evaluations:g} evaluations per image, {seconds:.0f} s, accuracy {accuracy:.1%}, "
              "Frechet distance {frechet:.2f}, variety {variety:.2f}".format(**rows[-1]), flush=True)
        if args.out is not None:
            write_json(args.out, {"about": about, "rows": rows})
            write_text(args.out.with_suffix(".md"), to_markdown(rows))
            plot(rows, args.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    cli.run_main(main)
