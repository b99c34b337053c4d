"""What scripts/reproduce.sh needs besides its lines: their times, a training that ends early, and the comparison.

    python -m scripts.reproduce plan FLAG ... < LINES     a table of what the lines take
    python -m scripts.reproduce until N MODULE FLAG ...   a training that ends at step N of its plan
    python -m scripts.reproduce compare OUT               scores of OUT beside those of this project

A line is `PART NAME MODULE FLAG ...`, quoted as for a shell. The flags after `plan` are those of every training.
"""

import argparse
import importlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.checkpoint import MANIFEST, RELEASED
from common.cli import Parser, run_main
from common.device import select_device
from common.run import Run, clock
from common.run_folder import UNRELATED
from common.tables import markdown, publish
from dann.evaluate import build_table, column_of, row_of
from dann.scoring import SPLITS, read_result

REPORT = RELEASED.parent / "report"
# The result of scripts/benchmark.py on such a machine, and what its name contains.
MACHINES = {"two CPU cores": ("benchmark.json", ", 2 cores"), "one GPU": ("benchmark-gpu.json", "NVIDIA")}
# What one image of a batch costs, in images of the benchmark. SAGAN: seconds per image, relative to DCGAN, on one core,
# in trainings on LFWcrop. A guided student needs four evaluations of its teacher. The adversarial stage also encodes
# generated and real images. Mode dann trains on two domains.
COSTS = {"dcgan": {"GAN training": 1}, "sagan": {"GAN training": 2.1}, "diffusion.train": {"diffusion training": 1},
         "diffusion.distill": {"diffusion training": 1, "diffusion evaluation": 4},
         "diffusion.adversarial": {"diffusion training": 1, "diffusion evaluation": 4},
         "dann": {"DANN training": 2}, "source": {"DANN training": 1}, "target": {"DANN training": 1}}
SCORES = {"swd": ("SWD x1000", ".1f"), "one_face": ("exactly one face", ".1%"), "accuracy": ("accuracy", ".1%"),
          "frechet": ("Frechet distance", ".2f"), "variety": ("variety", ".2f"),
          "test": ("accuracy on test", ".1%"), "val": ("accuracy on val", ".1%")}  # title and format
SPREADS = 2  # by how many standard deviations a score may differ


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("action", choices=("plan", "until", "compare"))
    parser.add_argument("words", nargs=argparse.REMAINDER)
    args = parser.parse_args(argv)
    if {"plan": False, "until": len(args.words) < 2 or not args.words[0].isdigit(),
            "compare": len(args.words) != 1}[args.action]:
        parser.error(f"{args.action}: got {' '.join(args.words)!r}, expected words as in the text of --help")
    return args


def read_line(line: str, flags: Sequence[str]) -> tuple[str, str, argparse.Namespace]:
    """Return the name of a line, its training (a key of COSTS) and settings; UserError for an unknown flag."""
    _, name, *command = shlex.split(line)
    last = int(command[2]) if command[1:2] == ["until"] else sys.maxsize
    module, *own = command[3:] if command[1:2] == ["until"] else command
    args = importlib.import_module(module).parse_args([*own, *flags])
    args.steps = min(last, args.steps)
    return name, getattr(args, "model", None) or getattr(args, "mode", module), args


def seconds(name: str, task: str, args: argparse.Namespace, machine: str) -> tuple[float, str]:
    """Return how long a training takes on a key of MACHINES, and "measured" or "computed"."""
    benchmark, machine_name = MACHINES[machine]
    runs, entry = len(getattr(args, "seeds", None) or [0]), _read(RELEASED / MANIFEST).get(f"{name}.pt")
    if (entry and machine_name in entry["versions"]["machine"] and entry["step"] == args.steps
            and entry["args"]["batch_size"] == args.batch_size):
        return runs * entry["seconds"], "measured"
    rates, images = _read(REPORT / benchmark)["images_per_second"], runs * args.steps * args.batch_size
    return sum(images * cost / rates[row]["ours"] for row, cost in COSTS[task].items()), "computed"


