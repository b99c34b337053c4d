"""One run folder: settings, versions, metrics, samples, checkpoint, curves, and a `done` file at the end.

`Run.steps` wraps a trainer's loop body with everything that is not the algorithm: progress, metrics, regular
checkpoints, a clean stop on Ctrl-C or SIGTERM, exact resume. `step` counts optimiser updates that are done.
Of several processes the first one writes, and all stop after the same step.
"""

import argparse
import contextlib
import fcntl
import importlib.metadata
import json
import math
import os
import platform
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy
import PIL
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import checkpoint
from common.cli import describe
from common.device import describe_machine, peak_memory, rng_state, set_rng_state
from common.distributed import average, largest, rank, require_in_step, wait_for_all, world_size
from common.errors import UserError
from common.files import cannot_write, whole, write_json, write_text

# Settings that may differ between a run and its continuation.
FREE_ON_RESUME = {"out", "resume", "steps", "epochs", "log_every", "sample_every", "save_every", "dry_run",
                  "device", "compile", "debug", "sync_bn"}


class Stateful(Protocol):
    """What a checkpoint stores: networks, optimisers, EMA, batch streams."""

    def state_dict(self) -> dict:
        """Return the state."""

    def load_state_dict(self, state: dict) -> Any:
        """Restore what `state_dict` returned."""


