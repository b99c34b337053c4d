"""Render README.md, hw2_report.md and report/networks.md from their templates, and draw the pictures of report/.

    bash scripts/report.sh            # everything: the text in seconds, the pictures in minutes
    bash scripts/report.sh --text     # the text alone
    bash scripts/report.sh --check    # write nothing, name what is stale; exit code 2 if anything is

A template is the document with fields in braces; a colon starts Python's format: `{digits.accuracy:.1%}`.

    {NAME.KEY.KEY}          a value of report/NAME.json; list items are numbered from 0, a whole list shows its mean
    {NAME.ROW.COLUMN.KEY}   a value of a cell of NAME, one of CELLS: `{dann.plus.mnistm -> usps.test.mean:.1%}`
    {weights.NAME.KEY}      a value that weights/manifest.json has of weights/NAME.pt
    {training.NAME}         how weights/NAME.pt was trained: steps, batch size, seed, time, machine
    {network.NAME.PART}     a network of weights/NAME.pt, printed; PART is one of NETWORKS
    {table.NAME}            one of TABLES, or a table of report/tables.json, which names the results in its rows

A brace of the text itself is written twice. The results come from the evaluate and benchmark commands.
report/figures.json has for each picture the commands that draw it and the SHA-256 of the picture and of the weights
or results it shows, so --check compares without drawing. Pictures of real images need --data, those by t-SNE also the
runs of `bash scripts/train_dann.sh --seeds 0`, without and with `--target svhn`; otherwise they are left as they are.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from string import Formatter
from typing import Any

import torch
from PIL import Image
from torch import nn

from common.checkpoint import sha256
from common.cli import Parser, run_main
from common.errors import UserError
from common.files import write_json, write_text
from common.images import save_picture
from common.tables import markdown
from dann import evaluate as dann_evaluate
from dann import tsne, validate
from dann.networks import DANN
from diffusion import evaluate as diffusion_evaluate
from diffusion import inference as diffusion_inference
from diffusion.pipeline import DISTILLED
from diffusion.unet import ConditionalUNet
from gan import evaluate as gan_evaluate
from gan import inference as gan_inference
from gan.models import build_discriminator, build_generator
from scripts import benchmark

PROJECT = Path(__file__).resolve().parent.parent
DOCUMENTS = {"README.md": "report/README.template.md", "hw2_report.md": "report/hw2_report.template.md",
             "report/networks.md": "report/networks.template.md"}
MANIFEST, FIGURES = "weights/manifest.json", "report/figures.json"
COMMANDS = {"gan.inference": gan_inference, "gan.evaluate": gan_evaluate, "diffusion.inference": diffusion_inference,
            "diffusion.evaluate": diffusion_evaluate, "dann.tsne": tsne}

# Results of released weights: their scores, which the manifest has too, and scores of other settings.
SCORES = {"dcgan.pt": "dcgan", "sagan.pt": "sagan", "diffusion.pt": "digits-teacher", DISTILLED: "digits"}
OTHER_SETTINGS = {**{f"samplers-{setting}": "diffusion.pt" for setting in (
    "5-2", "10-1", "10-1.25", "10-1.5", "10-1.75", "10-2", "20-2")}, "digits-10000": DISTILLED}
CELLS = ("dann",)  # results of dann.evaluate
# Columns of a table of scores, if all rows have them: key -> title and format. The SWD is x1000.
FACE_SCORES = {
    "swd_64": ("SWD 64 px", ".1f"), "swd_32": ("32 px", ".1f"), "swd_16": ("16 px", ".1f"), "swd_mean": ("mean", ".1f"),
    "recall": ("recall", ".2f"), "coverage": ("coverage", ".2f"), "near_duplicates": ("near-duplicates", ".1%"),
    "suspicious": ("close to a training face", ".1%"), "one_face": ("exactly one face", ".1%"), "fid": ("FID", ".1f")}
DIGIT_SCORES = {
    "accuracy": ("accuracy", ".1%"), "frechet": ("Frechet distance", ".2f"), "precision": ("precision", ".2f"),
    "recall": ("recall", ".2f"), "coverage": ("coverage", ".2f"), "variety": ("variety", ".2f")}
NETWORKS: dict[str, Callable[[dict], nn.Module]] = {  # built from model_args
    "generator": build_generator, "discriminator": build_discriminator,
    "unet": lambda model_args: ConditionalUNet(model_args["width"]), "dann": lambda model_args: DANN()}


def read_json(path: str) -> Any:
    """Read a JSON file of the project."""
    return json.loads((PROJECT / path).read_text())


def result(name: str) -> Any:
    """Read report/NAME.json."""
    return read_json(f"report/{name}.json")


def scores_table(rows: dict[str, dict]) -> str:
    """Return scores by gan.evaluate or by diffusion.evaluate as Markdown, one row per title, and one of real images."""
    first = next(iter(rows.values()))
    what, columns, same = (("faces", FACE_SCORES, ("images", "reference", "swd_real")) if "swd" in first else
                           ("digits", DIGIT_SCORES, ("images", "frechet_real")))
    if any(first[key] != row[key] for row in rows.values() for key in same):
        raise ValueError("the rows were not measured against the same images")
    real = {key.removesuffix("_real"): value for key, value in first.items() if key.endswith("_real")}
    if what == "digits":
        real |= {"accuracy": first["classifier_accuracy_on_val"], "variety": 1}
    else:
        rows, real = {title: _with_bands(row) for title, row in rows.items()}, _with_bands(real)
    columns = {key: about for key, about in columns.items() if all(key in row for row in rows.values())}
    return markdown([f"{first['images']} {what}", *(title for title, _ in columns.values())],
                    [[title, *(format(row[key], form) if key in row else "-" for key, (_, form) in columns.items())]
                     for title, row in (rows | {f"real {what}": real}).items()])


def _with_bands(scores: dict) -> dict:
    """Add each band of the SWD, and their mean."""
    fine, middle, coarse = scores["swd"]
    return scores | {"swd_64": fine, "swd_32": middle, "swd_16": coarse, "swd_mean": statistics.mean(scores["swd"])}


TABLES: dict[str, Callable[[], str]] = {
    "speed": lambda: benchmark.speed_table(result("benchmark"), result("benchmark-gpu")),
    "dann": lambda: dann_evaluate.map_table(result("dann")),
    "dann-parts": lambda: dann_evaluate.to_markdown(result("dann-parts"), ("test",)),
    "validators": lambda: validate.summary(result("validators"))}


def table(name: str) -> str:
    """Return a table as Markdown."""
    if name in TABLES:
        return TABLES[name]().rstrip()
    rows = {title: result(source) for title, source in result("tables")[name].items()}
    return scores_table(rows).rstrip()


def network(name: str, part: str) -> str:
    """Print a network of weights/NAME.pt as a code block."""
    with torch.device("meta"):  # allocates no weights
        return f"```\n{NETWORKS[part](read_json(MANIFEST)[f'{name}.pt']['model_args'])}\n```"


def training(name: str) -> str:
    """Say in one line how weights/NAME.pt was trained."""
    entry = read_json(MANIFEST)[f"{name}.pt"]
    steps, batch, seconds = entry["step"], entry["args"]["batch_size"], entry["seconds"]
    time = f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
    images = f"{steps * batch:,} images{' of each domain' if entry['kind'] == 'dann' else ''}"
    machine = entry["versions"]["machine"]
    return f"{steps:,} steps of batch {batch} ({images}), seed {entry['seed']}, {time} of wall time ({machine})"


def look_up(field: str) -> Any:
    """Return the value of a template's field."""
    source, *keys = field.split(".")
    if source in ("table", "network", "training"):
        return {"table": table, "network": network, "training": training}[source](*keys)
    if source == "weights":
        keys[0] += ".pt"
    found = read_json(MANIFEST) if source == "weights" else result(source)
    if source in CELLS:
        found = next((cell for cell in found if [cell["row"], cell["column"]] == keys[:2]), {})
        keys = keys[2:]
    for key in keys:
        found = found[int(key) if isinstance(found, list) else key]
    value = statistics.mean(found) if isinstance(found, list) else found
    if not isinstance(value, str | int | float):
        raise TypeError(f"{type(value).__name__}, expected a number or a text")
    return value


