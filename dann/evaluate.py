"""Build the domain adaptation table from finished runs of dann.train.

    python -m dann.evaluate runs/dann-mnistm-usps-* --out report/dann.md
    python -m dann.evaluate runs/dann-* --map runs/dann.png
    python -m dann.evaluate --confusion runs/dann-mnistm-usps-dann-plus

There is one row per mode and recipe, one column per pair of domains, and one table each for val, test and the oracle:
the preview with the best accuracy on val, which only target labels can choose. A cell is the accuracy on the target,
mean and standard deviation over seeds, with its steps if they are not those of the title. A run of mode target counts
for every pair with its target, whatever its --source was; of two with the same seed the first counts.

`--map` draws the accuracy of all pairs, for the rows without changes, and adds it as a table with one row per pair.
`--confusion` adds a confusion matrix of each run on val: one row per digit, one column per predicted digit. `--out`
writes the tables as Markdown, and beside it their numbers as JSON.
"""

import argparse
import statistics
from collections.abc import Iterable
from pathlib import Path

import torch

from common.cli import Parser, add_force_flag, ending, run_main
from common.data.domains import DOMAIN_CHOICES
from common.data.folder import load_digits
from common.device import select_device
from common.errors import UserError
from common.files import require_new
from common.tables import markdown, publish
from dann import heatmap
from dann.predict import load_network, predict
from dann.scoring import read_result

ON_TARGET = "trained on target"
ROWS = {("source", None): "trained on source", ("dann", "plain"): "DANN", ("dann", "plus"): "plus",
        ("target", None): ON_TARGET}
TITLES = {"val": "accuracy on val, %", "test": "accuracy on test, %",
          "oracle": "accuracy on test at the oracle's step (chosen by target labels, for comparison only), %"}
ROUNDING = 2  # digits that may change, as devices and precisions round differently


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--confusion", action="store_true", help="add the confusion matrix of each run")
    parser.add_argument("--map", metavar="PNG", type=ending(".png"), help="draw all pairs as a heat map")
    args = parse_runs(parser, argv)
    require_new(args.force, args.map)
    return args


def parse_runs(parser: Parser, argv: list[str] | None) -> argparse.Namespace:
    """Add the run folders, --out and --force, and read the command line."""
    parser.add_argument("runs", metavar="RUN_DIR", type=Path, nargs="+", help="finished run folders of dann.train")
    parser.add_argument("--out", metavar="TABLE.md", type=ending(".md"))
    add_force_flag(parser)
    args = parser.parse_args(argv)
    require_new(args.force, args.out, args.out and args.out.with_suffix(".json"))
    return args


def row_of(result: dict) -> str:
    """Return the title of the row, such as "plus, no geometry"."""
    return ", ".join([ROWS[result["mode"], result["recipe"]], *result["changes"]])


def column_of(result: dict) -> str:
    """Return the title of the column: "mnistm -> usps", or "usps" for a run of mode target."""
    names = [result["target"]] if result["mode"] == "target" else [result["source"], result["target"]]
    prefix = "builtin-" * (result["data"] == "builtin")
    return " -> ".join(prefix + name.removeprefix(prefix) for name in names)


def build_table(results: list[dict]) -> list[dict]:
    """Return one dict per cell: row, column, steps, seeds, and mean and standard deviation of each split, in 0..1.

    Raises UserError if runs of one cell differ in more than the seed, or not even in that.
    """
    pairs = dict.fromkeys(column_of(result) for result in results if result["mode"] != "target")
    order = list(ROWS)
    groups: dict[tuple[str, str], list[dict]] = {}
    for result in sorted(results, key=lambda r: (order.index((r["mode"], r["recipe"])), r["changes"], r["seed"])):
        own = column_of(result)
        for column in [pair for pair in pairs if pair.endswith(f" -> {own}")] or [own]:  # several for mode target
            groups.setdefault((row_of(result), column), []).append(result)
    return [{"row": row, "column": column, **_cell(runs)} for (row, column), runs in groups.items()]


def _cell(runs: list[dict]) -> dict:
    of_seed = {}
    for run in runs:
        for key in ("steps", "batch_size", "precision", "inputs", "parts"):
            if run[key] != (expected := runs[0][key]):
                raise UserError(f"{run['run_dir']}: got {key} {run[key]}, expected {expected} like the other runs "
                                "of its cell: leave it out")
        first = of_seed.setdefault(run["seed"], run)
        if first is not run and (run["mode"] != "target" or run["source"] == first["source"]):
            raise UserError(f"{run['run_dir']}: same settings and seed as {first['run_dir']}: leave one out")
    runs = of_seed.values()
    scores = {"val": [run.get("val") for run in runs], "test": [run.get("test") for run in runs],
              "oracle": [(run["oracle"] or {}).get("test") for run in runs]}
    return {"steps": next(iter(runs))["steps"], "seeds": list(of_seed)} | {
        split: {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else None}
        for split, values in scores.items() if None not in values}