class Run:
    """A training run and its folder.

    Args:
        out: the run folder. One that already holds a run is only touched when `args.resume` says so.
        kind: what the checkpoint is called, e.g. "gan/sagan".
        args: the settings; stored, shown, and compared on resume.
        model_args: what rebuilds the network for inference.
        parts: everything with a state, by name.
        weights: the network that inference uses (the EMA, where there is one).

    Raises:
        UserError: the folder holds a run and `--resume` is not given; a checkpoint that does not fit.
    """

    def __init__(self, out: Path, kind: str, args: argparse.Namespace, model_args: dict[str, Any],
                 parts: dict[str, Stateful], weights: nn.Module) -> None:
        self.out, self.kind, self.args, self.model_args = out, kind, args, model_args
        self.parts, self.weights = parts, weights
        self.step = 0
        self.checkpoint_path = out / "last.pt"
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._signal = 0
        self.command = shlex.join(["python", "-m", _module_name(), *sys.argv[1:]])
        self.seconds = 0.0  # of training, over all processes that had a part in it
        self._settings = {name: str(value) if isinstance(value, Path) else value
                          for name, value in sorted(vars(args).items())}

        new = not out.exists()
        self._folder = self._claim() if rank() == 0 else None
        wait_for_all()
        before = set(os.listdir(out))
        try:
            if args.resume not in (None, "auto"):
                self._restore(Path(args.resume))
            elif args.resume == "auto" and self.checkpoint_path.exists():
                self._restore(self.checkpoint_path)
            require_in_step(self.step, *self._networks())
            if rank() == 0:
                self._open_folder()
        except BaseException:
            if rank() == 0:
                with contextlib.suppress(OSError):
                    for name in {"args.json", "versions.json", "metrics.jsonl"} - before:
                        (out / name).unlink(missing_ok=True)
                    if new:
                        out.rmdir()
            self._give_free()
            raise

    def _networks(self) -> list[nn.Module]:
        return [self.weights, *(part for part in self.parts.values() if isinstance(part, nn.Module))]

    def _claim(self) -> int:
        """Keep the run folder for this process alone, until it ends however it may; return the open folder."""
        if self.args.resume is None and (self.out / "args.json").exists():
            raise UserError(f"{self.out} already holds a run: --resume auto continues it, --out DIR starts another")
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.out, os.O_RDONLY)
        except OSError as error:
            why = f"cannot write the run folder ({error.strerror})"
            raise UserError(f"{self.out}: {why}: name another --out") from error
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(folder)
            raise UserError(f"{self.out}: another process trains there: wait for it, or name another --out") from None
        except OSError:
            pass  # some network file systems know no locks
        return folder

    def _give_free(self) -> None:
        if self._folder is not None:
            os.close(self._folder)

    def _open_folder(self) -> None:
        versions = {"python": platform.python_version(), "torch": torch.__version__,
                    "torchvision": importlib.metadata.version("torchvision"), "numpy": numpy.__version__,
                    "pillow": PIL.__version__, "machine": describe_machine(), "processes": world_size(),
                    "command": self.command}
        write_json(self.out / "args.json", self._settings)
        write_json(self.out / "versions.json", versions)
        self._metrics_path = self.out / "metrics.jsonl"
        # A killed run may have logged steps after its last checkpoint; they will be made again.
        kept = [row for row in read_metrics(self.out) if row["step"] <= self.step]
        write_text(self._metrics_path, "".join(json.dumps(row) + "\n" for row in kept))

    def _restore(self, path: Path) -> None:
        content = checkpoint.load(path, self.kind)
        if "parts" not in content:
            raise UserError(f"{path} is a released file: it has weights, but not what a resume needs")
        for name, value in self._settings.items():
            before = content["args"].get(name)
            if name not in FREE_ON_RESUME and before != value:
                raise UserError(f"{path} was trained with {name}={before}, got {name}={value}: resume with the same")
        for name, part in self.parts.items():
            part.load_state_dict(content["parts"][name])
        set_rng_state(content["rng"])
        self.step, self.seconds = content["step"], content["seconds"]
        self._sums, self._counts = content["log"]["sums"], content["log"]["counts"]
        print(f"resumed {path} at step {self.step}")

    def save(self) -> None:
        """Write the checkpoint, unless a number in it is not finite."""
        self._require_finite()
        require_in_step(self.step, *self._networks())
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        for name, value in _floats(parts):  # the last update can spoil weights whose own loss was finite
            if not value.isfinite().all():
                raise self._not_finite(name, "not finite")
        if rank():
            return
        checkpoint.save(self.checkpoint_path, {
            "kind": self.kind, "args": self._settings, "model_args": self.model_args, "step": self.step,
            "parts": parts,
            "weights": self.weights.state_dict(), "rng": rng_state(),
            "log": {"sums": self._sums, "counts": self._counts}, "seconds": self.seconds,
        })

    def record(self, metrics: dict[str, Tensor]) -> None:
        """Add one step's 0-d tensors to the running means; nothing waits for the device here.

        A metric need not come with every step: the mean is over the steps that it came with.
        """
        for name, value in metrics.items():
            value = value.detach().float().clone()  # a metric may be a parameter, which moves
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def due(self, every: int) -> bool:
        """Say whether the step being done is a multiple of `every`, or the last one."""
        return (self.step + 1) % every == 0 or self.step + 1 == self.args.steps

    def sample_path(self) -> Path:
        """Return where the picture of the step being done goes."""
        return self.out / "samples" / f"{self.step + 1:07d}.png"

    def steps(self, diagnose: Callable[[dict[str, float]], str | None] = lambda row: None) -> Iterator[int]:
        """Yield the steps that are left; after each loop body, log and save what is due.

        A signal ends the loop after the step in hand, saves, and exits with 128 + its number.

        Args:
            diagnose: a logged row -> what is wrong with the training in one line, or None; said once.
        """
        args, start = self.args, self.step
        print(describe(args))
        if start >= args.steps:
            print(f"{self.out}: {start} steps are done already; a larger --steps goes on")
        handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        bar = tqdm(total=args.steps, initial=start, unit="step", disable=rank() > 0 or not sys.stderr.isatty())
        before, began = self.seconds, time.perf_counter()
        said: set[str] = set()
        try:
            while self.step < args.steps:
                yield self.step
                log, save = self.due(args.log_every), self.due(args.save_every)
                self.step += 1
                self.seconds = before + time.perf_counter() - began
                bar.update()
                if log:
                    row = self._log(bar, rate=(self.step - start) * args.batch_size / (self.seconds - before))
                    if (ill := diagnose(row)) and ill not in said:
                        said.add(ill)
                        bar.write(f"step {self.step}: {ill}")
                stop = largest(self._signal)
                if save or stop:
                    self.save()
                if stop:
                    if rank() == 0:
                        print(f"stopped at step {self.step}: --resume auto goes on from here", file=sys.stderr)
                    raise SystemExit(128 + stop)
        finally:
            bar.close()
            self._give_free()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if rank():
            return
        memory = peak_memory(next(self.weights.parameters()).device)
        print(f"{self.step} steps, {self.seconds:.0f} s, at most {memory / 2**30:.1f} GiB of memory")
        plot_curves(self.out)
        write_json(self.out / "done", {"steps": self.step, "seconds": round(self.seconds, 1)})

    def _on_signal(self, number: int, _frame: object) -> None:
        self._signal = number

    def _require_finite(self) -> None:
        average(list(self._sums.values()))
        for name, value in self._sums.items():
            if not math.isfinite(value):
                raise self._not_finite(name, value.item())

    def _not_finite(self, name: str, became: float | str) -> UserError:
        return UserError(f"{name} became {became} before step {self.step}: the last good checkpoint is kept in "
                         f"{self.out}; try a lower learning rate or --precision fp32")

    def _log(self, bar: tqdm, rate: float) -> dict[str, float]:
        self._require_finite()
        means = {name: (value / self._counts[name]).item() for name, value in self._sums.items()}
        row = {"step": self.step} | means
        self._sums, self._counts = {}, {}
        try:
            if rank() == 0:
                with open(self._metrics_path, "a") as file:
                    file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise cannot_write(self._metrics_path, error) from error
        shown = " ".join(f"{name}={value:.4g}" for name, value in row.items() if name != "step")
        if bar.disable:
            print(f"step {self.step}/{self.args.steps} {shown} {rate:.0f} images/s", flush=True)
        else:
            bar.set_postfix_str(shown)
        return row


