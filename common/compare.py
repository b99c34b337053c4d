"""Compare runs: their logged curves in one picture.

    python -m common.compare runs/lr-1e-3 runs/lr-2e-3 --out runs/lr.png

There is a panel for each metric that at least two runs have, drawn like a run's curves.png. The legend says in which
settings the runs differ; if these are many, or do not tell the runs apart, it has the names of the folders.
"""

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import Any

from common.cli import Parser, add_force_flag, ending, run_main
from common.errors import UserError
from common.files import read_json, require_new
from common.metrics_log import METRICS, metric_names, overlay, read_metrics
from common.run_folder import UNRELATED

LONGEST = 48  # characters of the legend that fit below a panel


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("runs", metavar="RUN_DIR", type=Path, nargs="+")
    parser.add_argument("--out", metavar="PNG", type=ending(".png"), required=True)
    add_force_flag(parser)
    args = parser.parse_args(argv)
    require_new(args.force, args.out)
    return args


def labels_of(runs: dict[Path, dict[str, Any]]) -> list[str]:
    """Return what tells each run from the others: settings, if few differ, or a name. `runs` has the settings of each.

    Settings that do not change a training, like --log-every, do not count.
    """
    names = sorted(set().union(*runs.values()) - UNRELATED)
    differing = [name for name in names if len({str(settings.get(name)) for settings in runs.values()}) > 1]
    labels = [", ".join(f"{name}={settings.get(name)}" for name in differing) for settings in runs.values()]
    if len(set(labels)) == len(labels) and max(map(len, labels)) <= LONGEST:
        return labels
    folders = [run.resolve() for run in runs]
    return [os.path.relpath(folder, os.path.commonpath([folder.parent for folder in folders])) for folder in folders]


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    if len({run.resolve() for run in args.runs}) < max(2, len(args.runs)):
        raise UserError("expected at least two runs, and none twice: name other folders")
    runs = {run: read_json(run / "args.json", "the settings of a run") for run in args.runs}
    logs = {run: read_metrics(run) for run in runs}
    if empty := [run for run, rows in logs.items() if not rows]:
        raise UserError(f"{empty[0] / METRICS} has no metrics: train the run first, or leave it out")
    counts = Counter(name for rows in logs.values() for name in metric_names(rows))
    names = [name for name, count in counts.items() if count > 1]
    if alone := [run for run, rows in logs.items() if not {*names} & {*metric_names(rows)}]:
        raise UserError(f"{alone[0]} has no metric of another run here: name several runs of one command")
    overlay(args.out, names, list(logs.values()), labels_of(runs))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    run_main(main)