def rendered(template: str) -> str:
    """Return a template with its fields filled in.

    Raises:
        UserError: a field names nothing that can be printed, or a brace is alone.
    """
    text = ""
    for number, line in enumerate((PROJECT / template).read_text().splitlines(keepends=True), 1):
        field = ""
        try:
            for literal, field, form, _ in list(Formatter().parse(line)):
                text += literal + ("" if field is None else format(look_up(field), form))
        except (LookupError, TypeError, ValueError, OSError) as mistake:
            raise UserError(f"{template}, line {number}: {{{field}}}: no such value ({mistake!r}): correct the field, "
                            "or write a brace of the text twice") from None
    return text


def draw_strip(path: Path) -> None:
    """Paste DCGAN's faces, enlarged, the digits, and adapted features coloured by digit side by side."""
    faces, digits, features = (Image.open(PROJECT / "report" / f"{name}.png")
                               for name in ("dcgan", "digits", "tsne-mnistm-svhn-plus"))
    side = 2 * faces.height
    tiles = [faces.resize((2 * faces.width, side), Image.Resampling.NEAREST), digits.resize((side, side)),
             tsne.by_digit(features, 1).resize((side, side))]
    strip = Image.new("RGB", (sum(tile.width + 20 for tile in tiles) - 20, side), "white")
    left = 0
    for tile in tiles:
        strip.paste(tile, (left, 0))
        left += tile.width + 20
    save_picture(strip, path)


