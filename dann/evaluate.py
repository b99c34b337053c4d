"""Build the domain adaptation table from finished runs of dann.train.

    python -m dann.evaluate runs/dann-mnistm-usps-* --out report/dann.md
    python -m dann.evaluate --confusion runs/dann-mnistm-usps-dann-plus

There is one row per mode and recipe, one column per pair of domains, and one table each for val, test and the oracle. A
cell is the accuracy on the target: mean and standard deviation over seeds. The oracle is the preview with the best
accuracy on val; only target labels can choose it. `--confusion` adds a confusion matrix of each run on val: one row per
digit, one column per predicted digit. `--out` writes the tables as Markdown, and beside it their numbers as JSON.
"""

import argparse
import statistics
from collections.abc import Iterable
from pathlib import Path

import torch

from common.cli import Parser, add_force_flag, run_main
from common.data.folder import load_digits
from common.device import select_device
from common.errors import UserError
from common.files import read_json, require_new, write_json, write_text
from common.tables import markdown
from dann.predict import load_network, predict

ROWS = {("source", None): "trained on source", ("dann", "plain"): "DANN", ("dann", "plus"): "plus",
        ("target", None): "trained on target"}
SPLITS = {"val": "accuracy on val, %", "test": "accuracy on test, %",
          "oracle": "accuracy on test at the oracle's step (chosen by target labels, for comparison only), %"}

ROUNDING = 1e-3  # devices and precisions round differently, which may change a digit or two


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("runs", metavar="RUN_DIR", type=Path, nargs="+", help="finished run folders of dann.train")
    parser.add_argument("--confusion", action="store_true", help="add the confusion matrix of each run")
    parser.add_argument("--out", metavar="TABLE.md", type=Path)
    add_force_flag(parser)
    args = parser.parse_args(argv)
    if args.out is not None:
        if args.out.suffix != ".md":
            parser.error(f"--out: got {args.out}, expected a name that ends in .md")
        require_new(args.force, args.out, args.out.with_suffix(".json"))
    return args


def read_results(run_dirs: list[Path]) -> list[dict]:
    """Return the result.json of each run.

    Raises UserError for one that is missing, foreign or without scores, and for runs of one cell that differ in more
    than the seed.
    """
    results, common, seeds = [], {}, {}
    for run_dir in run_dirs:
        path = run_dir / "result.json"
        result = read_json(path, "the scores of a run of dann.train, which --resume auto finishes")
        try:
            cell = row_of(result), column_of(result)
            if not {"val", "test"} & result.keys():
                raise UserError(f"{run_dir} has no scores, because its target has no labels: leave it out")
            for key in ("steps", "batch_size", "precision", "inputs"):  # results of earlier versions have only steps
                expected = common.setdefault((cell, key), result.get(key))
                if result.get(key) != expected:
                    raise UserError(f"{run_dir}: got {key} {result.get(key)}, expected {expected} like the other runs "
                                    "of its cell: leave it out")
            if seeds.setdefault((cell, result["seed"]), run_dir) is not run_dir:
                raise UserError(f"{run_dir}: same settings and seed as {seeds[cell, result['seed']]}: leave one out")
            build_table([result])  # reads all that is needed
        except (KeyError, TypeError):
            raise UserError(f"{path} does not hold the scores of a run of dann.train: leave it out") from None
        results.append(result)
    return results


def row_of(result: dict) -> str:
    """Return the title of the row, such as "plus, no geometry"."""
    return ", ".join([ROWS[result["mode"], result["recipe"]], *result["changes"]])


def column_of(result: dict) -> str:
    """Return the title of the column, such as "mnistm -> usps"."""
    pair = f"{result['source']} -> {result['target']}"
    return f"{pair} (builtin)" if result["data"] == "builtin" else pair


def build_table(results: list[dict]) -> list[dict]:
    """Return one dict per cell: row, column, steps, seeds, and the mean and standard deviation of each split."""
    groups: dict[tuple[str, str], list[dict]] = {}
    order = list(ROWS)
    for result in sorted(results, key=lambda r: (order.index((r["mode"], r["recipe"])), r["changes"], r["seed"])):
        groups.setdefault((row_of(result), column_of(result)), []).append(result)
    cells = []
    for (row, column), runs in groups.items():
        cell = {"row": row, "column": column, "steps": runs[0]["steps"], "seeds": [run["seed"] for run in runs]}
        for split in SPLITS:
            if split == "oracle":
                scores = [run["oracle"]["test"] for run in runs if run["oracle"] and "test" in run]
            else:
                scores = [run[split] for run in runs if split in run]
            if scores:
                cell[split] = {"mean": statistics.mean(scores),
                               "std": statistics.stdev(scores) if len(scores) > 1 else None}
        cells.append(cell)
    return cells


def to_markdown(cells: list[dict], splits: Iterable[str] = SPLITS) -> str:
    """Return one Markdown table per split, in percent."""
    tables = []
    for split in splits:
        shown = {(cell["row"], cell["column"]): _percent(cell[split], cell["seeds"]) for cell in cells if split in cell}
        if shown:
            rows, columns = (list(dict.fromkeys(titles)) for titles in zip(*shown, strict=True))
            tables.append(markdown([SPLITS[split], *columns],
                                   [[row, *(shown.get((row, column), "-") for column in columns)] for row in rows]))
    return "\n".join(tables)


def confusion(run_dir: Path, result: dict) -> str:
    """Return a run's confusion matrix on the target's validation digits, as a Markdown table.

    Raises UserError if its accuracy is not that of result.json.
    """
    device = select_device("auto")
    model, model_args = load_network(run_dir / "last.pt", device)
    digits = load_digits(result["data"], result["target"], "val")
    _, predicted = predict(model, digits.images, model_args["standardise"], device)
    counts = torch.bincount(10 * digits.labels + predicted, minlength=100).view(10, 10)
    if abs(counts.trace().item() / len(digits.labels) - result.get("val", -1)) > ROUNDING:
        raise UserError(f"{run_dir}: data or last.pt changed since result.json: restore them, or train again")
    title = f"{row_of(result)}, {column_of(result)}, seed {result['seed']}: digits of val, predicted as"
    return markdown([title, *range(10)], [[digit, *row] for digit, row in enumerate(counts.tolist())])


def _percent(score: dict, seeds: list[int]) -> str:
    spread = "" if score["std"] is None else f" ± {100 * score['std']:.1f} ({len(seeds)} seeds)"
    return f"{100 * score['mean']:.1f}{spread}"


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    results = read_results(args.runs)
    cells = build_table(results)
    table = to_markdown(cells)
    if args.confusion:
        table = "\n".join([table, *map(confusion, args.runs, results)])
    if args.out is not None:  # before the table is printed: `| head` closes standard output
        write_text(args.out, table)
        write_json(args.out.with_suffix(".json"), cells)
    print(table, end="")
    return 0


if __name__ == "__main__":
    run_main(main)