def plan(lines: Sequence[str], flags: Sequence[str]) -> str:
    """Return what the lines take as a table; UserError for a wrong flag, or without the GPU that is asked for."""
    rows, totals = [], [0.0] * len(MACHINES)
    for line in lines:
        name, task, args = read_line(line, flags)
        if not args.dry_run:
            select_device(args.device)
        times = [seconds(name, task, args, machine) for machine in MACHINES]
        totals = [total + time for total, (time, _) in zip(totals, times, strict=True)]
        rows.append([name, *(f"{clock(time)} {how}" for time, how in times), shlex.join(shlex.split(line)[2:])])
    machines = " and ".join(_read(REPORT / benchmark)["machine"] for benchmark, _ in MACHINES.values())
    return (f"{markdown(['line', *MACHINES, 'training'], [*rows, ['all', *map(clock, totals), '']])}"
            f"Measured: the seconds of weights/{MANIFEST}. Computed: from the throughput of {machines} (report/).\n"
            "Starting, generating and scoring add up to three minutes per line, the images for diffusion-distilled to "
            f"six on two cores. Every training: {shlex.join(flags)}")


def until(step: int, module: str, *flags: str) -> None:
    """Train by a plan of more steps, and end at `step` as if it were the last; the learning rates are the plan's."""
    trainer = importlib.import_module(module)
    trainer.Run = lambda out, kind, settings, *parts, **more: Run(
        out, kind, settings | {"steps": min(step, settings["steps"])}, *parts, **more)
    trainer.main([*flags])


def differences(shipped: dict[str, Any], here: dict[str, Any]) -> str:
    """Return the settings in which two entries of a manifest differ, of those that change a training."""
    names = sorted((shipped["args"].keys() & here["args"].keys()) - UNRELATED - {"steps", "precision"})
    both = [("step", shipped["step"], here["step"]), *((n, shipped["args"][n], here["args"][n]) for n in names)]
    return ", ".join(f"{name} {b} (shipped: {a})" for name, a, b in both  # the folder of a file does not matter
                     if Path(str(a or None)).name != Path(str(b or None)).name)


def compare(out: Path) -> None:
    """Print scores of the files and runs in `out` beside the shipped ones, and write them to comparison.md."""
    shipped, here = _read(RELEASED / MANIFEST), _read(out / "weights" / MANIFEST)
    cells = {(cell["row"], cell["column"]): cell for cell in _read(REPORT / "dann.json")}
    found, notes = [], []  # title, shipped scores, their spreads, own scores
    for name in sorted(shipped.keys() & here.keys()):
        scores, new = shipped[name]["scores"], here[name]["scores"]
        cell = cells.get((row_of(scores), column_of(scores)), {}) if shipped[name]["kind"] == "dann" else {}
        found.append((name, scores, scores.get("std") or _of_cell(cell, "std"), new))
        if different := differences(shipped[name], here[name]):
            notes.append(f"{name} was trained with {different}.\n")
    for cell in build_table([read_result(path.parent) for path in sorted((out / "runs").glob("*/result.json"))]):
        if old := cells.get((cell["row"], cell["column"].replace("builtin-", ""))):
            title = f"{cell['column']}, {cell['row']}, {len(cell['seeds'])} of {len(old['seeds'])} seeds"
            if cell["steps"] != old["steps"]:
                notes.append(f"{title}: {cell['steps']} steps (shipped: {old['steps']}).\n")
            found.append((title, _of_cell(old, "mean"), _of_cell(old, "std"), _of_cell(cell, "mean")))
    rows = []
    for title, old, spreads, new in found:
        for key in (key for key in SCORES if key in old):
            score, spread, own = (x if x is None else np.mean(x) for x in (old[key], spreads.get(key), new.get(key)))
            within = ("not scored here" if own is None else "no spread stated" if spread is None else
                      "yes" if abs(own - score) <= SPREADS * spread else "NO")
            shown = ["-" if x is None else format(x, SCORES[key][1]) for x in (score, spread, own)]
            rows.append([title, SCORES[key][0], *shown, within])
    table = markdown(["", "score", "shipped", "spread", "here", f"within {SPREADS} spreads"], rows)
    publish("\n".join([table, *notes]), rows, out / "comparison.md")


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else {}


def _of_cell(cell: dict[str, Any], what: str) -> dict[str, float | None]:
    return {split: cell[split][what] for split in SPLITS if split in cell}


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    if args.action == "plan":
        print(plan(sys.stdin.read().splitlines(), args.words))
    elif args.action == "until":
        until(int(args.words[0]), *args.words[1:])
    else:
        compare(Path(*args.words))
    return 0


if __name__ == "__main__":
    run_main(main)
