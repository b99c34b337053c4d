"""Compare validators: how well does each choose a network, without target labels?

    python -m dann.validate runs/dann-* --out report/validators.md

Every preview of a run is a checkpoint, with its accuracy on target test (on val where there is no test) and its
validators (`dann.validators`). Choosing a step means: in each run of mode dann, take the preview that a validator likes
best. Choosing a run and step means: take the best of all checkpoints of a pair of domains, of modes source and dann.
The tables give the accuracy of what was chosen, and for the latter Spearman's rank correlation of validator and
accuracy. Of equal checkpoints the last counts.

For comparison there are the last step (the mean over runs), and the oracle: the best checkpoint on val, which takes
target labels. Runs of mode target are left out. `--out` writes the tables as Markdown, and their numbers as JSON.
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
    what = "the previews of a run of dann.train"
    runs = [run | {"previews": []} | read_json(run["run_dir"] / "previews.json", what) for run in runs]
    if empty := [run["run_dir"] for run in runs if not run["previews"]]:
        raise UserError(f"{empty[0] / 'previews.json'} has no previews: leave it out")
    return runs


def compare(runs: list[dict]) -> dict[str, dict]:
    """Return the numbers of the tables; None stands for what some checkpoint lacks, or is equal everywhere.

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


def summary(numbers: dict[str, dict]) -> str:
    """Return the first table of what `compare` returned: one row per criterion, means over runs and over pairs."""
    steps, pairs = numbers["steps"], list(numbers["checkpoints"].values())
    titles = ["criterion", f"choosing a step: accuracy, %, mean over {steps['runs']} runs",
              "choosing a run and step: rank correlation", f"accuracy, %, mean over {len(pairs)} pairs"]
    return markdown(titles, [[name, _shown(steps["accuracy"][name], ".1%"),
                              _shown(_mean([pair["correlation"].get(name) for pair in pairs]), ".2f"),
                              _shown(_mean([pair["accuracy"][name] for pair in pairs]), ".1%")] for name in CRITERIA])


def to_markdown(numbers: dict[str, dict]) -> str:
    """Return both tables of what `compare` returned; the second has one row per pair of domains."""
    def cell(pair: dict, name: str) -> str:
        correlation = f"{_shown(pair['correlation'][name], '.2f')} / " if name in VALIDATORS else ""
        return correlation + _shown(pair["accuracy"][name], ".1%")

    of_pairs = markdown(["rank correlation / accuracy, %", *CRITERIA],
                        [[f"{title} ({pair['count']} checkpoints)", *(cell(pair, name) for name in CRITERIA)]
                         for title, pair in numbers["checkpoints"].items()])
    return f"{summary(numbers)}\n{of_pairs}"


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
