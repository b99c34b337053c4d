"""Build the domain adaptation table from finished runs of dann.train.

    python -m dann.evaluate runs/dann-mnistm-usps-* --out report/dann.md
    python -m dann.evaluate runs/dann-* --map runs/dann.png
    python -m dann.evaluate --confusion runs/dann-mnistm-usps-dann-plus

There is one row per mode and recipe, one column per pair of domains, and one table each for val, test and the oracle. A
cell is the accuracy on the target: mean and standard deviation over seeds. The title of a column has the number of
steps; a cell that differs from it says so. The oracle is the preview with the best accuracy on val; only target labels
can choose it.

A run of mode target uses nothing of its source. It belongs to its target: it counts for every pair with that target,
whatever its --source was, and of two such runs with the same seed the first counts.

`--map` draws the accuracy of all pairs, for the rows without changes, and adds it as a table with one row per pair.
`--confusion` adds a confusion matrix of each run on val: one row per digit, one column per predicted digit. `--out`
writes the tables as Markdown, and beside it their numbers as JSON.
"""

import argparse
import statistics
from collections.abc import Iterable
from pathlib import Path

import torch

from common.cli import Parser, add_force_flag, run_main
from common.data.domains import DOMAIN_CHOICES
from common.data.folder import load_digits
from common.device import select_device
from common.errors import UserError
from common.files import read_json, require_new, write_json, write_text
from common.tables import markdown
from dann import heatmap
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
    parser.add_argument("--map", metavar="PNG", type=Path, help="draw all pairs as a heat map")
    parser.add_argument("--out", metavar="TABLE.md", type=Path)
    add_force_flag(parser)
    args = parser.parse_args(argv)
    for flag, path, suffix in (("--out", args.out, ".md"), ("--map", args.map, ".png")):
        if path is not None and path.suffix != suffix:
            parser.error(f"{flag}: got {path}, expected a name that ends in {suffix}")
    require_new(args.force, args.out, args.out and args.out.with_suffix(".json"), args.map)
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
            source = result["source"] if result["mode"] == "target" else None  # others have it in their column
            if (first := seeds.setdefault((cell, source, result["seed"]), run_dir)) is not run_dir:
                raise UserError(f"{run_dir}: same settings and seed as {first}: leave one out")
            build_table([result])  # reads all that is needed
        except (KeyError, TypeError):
            raise UserError(f"{path} does not hold the scores of a run of dann.train: leave it out") from None
        results.append(result)
    return results


def row_of(result: dict) -> str:
    """Return the title of the row, such as "plus, no geometry"."""
    return ", ".join([ROWS[result["mode"], result["recipe"]], *result["changes"]])


def column_of(result: dict) -> str:
    """Return the title of the column: "mnistm -> usps", or "usps" for a run of mode target."""
    names = [result["target"]] if result["mode"] == "target" else [result["source"], result["target"]]
    if result["data"] == "builtin":
        names = [f"builtin-{name.removeprefix('builtin-')}" for name in names]
    return " -> ".join(names)


def build_table(results: list[dict]) -> list[dict]:
    """Return one dict per cell: row, column, steps, seeds, and the mean and standard deviation of each split."""
    groups: dict[tuple[str, str], dict[int, dict]] = {}
    order = list(ROWS)
    for result in sorted(results, key=lambda r: (order.index((r["mode"], r["recipe"])), r["changes"], r["seed"])):
        groups.setdefault((row_of(result), column_of(result)), {}).setdefault(result["seed"], result)
    cells = []
    for (row, column), of_seed in groups.items():
        runs = list(of_seed.values())
        cell = {"row": row, "column": column, "steps": runs[0]["steps"], "seeds": list(of_seed)}
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
        if columns := _columns(cells, split):
            steps = {title: statistics.mode(cell["steps"] for cell in column.values())
                     for title, column in columns.items()}
            rows = dict.fromkeys(cell["row"] for cell in cells if split in cell)
            tables.append(markdown([SPLITS[split], *(f"{title}, {steps[title]:,} steps" for title in columns)],
                                   [[row, *(_percent(column.get(row), split, steps[title])
                                            for title, column in columns.items())] for row in rows]))
    return "\n".join(tables)


def map_table(cells: list[dict]) -> str:
    """Return a Markdown table with one row per pair of domains and one column per row without changes, in percent.

    The accuracy is that on test, or on val if no run has test. Raises UserError if there is no pair.
    """
    split, steps, _, pairs = _map(cells)
    methods = [row for row in ROWS.values() if any(row in column for column in pairs.values())]
    return markdown([f"{SPLITS[split]}, {steps:,} steps", *methods],
                    [[" -> ".join(pair), *(_percent(column.get(row), split, steps) for row in methods)]
                     for pair, column in pairs.items()])