def to_markdown(cells: list[dict], splits: Iterable[str] = TITLES) -> str:
    """Return one Markdown table per split, in percent."""
    tables = []
    for split in splits:
        found = {(cell["row"], cell["column"]): cell for cell in cells if split in cell}
        usual = {column: statistics.mode(cell["steps"] for cell in found.values() if cell["column"] == column)
                 for _, column in found}
        header = [TITLES[split], *(f"{column}, {steps:,} steps" for column, steps in usual.items())]
        rows = [[row, *(_percent(found.get((row, column)), split, steps) for column, steps in usual.items())]
                for row in dict.fromkeys(row for row, _ in found)]
        if rows:
            tables.append(markdown(header, rows))
    return "\n".join(tables)


def map_table(cells: list[dict]) -> str:
    """Return the accuracy on test (on val if no run has test) of all pairs as Markdown; UserError if there is none."""
    split, steps, domains, methods = _map(cells)
    pairs = [(source, target) for source in domains for target in domains
             if any((source, target) in of_pair for of_pair in methods.values())]
    rows = [[" -> ".join(pair), *(_percent(of_pair.get(pair), split, steps) for of_pair in methods.values())]
            for pair in pairs]
    return markdown([f"{TITLES[split]}, {steps:,} steps", *methods], rows)


def draw_map(cells: list[dict], path: Path) -> None:
    """Write what `map_table` shows as a heat map."""
    split, steps, domains, methods = _map(cells)
    panels = {row: {pair: (cell[split]["mean"], _other_steps(cell, steps)) for pair, cell in of_pair.items()}
              for row, of_pair in methods.items()}
    on_target = {target: drawn for (_, target), drawn in panels.pop(ON_TARGET, {}).items()}
    heatmap.draw(panels, (ON_TARGET, on_target), domains, f"{TITLES[split]}, {steps:,} steps", path)


def confusion(result: dict) -> str:
    """Return a run's confusion matrix on val as Markdown; UserError if its accuracy is not that of result.json."""
    if "val" not in result:
        raise UserError(f"{result['run_dir']} has no val digits with labels: leave it out, or --confusion")
    device = select_device("auto")
    model, _ = load_network(result["run_dir"] / "last.pt", device)
    digits = load_digits(result["data"], result["target"], "val")
    predicted = predict(model, digits.images, device)[1].argmax(1)
    counts = torch.bincount(10 * digits.labels + predicted, minlength=100).view(10, 10)
    if abs(counts.trace().item() - round(result["val"] * len(digits.labels))) > ROUNDING:
        raise UserError(f"{result['run_dir']}: data or last.pt changed since result.json: restore them, or train again")
    title = f"{row_of(result)}, {column_of(result)}, seed {result['seed']}: digits of val, predicted as"
    return markdown([title, *range(10)], [[digit, *row] for digit, row in enumerate(counts.tolist())])


def _map(cells: list[dict]) -> tuple[str, int, list[str], dict[str, dict[tuple[str, str], dict]]]:
    """Return the split of the map, its most common steps, its domains, and row -> (source, target) -> cell."""
    plain = [cell for cell in cells if cell["row"] in ROWS.values()]
    adapted = [cell for cell in plain if cell["row"] != ON_TARGET]
    if not adapted:
        raise UserError("--map shows pairs of domains: name runs of --mode source or dann without changes")
    split = "test" if any("test" in cell for cell in adapted) else "val"
    pairs = {cell["column"]: tuple(cell["column"].split(" -> ")) for cell in adapted if split in cell}
    shown = [cell for cell in plain if cell["column"] in pairs and split in cell]
    methods = {}
    for cell in shown:
        methods.setdefault(cell["row"], {})[pairs[cell["column"]]] = cell
    names = sorted({name for pair in pairs.values() for name in pair})
    domains = sorted(names, key=[*DOMAIN_CHOICES, *names].index)  # unknown ones come last
    return split, statistics.mode(cell["steps"] for cell in shown), domains, methods


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
    results = [read_result(run_dir) for run_dir in args.runs]
    cells = build_table(results)
    tables = [to_markdown(cells)]
    if args.map is not None:
        tables.append(map_table(cells))
    if args.confusion:
        tables += map(confusion, results)
    if args.map is not None:
        draw_map(cells, args.map)
    publish("\n".join(tables), cells, args.out)
    return 0


if __name__ == "__main__":
    run_main(main)
