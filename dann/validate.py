"""Compare validators: how well does each choose a network, without target labels?

    python -m dann.validate runs/dann-* --out report/validators.md

Every preview of a run is a checkpoint, with its accuracy on target test (on val where there is no test) and its
validators (`dann.validators`). The first table is for choosing a step: the accuracy of the preview that each validator
likes best, mean over the runs of mode dann. The second is for choosing a run and step: among all checkpoints of a pair
of domains, of modes source and dann, it gives Spearman's rank correlation of validator and accuracy, and the accuracy
of the checkpoint that the validator likes best, the last of equal ones.

For comparison there are the last step, and the oracle: the best checkpoint on val, which takes target labels. Runs of
mode target have no validators and are left out. `--out` writes the tables as Markdown, and beside it their numbers as
JSON.
"""

import argparse
import statistics
from pathlib import Path

from common.cli import Parser, add_force_flag, run_main
from common.errors import UserError
from common.files import read_json, require_new, write_json, write_text
from common.tables import markdown
from dann.evaluate import column_of
from dann.scoring import best
from dann.validators import VALIDATORS

CRITERIA = {"last step": "step"} | {name: name for name in VALIDATORS} | {"oracle": "val"}  # row -> what chooses


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("runs", metavar="RUN_DIR", type=Path, nargs="+", help="finished run folders of dann.train")
    parser.add_argument("--out", metavar="TABLE.md", type=Path)
    add_force_flag(parser)
    args = parser.parse_args(argv)
    if args.out is not None:
        if args.out.suffix != ".md":
            parser.error(f"--out: got {args.out}, expected a name that ends in .md")
        require_new(args.force, args.out, args.out.with_suffix(".json"))
    return args


def read_runs(run_dirs: list[Path]) -> list[dict]:
    """Return pair, mode and previews of each run but those of mode target; a preview has its "accuracy" too.

    Raises UserError for a run without result.json, previews or accuracies.
    """
    runs = []
    for run_dir in run_dirs:
        path = run_dir / "result.json"
        result = read_json(path, "the scores of a run of dann.train, which --resume auto finishes")
        if result.get("mode") == "target":
            continue
        if not result.get("previews"):
            raise UserError(f"{run_dir} has no previews, because an earlier version made it: train it again")
        try:
            if not {"val", "test"} & result["previews"][0].keys():
                raise UserError(f"{run_dir} has no scores, because its target has no labels: leave it out")
            previews = [row | {"accuracy": row.get("test", row.get("val"))} for row in result["previews"]]
            runs.append({"pair": column_of(result), "mode": result["mode"], "previews": previews})
        except (AttributeError, KeyError, TypeError):
            raise UserError(f"{path} does not hold the scores of a run of dann.train: leave it out") from None
    if not runs:
        raise UserError("runs of mode target have no checkpoints to choose from: name others")
    return runs


def compare(runs: list[dict]) -> dict[str, dict]:
    """Return the numbers of both tables; None stands for what some checkpoint lacks, or is equal everywhere.

    "steps" has the number of "runs" and an "accuracy" by criterion. "checkpoints" has, by pair, their "count", the
    "correlation" and "accuracy" by criterion; the accuracy of the last step is the mean over runs.

    Raises UserError for a pair with fewer than two checkpoints.
    """
    adapted = [run["previews"] for run in runs if run["mode"] == "dann"]
    steps = {name: _mean([_choice(rows, key) for rows in adapted]) for name, key in CRITERIA.items()}
    checkpoints = {}
    for pair in dict.fromkeys(run["pair"] for run in runs):
        of_pair = [run["previews"] for run in runs if run["pair"] == pair]
        rows = [row for previews in of_pair for row in previews]
        if len(rows) < 2:
            raise UserError(f"{pair} has one checkpoint, expected at least two: add runs, or leave it out")
        accuracy = {name: _choice(rows, key) for name, key in CRITERIA.items()}
        accuracy["last step"] = _mean([_choice(previews, "step") for previews in of_pair])
        checkpoints[pair] = {"count": len(rows), "accuracy": accuracy,
                             "correlation": {name: _correlation(rows, name) for name in VALIDATORS}}
    return {"steps": {"runs": len(adapted), "accuracy": steps}, "checkpoints": checkpoints}


def to_markdown(numbers: dict[str, dict]) -> str:
    """Return the two tables of what `compare` returned; the first only if there are runs of mode dann."""
    steps, checkpoints = numbers["steps"], numbers["checkpoints"]
    rows = []
    for name in CRITERIA:
        cells = [(pair["correlation"].get(name), pair["accuracy"][name]) for pair in checkpoints.values()]
        cells.append(tuple(_mean(column) for column in zip(*cells, strict=True)))
        rows.append([name + ", mean over runs" * (name == "last step"),
                     *(f"{_shown(r)} / {_percent(a)}" if name in VALIDATORS else _percent(a) for r, a in cells)])
    titles = [f"{title} ({pair['count']} checkpoints)" for title, pair in checkpoints.items()]
    tables = [markdown(["choosing a run and step: rank correlation / accuracy, %", *titles, "mean"], rows)]
    if steps["runs"]:
        tables.insert(0, markdown(["choosing a step", f"accuracy, %, mean over {steps['runs']} runs"],
                                  [[name, _percent(accuracy)] for name, accuracy in steps["accuracy"].items()]))
    return "\n".join(tables)


def _choice(rows: list[dict], name: str) -> float | None:
    """Return the accuracy of the row that a criterion likes best, None if it is not known of all."""
    return best(rows, name)["accuracy"] if all(name in row for row in rows) else None


def _correlation(rows: list[dict], name: str) -> float | None:
    """Return Spearman's rank correlation of a validator and the accuracy."""
    from scipy.stats import spearmanr  # which takes a second to import

    columns = [[row.get(key) for row in rows] for key in (name, "accuracy")]
    if None in columns[0] or min(len(set(column)) for column in columns) == 1:
        return None
    return float(spearmanr(*columns).statistic)


def _mean(values: list[float | None]) -> float | None:
    return None if None in values or not values else statistics.mean(values)


def _percent(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{100 * accuracy:.1f}"


def _shown(correlation: float | None) -> str:
    return "-" if correlation is None else f"{correlation:.2f}"


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    numbers = compare(read_runs(args.runs))
    table = to_markdown(numbers)
    if args.out is not None:  # before the table is printed: `| head` closes standard output
        write_text(args.out, table)
        write_json(args.out.with_suffix(".json"), numbers)
    print(table, end="")
    return 0


if __name__ == "__main__":
    run_main(main)