PLOTS: dict[str, Callable[[Path], None]] = {  # pictures made from files of report/, without a command
    "dann-map.png": lambda path: dann_evaluate.draw_map(result("dann"), path), "strip.png": draw_strip}


def draw(name: str, lines: list[str], data: str | None) -> None:
    """Draw report/NAME: one of PLOTS, or by command lines."""
    out = PROJECT / "report" / name
    if name in PLOTS:
        return PLOTS[name](out)
    with tempfile.TemporaryDirectory() as folder:
        places = {"out": out, "data": data, "weights": PROJECT / "weights", "images": Path(folder, "images")}
        for line in lines:
            command, *argv = line.split()
            COMMANDS[command].main([word.format(**places) for word in argv])


def draw_figures(data: str | None) -> None:
    """Draw and record every picture; one of real images is left as it is where they are missing."""
    figures = read_json(FIGURES)
    for name, figure in figures.items():
        real = any("{data}" in line for line in figure["commands"])
        try:
            if real and data in (None, "builtin"):
                raise UserError("real images are needed: name their folder with --data")
            draw(name, figure["commands"], data)
        except UserError as mistake:
            if not real:
                raise
            print(f"report/{name} not redrawn: {mistake}")
            continue
        figure["shows"] = {shown: digest(shown) for shown in figure["shows"]}
        figure["sha256"] = sha256(PROJECT / "report" / name)
        write_json(PROJECT / FIGURES, figures)


def digest(name: str) -> str:
    """Return the SHA-256 of released weights, as the manifest has it, or of a file of report/."""
    manifest = read_json(MANIFEST)
    return manifest[name]["sha256"] if name in manifest else sha256(PROJECT / "report" / name)


def stale_figures() -> list[str]:
    """Return one line for each picture that is not the recorded one, or that shows older weights or results."""
    lines = []
    for name, figure in read_json(FIGURES).items():
        path = PROJECT / "report" / name
        if not path.exists() or sha256(path) != figure["sha256"]:
            lines.append(f"report/{name}: not the picture that {FIGURES} records")
        elif older := [shown for shown, recorded in figure["shows"].items() if recorded != digest(shown)]:
            lines.append(f"report/{name}: shows an older {', '.join(older)}")
    return lines


def foreign_results() -> list[str]:
    """Return one line for each result that was measured on other weights than the released ones."""
    manifest = read_json(MANIFEST)
    lines = [f"report/{name}.json: not the scores that {MANIFEST} has for {weights}: run its evaluate command again"
             for weights, name in SCORES.items() if result(name) != manifest[weights]["scores"]]
    lines += [f"report/{name}.json: measured with other weights than {weights}: generate and evaluate its images again"
              for name, weights in OTHER_SETTINGS.items()
              if f" weights={manifest[weights]['sha256'][:16]} " not in str(result(name).get("made"))]
    return lines


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--data", metavar="DIR", help="a data folder, for the pictures of real images")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--text", action="store_true", help="render the documents, draw nothing")
    how.add_argument("--check", action="store_true", help="write nothing, name what is stale")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    texts = {name: rendered(template) for name, template in DOCUMENTS.items()}
    stale = [name for name, text in texts.items()
             if not (PROJECT / name).exists() or (PROJECT / name).read_text() != text]
    if not args.check:
        for name in stale:
            write_text(PROJECT / name, texts[name])
            print(f"wrote {name}")
        if not args.text:
            draw_figures(args.data)
        stale = []
    lines = [f"{name}: not what {DOCUMENTS[name]} renders to" for name in stale] + stale_figures()
    lines = [f"{line}: run bash scripts/report.sh" for line in lines] + foreign_results()
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    return 2 if lines else 0


if __name__ == "__main__":
    run_main(main)
