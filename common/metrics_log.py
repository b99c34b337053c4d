"""What a training run logs: means of metrics per interval, their file, and their plot."""

import contextlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from common.distributed import average, rank
from common.errors import UserError
from common.files import atomic_path, cannot_write

METRICS = "metrics.jsonl"

log = logging.getLogger(__name__)


class MetricsLog:
    """Means of the metrics of all steps since the last logged row. `add` does not wait for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    @torch.no_grad()
    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add the 0-d float32 metrics of one step. A metric that some steps lack is averaged over the others."""
        self._sums |= {name: torch.zeros_like(value) for name, value in metrics.items() if name not in self._sums}
        torch._foreach_add_([self._sums[name] for name in metrics], [*metrics.values()])
        for name in metrics:
            self._counts[name] = self._counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Return the means over the steps since `clear`, and over the processes."""
        average(list(self._sums.values()))
        return {name: (value / self._counts[name]).item() for name, value in self._sums.items()}

    def clear(self) -> None:
        """Start again."""
        self._sums, self._counts = {}, {}

    def state_dict(self) -> dict:
        """Return the sums and counts."""
        return {"sums": self._sums, "counts": self._counts}

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        """Restore what `state_dict` returned."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])


def require_tensorboard() -> type:
    """Return PyTorch's writer of TensorBoard event files. Raises UserError where its package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # costs seconds to import
    except ImportError as error:
        raise UserError(f"--tensorboard needs a package ({error}): pip install tensorboard") from None
    return SummaryWriter


def append_row(run_dir: Path, row: dict[str, float], events: Any = None) -> None:
    """Append one row to a run's metrics.jsonl and event file, in process 0 only; UserError if it cannot be written."""
    if rank():
        return
    path = run_dir / METRICS
    try:
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")
        if events:
            for name in metric_names([row]):
                events.add_scalar(name, row[name], row["step"])
            events.flush()  # before a checkpoint of this step; so nothing is left to close
    except OSError as error:
        raise cannot_write(path, error) from error


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Return the rows of a run's metrics.jsonl, without damaged lines. A kill damages one; of more, a warning tells."""
    path = run_dir / METRICS
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            row = json.loads(line)
            int(row["step"])
            rows.append(row)
    if len(rows) < len(lines) - 1:
        log.warning("%s: %d of %d lines are damaged and are left out", path, len(lines) - len(rows), len(lines))
    return rows


def moving_average(values: Sequence[float]) -> numpy.ndarray:
    """Return (N,) means, each over the nearest tenth of the N values; beyond the ends, values are mirrored."""
    from scipy.ndimage import uniform_filter1d

    return uniform_filter1d(values, 2 * (len(values) // 20) + 1, output=float, mode="mirror")


def metric_names(rows: Sequence[dict[str, float]]) -> list[str]:
    """Return the names of all metrics in a log."""
    return list(dict.fromkeys(name for row in rows for name in row if name != "step"))


def plot_curves(run_dir: Path, resumes: Sequence[int]) -> None:
    """Plot every metric of a run into curves.png; dashed lines mark the steps at which the run was resumed."""
    rows = read_metrics(run_dir)
    if names := metric_names(rows):
        overlay(run_dir / "curves.png", names, [rows], resumes=resumes)


def overlay(path: Path, names: Sequence[str], logs: Sequence[list[dict[str, float]]], labels: Sequence[str] = (),
            resumes: Sequence[int] = ()) -> None:
    """Plot metrics over the steps: the rows of each log as a thin line, their average as a thick one.

    `labels` name the logs below all panels.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    num_columns = min(3, len(names))
    num_rows, legend_rows = (-(-len(items) // num_columns) for items in (names, labels))
    figure = Figure(figsize=(4 * num_columns, 2.6 * num_rows + 0.2 * legend_rows), layout="constrained")
    styles = [{"color": f"C{i}", "linestyle": ("-", "--", ":")[i // 10 % 3]} for i in range(len(logs))]  # ten colours
    for i, name in enumerate(names):
        axes = figure.add_subplot(num_rows, num_columns, i + 1)
        for rows, style in zip(logs, styles, strict=True):
            steps, values = [[row[key] for row in rows if name in row] for key in ("step", name)]
            axes.plot(steps, values, linewidth=0.5, alpha=0.6 if len(logs) == 1 else 0.3, **style)
            axes.plot(steps, moving_average(values), linewidth=1.5, **style)
        for step in resumes:
            axes.axvline(step, color="grey", linewidth=0.5, linestyle="--")
        axes.set_xlabel("optimizer steps", fontsize=8)
        axes.set_ylabel(name, fontsize=8)
        axes.tick_params(labelsize=7)
    if labels:
        legend = figure.legend([Line2D([], [], **style) for style in styles], labels, fontsize=8, ncols=num_columns,
                               loc="outside lower center")
        for text in legend.get_texts():
            text.set_parse_math(False)  # a name may have a $
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
