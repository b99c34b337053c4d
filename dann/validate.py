"""Compare validators: how well does each choose a network, without target labels?

    python -m dann.validate runs/dann-* --out report/validators.md

Every preview of a run is a checkpoint, with its accuracy on target test (on val where there is no test) and its
validators (`dann.validators`). The first table is for choosing a step: the accuracy of the preview that each validator
likes best, mean over the runs of mode dann. The second is for choosing a run and step: among all checkpoints of a pair
of domains, of modes source and dann, it gives Spearman's rank correlation of validator and accuracy, and the accuracy
of the checkpoint that the validator likes best. Of equal checkpoints the last counts.

For comparison there are the last step, and the oracle: the best checkpoint on val, which takes target labels. Runs of
mode target are left out. `--out` writes the tables as Markdown, and beside it their numbers as JSON.
"""

import statistics
from pathlib import Path

from common.cli import Parser, run_main
from common.errors import UserError
from common.files import read_json
from common.tables import markdown, publish
from dann.evaluate import column_of, parse_runs
from dann.scoring import best, read_result
from dann.validators import VALIDATORS

CRITERIA = {"last step": "step"} | {name: name for name in VALIDATORS} | {"oracle": "val"}  # row -> what chooses


def read_runs(run_dirs: list[Path]) -> list[dict]:
    """Return result and "previews" of each run but those of mode target; UserError if none is left, or lacks a file."""
    if len({run_dir.resolve() for run_dir in run_dirs}) < len(run_dirs):
        raise UserError("a run is named twice: leave one out")
    runs = [run for run in map(read_result, run_dirs) if run["mode"] != "target"]
    if not runs:
        raise UserError("runs of mode target have no checkpoints to choose from: name others")
    what = "the previews of a run of dann.train, which earlier versions did not write"
    runs = [run | {"previews": []} | read_json(run["run_dir"] / "previews.json", what) for run in runs]
    if empty := [run["run_dir"] for run in runs if not run["previews"]]:
        raise UserError(f"{empty[0] / 'previews.json'} has no previews: leave it out")
    return runs


def compare(runs: list[dict]) -> dict[str, dict]:
    """Return the numbers of both tables; None stands for what some checkpoint lacks, or is equal everywhere.

    "steps" has the number of "runs" and an "accuracy" by criterion. "checkpoints" has, by pair, their "count", the
    "correlation" and "accuracy" by criterion; the accuracy of the last step is the mean over runs.

    Raises UserError for a pair with fewer than two checkpoints.
    """
    adapted = [run["previews"] for run in runs if run["mode"] == "dann"]
    pairs: dict[str, list[list[dict]]] = {}
    for run in runs:
        pairs.setdefault(column_of(run), []).append(run["previews"])
    checkpoints = {}
    for pair, of_runs in pairs.items():
        rows = [row for previews in of_runs for row in previews]
        if len(rows) < 2:
            raise UserError(f"{pair} has one checkpoint, expected at least two: add runs, or leave it out")
        checkpoints[pair] = {"count": len(rows),
                             "accuracy": _chosen([rows]) | {"last step": _chosen(of_runs)["last step"]},
                             "correlation": {name: _correlation(rows, name) for name in VALIDATORS}}
    return {"steps": {"runs": len(adapted), "accuracy": _chosen(adapted)}, "checkpoints": checkpoints}


def to_markdown(numbers: dict[str, dict]) -> str:
    """Return the two tables of what `compare` returned; the first only if there are runs of mode dann."""
    steps, checkpoints = numbers["steps"], numbers["checkpoints"]
    tables, rows = [], []
    if steps["runs"]:
        tables.append(markdown(["choosing a step", f"accuracy, %, mean over {steps['runs']} runs"],
                               [[name, _shown(accuracy, ".1%")] for name, accuracy in steps["accuracy"].items()]))
    for name in CRITERIA:
        title = "last step, mean over runs" if name == "last step" else name
        columns = [(pair["correlation"].get(name), pair["accuracy"][name]) for pair in checkpoints.values()]
        columns.append(tuple(_mean(values) for values in zip(*columns, strict=True)))
        rows.append([title, *(f"{_shown(r, '.2f')} / " * (name in VALIDATORS) + _shown(a, ".1%") for r, a in columns)])
    titles = [f"{title} ({pair['count']} checkpoints)" for title, pair in checkpoints.items()]
    tables.append(markdown(["choosing a run and step: rank correlation / accuracy, %", *titles, "mean"], rows))
    return "\n".join(tables)


def _chosen(groups: list[list[dict]]) -> dict[str, float | None]:
    """Return by criterion the accuracy of the row that it likes best in a group, mean over the groups."""
    return {name: _mean([_accuracy(best(rows, key)) if all(key in row for row in rows) else None for rows in groups])
            for name, key in CRITERIA.items()}


def _accuracy(row: dict) -> float:
    return row.get("test", row.get("val"))


def _correlation(rows: list[dict], name: str) -> float | None:
    """Return Spearman's rank correlation of a validator and the accuracy."""
    from scipy.stats import spearmanr  # which takes a second to import

    values, accuracies = [row.get(name) for row in rows], [_accuracy(row) for row in rows]
    if None in values or len(set(values)) == 1 or len(set(accuracies)) == 1:
        return None
    return float(spearmanr(values, accuracies).statistic)


def _mean(values: list[float | None]) -> float | None:
    return None if None in values or not values else statistics.mean(values)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form).rstrip("%")


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_runs(Parser(__doc__), argv)
    numbers = compare(read_runs(args.runs))
    publish(to_markdown(numbers), numbers, args.out)
    return 0


if __name__ == "__main__":
    run_main(main)