def draw_map(cells: list[dict], path: Path) -> None:
    """Write what `map_table` shows as a heat map."""
    split, steps, domains, pairs = _map(cells)
    panels = {row: {pair: (column[row][split]["mean"], _other_steps(column[row], steps))
                    for pair, column in pairs.items() if row in column} for row in ROWS.values()}
    on_target = ROWS["target", None]
    last = {target: cell for (_, target), cell in panels.pop(on_target).items()}
    heatmap.draw({row: panel for row, panel in panels.items() if panel}, (on_target, last), domains,
                 f"{SPLITS[split]}, {steps:,} steps", path)


def confusion(run_dir: Path, result: dict) -> str:
    """Return a run's confusion matrix on the target's validation digits, as a Markdown table.

    Raises UserError if its accuracy is not that of result.json.
    """
    device = select_device("auto")
    model, model_args = load_network(run_dir / "last.pt", device)
    digits = load_digits(result["data"], result["target"], "val")
    predicted = predict(model, digits.images, model_args["standardise"], device)[1].argmax(1)
    counts = torch.bincount(10 * digits.labels + predicted, minlength=100).view(10, 10)
    if abs(counts.trace().item() / len(digits.labels) - result.get("val", -1)) > ROUNDING:
        raise UserError(f"{run_dir}: data or last.pt changed since result.json: restore them, or train again")
    title = f"{row_of(result)}, {column_of(result)}, seed {result['seed']}: digits of val, predicted as"
    return markdown([title, *range(10)], [[digit, *row] for digit, row in enumerate(counts.tolist())])


def _columns(cells: list[dict], split: str) -> dict[str, dict[str, dict]]:
    """Return column -> row -> cell with a score on `split`; a cell of a target is in every column of that target."""
    titles = dict.fromkeys(cell["column"] for cell in cells)
    columns = {title: {cell["row"]: cell for cell in cells
                       if split in cell and f" -> {title}".endswith(f" -> {cell['column']}")}
               for title in titles if not any(other.endswith(f" -> {title}") for other in titles)}
    return {title: column for title, column in columns.items() if column}


def _map(cells: list[dict]) -> tuple[str, int, list[str], dict[tuple[str, str], dict[str, dict]]]:
    """Return the split of the map, its most common steps, the domains, and (source, target) -> row -> cell."""
    cells = [cell for cell in cells if cell["row"] in ROWS.values()]
    from_source = [cell for cell in cells if cell["row"] != ROWS["target", None]]
    if not from_source:
        raise UserError("--map shows pairs of domains: name runs of --mode source or dann without changes")
    split = "test" if any("test" in cell for cell in from_source) else "val"
    titles = [cell["column"] for cell in from_source if split in cell]
    names = [name for title in titles for name in title.split(" -> ")]
    domains = sorted(set(names), key=[*DOMAIN_CHOICES, *names].index)  # those that are known no more come last
    columns = _columns(cells, split)
    pairs = {(source, target): columns[title] for source in domains for target in domains
             if (title := f"{source} -> {target}") in titles}
    steps = statistics.mode(cell["steps"] for column in pairs.values() for cell in column.values())
    return split, steps, domains, pairs


def _percent(cell: dict | None, split: str, steps: int) -> str:
    """Return a score; the seeds, if there are several, and the steps, if they are not `steps`, follow in brackets."""
    if cell is None:
        return "-"
    std = cell[split]["std"]
    spread, seeds = ("", "") if std is None else (f" ± {100 * std:.1f}", f"{len(cell['seeds'])} seeds")
    notes = ", ".join(filter(None, (seeds, _other_steps(cell, steps))))
    return f"{100 * cell[split]['mean']:.1f}{spread}" + (f" ({notes})" if notes else "")


def _other_steps(cell: dict, steps: int) -> str:
    return "" if cell["steps"] == steps else f"{cell['steps']:,} steps"


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    results = read_results(args.runs)
    cells = build_table(results)
    table = to_markdown(cells)
    if args.map is not None:
        table += "\n" + map_table(cells)
    if args.confusion:
        table = "\n".join([table, *map(confusion, args.runs, results)])
    if args.out is not None:  # before the table is printed: `| head` closes standard output
        write_text(args.out, table)
        write_json(args.out.with_suffix(".json"), cells)
    if args.map is not None:
        draw_map(cells, args.map)
    print(table, end="")
    return 0


if __name__ == "__main__":
    run_main(main)
