"""Compare sampler settings: scores and network evaluations per image, for one network and the same noise.

    python -m diffusion.compare dpm-solver++:10:2 ddim:20:2 --out report/samplers.json

A setting is SAMPLER:STEPS:GUIDANCE. It generates the images that `diffusion.inference` would, and they are scored as in
`diffusion.evaluate`. With guidance other than 1, each step takes two evaluations. `--out` writes the scores as JSON,
and next to it, with the same name, a Markdown table and a plot. Settings that the JSON file already has are not
computed again; `--force` begins anew.
"""

import argparse
import contextlib
import math
import time
from pathlib import Path

import torch

from common import cli
from common.checkpoint import RELEASED, sha256
from common.data.folder import fingerprint, load_digits
from common.device import avoid_cudnn_attention, synchronize
from common.errors import UserError
from common.files import atomic_path, read_json, require_new, write_json, write_text
from common.scores import small_sample_note
from common.tables import markdown
from diffusion.classifier import classify_real, load_or_train, predict
from diffusion.evaluate import score
from diffusion.pipeline import DDPM, SAMPLERS, Pipeline, Setting, generate, load_pipeline
from diffusion.schedule import NUM_TIMESTEPS

SEED = 0
COLUMNS = "sampler", "steps", "guidance", "evaluations per image", "accuracy", "Frechet distance", "variety", "seconds"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(__doc__)
    cli.add_data_flag(parser)
    cli.add_device_flags(parser)
    cli.add_force_flag(parser)
    parser.add_argument("settings", metavar="SETTING", nargs="+", help="e.g. dpm-solver++:10:2")
    parser.add_argument("--weights", metavar="CKPT", type=Path, default=RELEASED / "diffusion.pt",
                        help="(default: the released network that is not distilled)")
    parser.add_argument("--domain", default="mnistm", help="real digits to compare with")
    parser.add_argument("--per-digit", metavar="N", type=cli.positive_int, default=100, help="images per digit")
    parser.add_argument("--out", metavar="PATH.json", type=cli.ending(".json"))
    args = parser.parse_args(argv)
    if args.out is not None and (args.force or not args.out.exists()):  # else it replaces its own table and plot
        require_new(args.force, args.out, *map(args.out.with_suffix, (".md", ".png")))
    args.settings = {text: read_setting(text) for text in args.settings}
    return args


def read_setting(text: str) -> Setting:
    """Parse SAMPLER:STEPS:GUIDANCE; UserError for another form or a value out of range."""
    with contextlib.suppress(ValueError, KeyError):
        sampler, steps, guidance = text.split(":")
        setting = Setting(sampler, int(steps), float(guidance))
        smallest = {DDPM: NUM_TIMESTEPS, **dict.fromkeys(SAMPLERS, 1)}[sampler]
        if smallest <= setting.steps <= NUM_TIMESTEPS and 0 <= setting.guidance < math.inf:
            return setting
    raise UserError(f"{text}: expected SAMPLER:STEPS:GUIDANCE, with a sampler of {', '.join((DDPM, *SAMPLERS))}; "
                    f"1 to {NUM_TIMESTEPS} steps, for {DDPM} all; and a guidance scale >= 0")


def measure(pipeline: Pipeline, setting: Setting, per_digit: int, device: torch.device,
            dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """Return images (N, 3, 28, 28) uint8, their digits (N,) int64, and the cost: evaluations per image, and seconds.

    On a GPU these seconds include the capture of a graph, for the first setting of each guidance scale.
    """
    pairs = [(digit, number) for digit in range(10) for number in range(1, per_digit + 1)]
    synchronize(device)
    start = time.perf_counter()
    images = generate(pipeline, setting, SEED, pairs, dtype)
    cost = {"evaluations": setting.evaluations, "seconds": time.perf_counter() - start}
    return images, torch.tensor([digit for digit, _ in pairs]), cost


def read_rows(path: Path, about: dict) -> list[dict]:
    """Return the rows of an earlier comparison, if there is one; UserError if it compared something else."""
    if not path.exists():
        return []
    content = read_json(path, "a comparison of samplers: name another --out")
    before, rows = content.get("about"), content.get("rows")
    if not isinstance(before, dict) or not isinstance(rows, list):
        raise UserError(f"{path} is not a comparison of samplers: name another --out")
    for name, value in about.items():
        if before.get(name) != value:
            raise UserError(f"{path} was made with {name} {before.get(name)}, got {value}: name another --out")
    return rows


def to_markdown(rows: list[dict]) -> str:
    """Return the rows as a Markdown table, fewest evaluations first."""
    return markdown(COLUMNS, [
        [*row["setting"].split(":"), f"{row['evaluations']:g}", f"{row['accuracy']:.1%}", f"{row['frechet']:.2f}",
         f"{row['variety']:.2f}", f"{row['seconds']:.0f}"]
        for row in sorted(rows, key=lambda row: row["evaluations"])])


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
        if name.startswith(DDPM):  # one point, far to the right: show it as a horizontal line
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
    device, dtype = cli.select_device_and_dtype(args)
    avoid_cudnn_attention()
    pipeline = load_pipeline(args.weights, device)
    for setting in args.settings.values():
        pipeline.check(setting, args.weights)
    train_set, real = (load_digits(args.data, args.domain, split) for split in ("train", "val"))
    about = {"weights": sha256(args.weights), "domain": args.domain, "data": fingerprint(train_set, real),
             "images": 10 * args.per_digit, "device": str(device), "dtype": str(dtype)}
    rows = [] if args.out is None or args.force else read_rows(args.out, about)
    classifier = load_or_train(None, args.domain, train_set, device, dtype)
    real_features, _ = classify_real(classifier, real, device, dtype)

    for text, setting in args.settings.items():
        if text in (row["setting"] for row in rows):
            print(f"{text}: is in {args.out} already")
            continue
        images, digits, cost = measure(pipeline, setting, args.per_digit, device, dtype)
        features, predicted = predict(classifier, images, device, dtype)
        scores = score(*(x.numpy() for x in (features, digits, predicted, real_features, real.labels)))
        kept = {name: scores[name] for name in ("accuracy", "frechet", "frechet_real", "variety")}
        rows.append({"setting": text, **cost, **kept})
        print("{setting}: {evaluations:g} evaluations per image, {seconds:.0f} s, accuracy {accuracy:.1%}, "
              "Frechet distance {frechet:.2f}, variety {variety:.2f}".format(**rows[-1]), flush=True)
        if args.out is not None:
            write_json(args.out, {"about": about, "rows": rows})
    if args.out is not None:
        write_text(args.out.with_suffix(".md"), to_markdown(rows))
        plot(rows, args.out.with_suffix(".png"))
    for note in small_sample_note(10 * args.per_digit):
        print(note)
    return 0


if __name__ == "__main__":
    cli.run_main(main)
