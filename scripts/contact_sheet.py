"""Put what scripts/demo.sh made on one sheet: before and after each training, with the scores in the titles.

    python -m scripts.contact_sheet runs/demo --out runs/demo/sheet.png
"""

import argparse
import csv
from pathlib import Path

from PIL import Image

from common.cli import Parser, add_force_flag, ending, run_main
from common.data.folder import load_folder
from common.errors import UserError
from common.files import atomic_path, read_json, require_new
from common.images import DIGIT_SIZE, FACE_SIZE, grid
from dann.tsne import by_digit

EXAMPLES = Path(__file__).resolve().parent.parent / "docs/examples/svhn"  # files named DIGIT_NUMBER.png
COLUMNS = 2


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("demo", metavar="DIR", type=Path, help="the folder of scripts/demo.sh, after it has ended")
    parser.add_argument("--out", metavar="PNG", type=ending(".png"), required=True)
    add_force_flag(parser)
    args = parser.parse_args(argv)
    require_new(args.force, args.out)
    return args


def panels(demo: Path) -> list[tuple[str, Image.Image]]:
    """Return title and picture of each panel, COLUMNS in a row."""
    with open(demo / "predictions.csv", newline="") as file:
        read = [row["image_name"][0] == row["label"] for row in csv.DictReader(file)]
    faces, digits, tuned, source, plus = (
        read_json(demo / name, "what scripts/demo.sh leaves")
        for name in ("faces.json", "digits.json", "diffusion/done", "dann-source/result.json", "dann-plus/result.json"))
    early = min((demo / "gan/samples").glob("[0-9]*.png"), default=None)
    if early is None:
        raise UserError(f"{demo}/gan/samples has no previews: run bash scripts/demo.sh")
    features = Image.open(demo / "tsne.png")
    return [
        ("Faces by the released DCGAN", Image.open(demo / "released-faces.png")),
        (f"Street numbers: the released network\nreads {sum(read)} of {len(read)} correctly",
         tiles(EXAMPLES, DIGIT_SIZE, 20, 5)),
        (f"Embedded portraits: DCGAN after {int(early.stem)} steps", Image.open(early)),
        (f"At the end: SWD {faces['swd_mean']:.0f} (real: {faces['swd_mean_real']:.0f}), "
         f"{faces['near_duplicates']:.0%} near-duplicates", tiles(demo / "faces", FACE_SIZE, 32, 8)),
        ("Digits by the released one-step network", Image.open(demo / "released-digits.png")),
        (f"The released U-Net after {tuned['steps']} steps on white digits:\n"
         f"{digits['accuracy']:.1%} are read correctly (real: {digits['classifier_accuracy_on_val']:.1%})",
         tiles(demo / "digits", DIGIT_SIZE, 100, 10)),
        (f"Trained on MNIST-M alone:\n{source['test']:.1%} of the street numbers are read correctly",
         by_digit(features, 0)),
        (f"Adapted to street numbers without labels (plus):\n{plus['test']:.1%} are read correctly",
         by_digit(features, 1))]


def tiles(folder: Path, size: int, count: int, columns: int) -> Image.Image:
    """Arrange the first images of a folder, of `size` pixels, on a grid."""
    return grid(load_folder(folder, size).images[:count], columns)


def draw(titled: list[tuple[str, Image.Image]], path: Path) -> None:
    """Write the panels as one PNG."""
    from matplotlib.figure import Figure  # not pyplot, which opens windows and keeps global state

    rows = len(titled) // COLUMNS
    heights = [max(picture.height / picture.width for _, picture in titled[COLUMNS * row:][:COLUMNS])
               for row in range(rows)]
    figure = Figure(figsize=(12, 6 * sum(heights) + 0.6 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, height_ratios=heights)
    for axis, (title, picture) in zip(axes.flat, titled, strict=True):
        axis.imshow(picture, interpolation="antialiased")
        axis.set_title(title, fontsize=14)
        axis.axis("off")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    draw(panels(args.demo), args.out)
    print(args.out)
    return 0


if __name__ == "__main__":
    run_main(main)
