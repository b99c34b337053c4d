"""Rebuild the tables, numbers and pictures of README.md and hw2_report.md from stored results and released weights.

    bash scripts/report.sh            # all of it: the documents in seconds, the pictures in minutes
    bash scripts/report.sh --text     # the documents alone
    bash scripts/report.sh --check    # write nothing; a line and exit code 2 for what is not as it would be made

A document holds regions, `<!-- KIND: WHAT -->` to `<!-- end -->`, and what stands between is made here:

    table: NAME             one of TABLES
    network: NAME           a printed network, one of NETWORKS
    training: NAME.pt       steps, batch size, seed, time and machine, from weights/manifest.json
    value: FILE KEYS FORM   one number of a JSON file, e.g. report/digits.json accuracy .1%; keys are joined by `/`, a
                            list counts from 0; FORM is Python's format, and of a list the mean is shown

The JSON files are what the evaluate, compare and benchmark commands wrote. report/figures.json records of every
picture its SHA-256 and that of the weights or results it shows, so that the check can tell without drawing. The
pictures of nearest neighbours need real images, those of t-SNE real digits and the runs of
`bash scripts/train_dann.sh --seeds 0`; without, they are left as they are.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import nn

from common.checkpoint import sha256
from common.cli import Parser, add_data_flag, run_main
from common.errors import UserError
from common.files import write_json, write_text
from common.images import save_picture
from dann import evaluate as dann_evaluate
from dann import tsne
from dann.networks import DANN
from dann.networks import KIND as DANN_KIND
from diffusion import compare
from diffusion import evaluate as diffusion_evaluate
from diffusion import inference as diffusion_inference
from diffusion.generate import DISTILLED
from diffusion.unet import ConditionalUNet
from gan import evaluate as gan_evaluate
from gan import inference as gan_inference
from gan.models import build_discriminator, build_generator
from scripts import benchmark, scaling

PROJECT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "hw2_report.md")
MANIFEST = "weights/manifest.json"
FIGURES_JSON = "report/figures.json"
END = "<!-- end -->"
MARKER = re.compile(rf"<!-- \w+: .+? -->|{END}")
REGION = re.compile(rf"<!-- (\w+): (.+?) -->(.*?){END}", re.DOTALL)

# Scores of released weights; the manifest has them as well.
SCORES = {"dcgan.pt": "report/dcgan.json", "sagan.pt": "report/sagan.json",
          "diffusion.pt": "report/digits-teacher.json", DISTILLED: "report/digits.json"}
# What `diffusion.compare` says about released weights.
COMPARISONS = {"report/samplers.json": "diffusion.pt", "report/full-chain.json": "diffusion.pt",
               "report/full-chain-distilled.json": DISTILLED, "report/distilled.json": DISTILLED}
# What was learnt from the released diffusion.pt, and the comparison of each student.
STUDENTS = {"guidance 2": "report/distilled-guidance.json", "guidance 2, then 8 steps": "report/distilled-8.json",
            "guidance 2, then 8, then 4 steps": "report/distilled-4.json",
            "guidance 2, then 8, 4, then 2 steps": "report/distilled-2.json",
            "guidance 1.75, then 8 steps (released)": "report/distilled.json"}
# Narrow networks, the default but for width and learning rate, and changes of it.
RECIPES = {"velocity, cosine schedule, min-SNR; 3e-3": "report/recipe-base.json",
           "learning rate 1e-3": "report/recipe-lr1e-3.json", "noise": "report/recipe-noise.json",
           "no min-SNR": "report/recipe-nosnr.json",
           "the reference's: noise, linear schedule, no min-SNR": "report/recipe-reference.json"}
FULL_CHAIN = {"nothing": "report/full-chain.json",
              "guidance 1.75, then 8 steps (released)": "report/full-chain-distilled.json"}
RELEASED_FACES = {"DCGAN (A)": SCORES["dcgan.pt"], "SAGAN (B)": SCORES["sagan.pt"]}
FACES_AT_25_EPOCHS = {"DCGAN, tutorial": "report/dcgan-25-plain.json", "+ average of G": "report/dcgan-25-average.json",
                      "+ average, augmentation": "report/dcgan-25.json",
                      "+ average, falling rates": "report/dcgan-25-decay.json",
                      "+ faster average, falling rates": "report/dcgan-25-faster.json",
                      "SAGAN, falling rates, G's half of D's": "report/sagan-25.json",
                      "SAGAN, falling rates, both alike": "report/sagan-25-equal.json",
                      "the same without attention": "report/sagan-25-no-attention.json"}
# The best of them, shorter, and what else a flag adds.
FACE_OPTIONS_AT_12_EPOCHS = {
    "DCGAN, faster average, falling rates": "report/dcgan-12.json", "+ hinge loss": "report/dcgan-12-hinge.json",
    "+ spectral norm in D": "report/dcgan-12-spectral.json", "+ R1, weight 0.1": "report/dcgan-12-r1-0.1.json",
    "+ R1, weight 1": "report/dcgan-12-r1.json", "+ LeCam, weight 0.01": "report/dcgan-12-lecam-0.01.json",
    "+ LeCam, weight 0.3": "report/dcgan-12-lecam.json"}
ATTENTION = {"SAGAN, 1,800 steps": "report/sagan-attention.json",
             "without attention, 3,600 steps": "report/sagan-no-attention.json"}
# What `gan.evaluate` adds where it can, its title, and how it is shown.
MORE_FACE_SCORES = {"near_duplicates": ("near-duplicates", ".1%"), "suspicious": ("close to a training face", ".1%"),
                    "one_face": ("exactly one face", ".1%"), "fid": ("FID", ".1f")}


# Regions


def result(path: str) -> Any:
    """Read a JSON file of the project."""
    return json.loads((PROJECT / path).read_text())


def faces_table(folders: dict[str, str]) -> str:
    """Lay out the scores of folders of faces as Markdown; the distance is SWD x1000.

    Args:
        folders: what a folder is, and the JSON file of `gan.evaluate` about it.
    """
    scored = {title: result(path) for title, path in folders.items()}
    a, *others = scored.values()
    if any(a[name] != b[name] for b in others for name in ("reference", "images", "swd_real")):
        raise ValueError("they were not measured against the same faces")
    more = {name: about for name, about in MORE_FACE_SCORES.items() if all(name in b for b in scored.values())}

    def line(title: str, scores: dict, suffix: str = "") -> str:
        distances = scores["swd" + suffix]
        cells = [format(distance, ".1f") for distance in (*distances, statistics.mean(distances))]
        cells.append(format(scores["variety" + suffix], ".1f"))
        cells += [format(scores[name + suffix], form) if name + suffix in scores else "-"
                  for name, (_, form) in more.items()]
        return f"| {' | '.join([title, *cells])} |\n"

    titles = [f"{a['images']} images against {a['reference']}", "64 px", "32 px", "16 px", "mean", "variety",
              *(title for title, _ in more.values())]
    return "".join([f"| {' | '.join(titles)} |\n", "|---" * len(titles) + "|\n",
                    *(line(title, scores) for title, scores in scored.items()), line("real against real", a, "_real")])


def by_network(about: str, comparisons: dict[str, str]) -> str:
    """Lay out comparisons of several networks as one Markdown table, of each the fewest evaluations first.

    Args:
        about: title of the first column.
        comparisons: what it says of a network, and the JSON file of `diffusion.compare` about it.
    """
    rows = [(name, row) for name, path in comparisons.items()
            for row in sorted(result(path)["rows"], key=lambda row: row["evaluations"])]
    lines = [(name, compare.to_markdown([row]).splitlines()) for name, row in rows]
    head, rule = lines[0][1][:2]
    return "\n".join([f"| {about} {head}", f"| --- {rule}", *(f"| {name} {row}" for name, (*_, row) in lines), ""])


def dann_table(split: str) -> str:
    """Return the table of one split of `dann.evaluate`."""
    return dann_evaluate.to_markdown(result("report/dann.json"), (split,))


TABLES: dict[str, Callable[[], str]] = {
    "faces": partial(faces_table, RELEASED_FACES),
    "faces at 25 epochs": partial(faces_table, FACES_AT_25_EPOCHS),
    "face options at 12 epochs": partial(faces_table, FACE_OPTIONS_AT_12_EPOCHS),
    "attention": partial(faces_table, ATTENTION),
    "distillation": partial(by_network, "learnt", STUDENTS),
    "full chain": partial(by_network, "learnt", FULL_CHAIN),
    "recipes": partial(by_network, "recipe", RECIPES),
    "samplers": lambda: compare.to_markdown(result("report/samplers.json")["rows"]),
    **{f"dann {split}": partial(dann_table, split) for split in dann_evaluate.SPLITS},
    "speed": lambda: benchmark.speed_table(result("report/benchmark.json")),
    "work": lambda: benchmark.work_table(result("report/benchmark.json")),
    "costs": lambda: benchmark.cost_table(result("report/benchmark.json"), ("Ethernet 10 Gbit/s",)),
}

# From the model_args of the released weights.
NETWORKS: dict[str, tuple[str, Callable[[dict], nn.Module]]] = {
    "dcgan discriminator": ("dcgan.pt", build_discriminator), "dcgan generator": ("dcgan.pt", build_generator),
    "sagan discriminator": ("sagan.pt", build_discriminator), "sagan generator": ("sagan.pt", build_generator),
    "diffusion": ("diffusion.pt", lambda model_args: ConditionalUNet(model_args["width"])),
    "dann": ("dann-mnistm-usps.pt", lambda model_args: DANN()),
}


def network(name: str) -> str:
    """Print a network as a block of code."""
    weights, build = NETWORKS[name]
    with torch.device("meta"):  # its layers without its numbers
        return f"```\n{build(result(MANIFEST)[weights]['model_args'])}\n```\n"


def training(weights: str) -> str:
    """Say in some words how a released file was trained."""
    entry = result(MANIFEST)[weights]
    steps, batch, seconds = entry["step"], entry["args"]["batch_size"], entry["seconds"]
    time = f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
    images = f"{steps * batch:,} images{' of each domain' if entry['kind'] == DANN_KIND else ''}"
    return (f"{steps:,} steps of batch {batch} ({images}), seed {entry['seed']}, {time} of wall time "
            f"({entry['versions']['machine']})")


def value(what: str) -> str:
    """Look a number up: FILE KEYS FORM."""
    path, rest = what.split(" ", 1)
    keys, form = rest.rsplit(" ", 1)
    found = result(path)
    for key in keys.split("/"):
        found = found[int(key) if isinstance(found, list) else key]
    return format(statistics.mean(found) if isinstance(found, list) else found, form)


KINDS: dict[str, Callable[[str], str]] = {
    "table": lambda name: TABLES[name](), "network": network, "training": training, "value": value}


def rewritten(name: str) -> tuple[str, list[str]]:
    """Make all regions of a document anew.

    Returns:
        the text, and which regions are not what the document has.

    Raises:
        UserError: a marker without its partner, or one that names what there is not.
    """
    text = (PROJECT / name).read_text()
    markers = MARKER.findall(text)
    for opening, end in zip_longest(markers[::2], markers[1::2]):
        if opening == END or end != END:
            raise UserError(f"{name}: {opening}: a region begins with <!-- KIND: WHAT --> and ends with {END}")
    stale = []

    def remade(match: re.Match) -> str:
        kind, what, old = match.groups()
        try:
            new = KINDS[kind](what)
        except (LookupError, TypeError, ValueError, OSError) as error:
            raise UserError(f"{name}: <!-- {kind}: {what} -->: cannot be made ({error!r}): mend the marker, or the "
                            "file that it names") from None
        if "\n" in new:
            new = f"\n{new}"
        if new != old:
            stale.append(f"{kind}: {what}")
        return f"<!-- {kind}: {what} -->{new}{END}"

    return REGION.sub(remade, text), stale


# Pictures


class Figure(NamedTuple):
    """A picture of report/.

    shows: the released weights and the results of report/ that it shows, by file name. draw: of a path and --data.
    real: it is of real images or the runs on them too, which may not be at hand.
    """

    shows: tuple[str, ...]
    draw: Callable[[Path, str], None]
    real: bool = False


def by_command(command: ModuleType, weights: str, *flags: str) -> Figure:
    """Return a picture that an inference command draws."""
    def draw(path: Path, data: str) -> None:
        command.main([str(path), "--weights", str(PROJECT / "weights" / weights), *flags])

    return Figure((weights,), draw)


def by_plot(plot: Callable[[Any, Path], None], name: str) -> Figure:
    """Return a picture of a result in report/."""
    def draw(path: Path, data: str) -> None:
        plot(result(f"report/{name}"), path)

    return Figure((name,), draw)


def by_neighbours(infer: ModuleType, evaluate: ModuleType, weights: str, reference: Callable[[str], list[str]],
                  *flags: str) -> Figure:
    """Return a picture of released images beside the nearest training images.

    Args:
        infer, evaluate: the task's commands; evaluate draws.
        reference: the data -> flags of `evaluate`.
        flags: of `infer`.
    """
    def draw(path: Path, data: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            images = str(Path(folder, "images"))
            infer.main([images, "--weights", str(PROJECT / "weights" / weights), *flags])
            evaluate.main([images, *reference(data), "--neighbours", str(path)])

    return Figure((weights,), draw, real=True)


def draw_strip(path: Path, data: str) -> None:
    """Paste the grids of faces, enlarged, and of digits, beside it and as high, into one picture."""
    faces, digits = (Image.open(PROJECT / "report" / f"{name}.png") for name in (gan_inference.DEFAULT_MODEL, "digits"))
    faces = faces.resize((2 * faces.width, 2 * faces.height), Image.Resampling.NEAREST)
    digits = digits.resize((faces.height, faces.height))
    strip = Image.new("RGB", (faces.width + 20 + digits.width, faces.height), "white")
    strip.paste(faces, (0, 0))
    strip.paste(digits, (strip.width - digits.width, 0))
    save_picture(strip, path)


def by_tsne(before: Path, after: Path, *released: str) -> Figure:
    """Return a picture of what two networks make of real digits; `released` names those of them that are."""
    def draw(path: Path, data: str) -> None:
        tsne.main([str(before), str(after), "--data", data, "--out", str(path)])

    return Figure(released, draw, real=True)


def tsne_figures(target: str, released: str) -> dict[str, Figure]:
    """Return the pictures of plain DANN and of the released network of recipe plus, for a pair from mnistm."""
    before, plain = (Path("runs", f"dann-mnistm-{target}-{run}-seed0", "last.pt") for run in ("source", "dann-plain"))
    stem = f"tsne-{released.removeprefix('dann-').removesuffix('.pt')}"
    return {f"{stem}.png": by_tsne(before, plain),
            f"{stem}-plus.png": by_tsne(before, PROJECT / "weights" / released, released)}


FIGURES = {  # in the order in which they are drawn
    "dcgan.png": by_command(gan_inference, "dcgan.pt", "--model", "dcgan", "--grid", "32"),
    "sagan.png": by_command(gan_inference, "sagan.pt", "--model", "sagan", "--grid", "32"),
    "faces.gif": by_command(gan_inference, f"{gan_inference.DEFAULT_MODEL}.pt", "--interpolate"),
    "faces-nearest.png": by_neighbours(gan_inference, gan_evaluate, f"{gan_inference.DEFAULT_MODEL}.pt",
                                       lambda data: ["--reference", f"{data}/face/val"],
                                       "--model", gan_inference.DEFAULT_MODEL),
    "digits.png": by_command(diffusion_inference, DISTILLED, "--grid"),
    "digits-nearest.png": by_neighbours(diffusion_inference, diffusion_evaluate, DISTILLED,
                                        lambda data: ["--data", data]),
    # From the grid's noise, by a sampler that adds none, and so to the grid's first 0.
    "process.png": by_command(diffusion_inference, "diffusion.pt", "--process", "--sampler", "dpm-solver++",
                              "--steps", "10"),
    "process.gif": by_command(diffusion_inference, "diffusion.pt", "--gif", "--per-digit", "2"),
    "full-chain.png": by_plot(lambda found, path: compare.plot(found["rows"], path), "full-chain.json"),
    "benchmark.png": by_plot(benchmark.plot, "benchmark.json"),
    "scaling.png": by_plot(scaling.plot, "scaling.json"),
    "strip.png": Figure((f"{gan_inference.DEFAULT_MODEL}.pt", DISTILLED), draw_strip),
    **tsne_figures("usps", "dann-mnistm-usps.pt"),
    **tsne_figures("builtin-svhn", "dann-mnistm-svhn.pt"),
}


def digest(name: str) -> str:
    """Return the SHA-256 of what a picture shows: of released weights as the manifest has it."""
    released = result(MANIFEST)
    return released[name]["sha256"] if name in released else sha256(PROJECT / "report" / name)


def record() -> dict[str, dict]:
    """Return what is recorded of the pictures, by name."""
    return result(FIGURES_JSON) if (PROJECT / FIGURES_JSON).exists() else {}


def draw_figures(data: str) -> None:
    """Draw every picture that can be drawn here, and record it."""
    recorded = record()
    for name, figure in FIGURES.items():
        path = PROJECT / "report" / name
        try:
            if figure.real and data == "builtin":
                raise UserError("real images are not at hand: name their folder with --data")
            figure.draw(path, data)
        except UserError as mistake:
            if not figure.real:
                raise
            print(f"left report/{name} as it is: {mistake}")
            continue
        recorded[name] = {"sha256": sha256(path), "shows": {shown: digest(shown) for shown in figure.shows}}
        write_json(PROJECT / FIGURES_JSON, recorded)


# The check


def stale_figures() -> list[str]:
    """Return a line for each picture that is not the recorded one, or shows other weights or results than there are."""
    recorded, lines = record(), []
    for name, figure in FIGURES.items():
        path, known = PROJECT / "report" / name, recorded.get(name)
        if known is None or not path.exists() or sha256(path) != known["sha256"]:
            lines.append(f"report/{name}: not the picture that {FIGURES_JSON} records")
        elif changed := [shown for shown in figure.shows if known["shows"].get(shown) != digest(shown)]:
            lines.append(f"report/{name}: drawn from another {', '.join(changed)} than there is")
    return lines


def foreign_results() -> list[str]:
    """Return a line for each result that does not belong to the released weights."""
    manifest = result(MANIFEST)
    lines = [f"{path}: not the scores that {MANIFEST} has for {weights}: evaluate it, and release it with --scores"
             for weights, path in SCORES.items() if result(path) != manifest[weights]["scores"]]
    return lines + [f"{path}: measured with other weights than {weights}: run diffusion.compare again"
                    for path, weights in COMPARISONS.items()
                    if result(path)["about"]["weights"] != manifest[weights]["sha256"]]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_data_flag(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--text", action="store_true", help="rewrite the documents, draw nothing")
    how.add_argument("--check", action="store_true", help="write nothing, name what is not as it would be made")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    documents = {name: rewritten(name) for name in DOCUMENTS}
    lines = []
    for name, (text, stale) in documents.items():
        if args.check:
            lines += [f"{name}: <!-- {region} -->: not what its source says" for region in stale]
        elif stale:
            write_text(PROJECT / name, text)
            print(f"wrote {name}: {', '.join(stale)}")
    if not args.check and not args.text:
        draw_figures(args.data)
    lines = [f"{line}: bash scripts/report.sh makes it anew" for line in (*lines, *stale_figures())] + foreign_results()
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    return 2 if lines else 0


if __name__ == "__main__":
    run_main(main)