def _module_name() -> str:
    """Return the command's module, gan.train for .../gan/train.py."""
    path = Path(sys.argv[0])
    return f"{path.parent.name}.{path.stem}"


def _floats(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the floating-point tensors of nested dicts and lists, and where they stand: model.inc.weight."""
    if isinstance(state, Tensor):
        if state.is_floating_point():
            yield name, state
    elif isinstance(state, dict | list | tuple):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from _floats(value, f"{name}.{key}".lstrip("."))


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Return the rows of a run's metrics.jsonl; a last line that a kill cut short is left out."""
    path = run_dir / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def moving_average(values: Sequence[float]) -> numpy.ndarray:
    """Return the means, (N,), over a tenth of N values around each; beyond the ends they are mirrored."""
    reach = len(values) // 20
    kernel = numpy.full(2 * reach + 1, 1 / (2 * reach + 1))
    return numpy.convolve(numpy.pad(values, reach, mode="reflect"), kernel, mode="valid")


def plot_curves(run_dir: Path) -> None:
    """Draw every metric of a run over its steps into curves.png: each row thin, a moving average thick."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(run_dir)
    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    if not names:
        return
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    for i, name in enumerate(names):
        axes = figure.add_subplot(lines, columns, i + 1)
        steps, values = zip(*((row["step"], row[name]) for row in rows if name in row), strict=True)
        axes.plot(steps, values, linewidth=0.5, alpha=0.6)
        axes.plot(steps, moving_average(values), color="C0", linewidth=1.5)
        axes.set_xlabel("optimiser steps", fontsize=8)
        axes.set_ylabel(name, fontsize=8)
        axes.tick_params(labelsize=7)
    with whole(run_dir / "curves.png") as temporary:
        figure.savefig(temporary, format="png", dpi=100)
