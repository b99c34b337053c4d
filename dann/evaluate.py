"""Build the domain adaptation table from finished runs of dann.train.

    python -m dann.evaluate runs/dann-mnistm-usps-* --out report/dann.md
    python -m dann.evaluate --confusion runs/dann-mnistm-usps-dann-plus

A row is what the network was trained on and how, a column a pair of domains; a cell is the accuracy on the
target, with the standard deviation over seeds where there are several. A last table is the oracle: the accuracy
on test of the preview with the best accuracy on val, which only someone with target labels can choose. `--confusion`
adds for each run how often the target's validation digits (a row each) are read as which (a column each). `--out`
writes the tables as Markdown, and the numbers of the cells beside it as JSON.
"""

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path

import torch

from common.cli import Parser, run_main
from common.datasets import load_digits
from common.device import select_device
from common.errors import UserError
from common.files import write_json, write_text
from dann.predict import load_network, predict

ROWS = {("source", None): "trained on source", ("dann", "plain"): "DANN", ("dann", "plus"): "plus",
        ("target", None): "trained on target"}
SPLITS = {"val": "accuracy on val, %", "test": "accuracy on test, %",
          "oracle": "accuracy on test of the oracle's step (chosen by target labels, used nowhere), %"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("runs", metavar="RUN_DIR", type=Path, nargs="+", help="run folders of dann.train")
    parser.add_argument("--confusion", action="store_true", help="add the confusion matrix of each run")
    parser.add_argument("--out", metavar="TABLE.md", type=Path)
    args = parser.parse_args(argv)
    if args.out is not None and args.out.suffix != ".md":
        parser.error(f"--out: got {args.out}, expected a name that ends in .md")
    return args


def read_results(run_dirs: list[Path]) -> list[dict]:
    """Return each run's result.json; runs that differ in more than the seed may not share a cell."""
    results, steps, seeds = [], {}, {}
    for run_dir in run_dirs:
        try:
            result = json.loads((run_dir / "result.json").read_text())
        except (OSError, json.JSONDecodeError):
            raise UserError(f"{run_dir} has no result.json: finish it with --resume auto") from None
        cell = row_of(result), column_of(result)
        if result["steps"] != steps.setdefault(cell, result["steps"]):
            raise UserError(f"{run_dir}: got {result['steps']} steps, expected {steps[cell]} like the others "
                            "of its cell: leave it out")
        if seeds.setdefault((cell, result["seed"]), run_dir) is not run_dir:
            raise UserError(f"{run_dir}: same settings and seed as {seeds[cell, result['seed']]}: "
                            "leave one out")
        results.append(result)
    return results


def row_of(result: dict) -> str:
    """Return the row's title."""
    return ", ".join([ROWS[result["mode"], result["recipe"]], *result["changes"]])


def column_of(result: dict) -> str:
    """Return the column's title."""
    pair = f"{result['source']} -> {result['target']}"
    return f"{pair} (builtin)" if result["data"] == "builtin" else pair


def build_table(results: list[dict]) -> list[dict]:
    """Return one dict a cell: row, column, seeds, and for each split the mean and standard deviation."""
    groups: dict[tuple[str, str], list[dict]] = {}
    order = list(ROWS)
    for result in sorted(results, key=lambda r: (order.index((r["mode"], r["recipe"])), r["changes"], r["seed"])):
        groups.setdefault((row_of(result), column_of(result)), []).append(result)
    cells = []
    for (row, column), runs in groups.items():
        cell = {"row": row, "column": column, "steps": runs[0]["steps"], "seeds": [run["seed"] for run in runs]}
        for split in SPLITS:
            rows = [run["oracle"] if split == "oracle" else run for run in runs]
            scores = [row["test" if split == "oracle" else split] for row in rows if "test" in row or split == "val"]
            if scores:
                spread = statistics.stdev(scores) if len(scores) > 1 else None
                cell[split] = {"mean": statistics.mean(scores), "std": spread}
        cells.append(cell)
    return cells


def to_markdown(cells: list[dict], splits: Iterable[str] = SPLITS) -> str:
    """Lay the cells out as one Markdown table a split, in percent."""
    blocks = []
    for split in splits:
        found = {(cell["row"], cell["column"]): cell for cell in cells if split in cell}
        if found:
            rows, columns = (list(dict.fromkeys(pair)) for pair in zip(*found, strict=True))
            lines = [[SPLITS[split], *columns], ["---"] * (len(columns) + 1)]
            lines += [[row, *(_shown(found.get((row, column)), split) for column in columns)] for row in rows]
            blocks.append(_laid_out(lines))
    return "\n".join(blocks)


def confusion(run_dir: Path, result: dict) -> str:
    """Return a run's confusion matrix on the target's validation digits, as a Markdown table."""
    device = select_device("auto")
    model, model_args = load_network(run_dir / "last.pt", device)
    digits = load_digits(result["data"], result["target"], "val")
    _, predicted = predict(model, digits.images, model_args["standardise"], device)
    counts = torch.bincount(10 * digits.labels + predicted, minlength=100).view(10, 10)
    title = f"{row_of(result)}, {column_of(result)}, seed {result['seed']}: digits of val, read as"
    lines = [[title, *range(10)], ["---"] * 11, *([digit, *row] for digit, row in enumerate(counts.tolist()))]
    return _laid_out(lines)


def _laid_out(lines: list[list]) -> str:
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _shown(cell: dict | None, split: str) -> str:
    if cell is None:
        return "-"
    mean, std = cell[split]["mean"], cell[split]["std"]
    return f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f} ({len(cell['seeds'])} seeds)")


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    results = read_results(args.runs)
    cells = build_table(results)
    table = to_markdown(cells)
    if args.confusion:
        table = "\n".join([table, *map(confusion, args.runs, results)])
    print(table, end="")
    if args.out is not None:
        write_text(args.out, table)
        write_json(args.out.with_suffix(".json"), cells)
    return 0


if __name__ == "__main__":
    run_main(main)
