"""The loop around a training step: progress, logging, checkpoints, a clean stop on a signal, exact resume.

`step` counts the optimizer updates that are done. Only process 0 writes; all processes stop after the same step.
"""

import datetime
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from common import checkpoint
from common.device import WARM_UP, peak_memory, synchronize
from common.distributed import barrier, max_over_ranks, rank, require_equal_replicas
from common.errors import UserError
from common.files import drop_stdout, write_json
from common.metrics_log import MetricsLog, append_row, plot_curves, require_tensorboard
from common.randomness import seed_step
from common.run_folder import NOT_STORED, RunFolder

CLOSED = 13  # the number of SIGPIPE: nobody reads standard output any more; Windows has no such signal
LARGEST_LOSS = 1e4  # a loss beyond it has diverged: all losses here are of the order of 1
DRY_RUN_STEPS = 3  # that are timed


class Run:
    """A training run.

    Args:
        out: the run folder. It must not hold a run, unless `settings["resume"]` is set.
        kind: of the checkpoint, e.g. "gan/sagan".
        settings: of the command line; stored, and compared on resume.
        model_args: what rebuilds the network for inference.
        parts: networks, optimizers, averages and batch streams by name; a checkpoint stores their `state_dict`.
        weights: the network that inference uses (the EMA, where there is one).
        inputs: a hash of the content of each setting that names a file or folder which the run reads.

    Raises:
        UserError: the folder holds a run and `resume` is None, or the checkpoint does not fit.
    """

    def __init__(self, out: Path, kind: str, settings: dict[str, Any], model_args: dict[str, Any],
                 parts: dict[str, Any], weights: nn.Module, inputs: dict[str, str]) -> None:
        self.kind, self.model_args, self.parts, self.weights = kind, model_args, parts, weights
        self.settings = {name: str(value) if isinstance(value, Path) else value
                         for name, value in sorted(settings.items()) if name not in NOT_STORED}
        self._tensorboard, self._events = settings.get("tensorboard", False), None
        self.step = 0
        self.seconds = 0.0  # of training, including the time before a resume
        self.device = next(weights.parameters()).device
        self._log = MetricsLog()
        self._signal = 0
        if settings["dry_run"]:
            return
        self.folder = RunFolder(out, self.settings, inputs)
        barrier()
        try:
            self._resume()
            require_equal_replicas(self.step, self.weights, *self._networks())
            if rank() == 0:
                self.folder.open(self.step, self.device)
        except BaseException:
            self.folder.abandon()
            raise

    def _networks(self) -> list[nn.Module]:
        return [part for part in self.parts.values() if isinstance(part, nn.Module)]

    def _resume(self) -> None:
        content = self.folder.load_checkpoint(self.kind, set(self.parts))
        if content is None:
            return
        for name, part in self.parts.items():
            part.load_state_dict(content["parts"][name])
        self.step, self.seconds = content["step"], content["seconds"]
        self._log.load_state_dict(content["log"], self.device)

    def save(self) -> None:
        """Write the checkpoint, unless a number in it is not finite."""
        self._sane_means()
        require_equal_replicas(self.step, self.weights, *self._networks())
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        for name, value in _float_tensors(parts):  # an update can spoil weights although its loss was finite
            if not value.isfinite().all():
                raise self._diverged(name, "not finite")
        if rank() == 0:
            checkpoint.save(self.folder.checkpoint_path, {
                "kind": self.kind, "args": self.settings, "inputs": self.folder.inputs, "starts": self.folder.starts,
                "model_args": self.model_args, "step": self.step, "parts": parts,
                "weights": self.weights.state_dict(), "log": self._log.state_dict(), "seconds": self.seconds})

    def record(self, metrics: dict[str, Tensor]) -> None:
        """Add the 0-d metrics of the current step to the running means."""
        self._log.add(metrics)

    def due(self, every: int) -> bool:
        """Return whether the current step is a multiple of `every`, or the last one; never in a dry run."""
        if self.settings["dry_run"]:
            return False
        return (self.step + 1) % every == 0 or self.step + 1 == self.settings["steps"]

    def sample_path(self) -> Path:
        """Return the path for the preview of the current step."""
        return self.folder.path / "samples" / f"{self.step + 1:07d}.png"

    def steps(self, diagnose: Callable[[dict[str, float]], str | None] = lambda row: None,
              before_save: Callable[[], None] = lambda: None) -> Iterator[int]:
        """Yield the remaining steps, seeded by (seed, step, rank); after each loop body, log and save what is due.

        A signal ends the loop after the current step, saves, and exits with 128 + its number. So does a closed standard
        output. A dry run ends after a few steps, writes nothing, and exits with 0.

        Args:
            diagnose: maps a logged row to a one-line warning about the training, or None. Each line is printed once.
            before_save: brings `weights` up to date, whenever a checkpoint is due.
        """
        if self.settings["dry_run"]:
            yield from self._dry_run()
        settings, start, seconds_before = self.settings, self.step, self.seconds
        num_steps = settings["steps"]
        if start >= num_steps:
            print(f"{self.folder.path}: {start} steps are done already; a larger --steps continues")
        elif self._tensorboard and rank() == 0:  # what a killed run wrote of later steps is not shown
            self._events = require_tensorboard()(self.folder.path, purge_step=start + 1)
        numbers = [signal.SIGINT, signal.SIGTERM]
        hangup = getattr(signal, "SIGHUP", None)  # a closed terminal; nohup ignores it, and Windows has none
        if hangup and signal.getsignal(hangup) != signal.SIG_IGN:
            numbers.append(hangup)
        handlers = {number: signal.signal(number, self._on_signal) for number in numbers}
        bar = tqdm(total=num_steps, initial=start, unit="step", disable=rank() > 0 or not sys.stderr.isatty())
        began, warned = time.perf_counter(), set()
        try:
            while self.step < num_steps:
                seed_step(settings["seed"], self.step)
                yield self.step
                log, save = self.due(settings["log_every"]), self.due(settings["save_every"])
                self.step += 1
                self.seconds = seconds_before + time.perf_counter() - began
                bar.update()
                if log:
                    rate = (self.step - start) * settings["batch_size"] / (self.seconds - seconds_before)
                    warning = diagnose(self._log_row(bar, rate))
                    if warning and warning not in warned:
                        warned.add(warning)
                        bar.write(f"step {self.step}: {warning}")
                stop = max_over_ranks(self._signal)
                if save or stop:
                    before_save()
                    self.save()
                if stop:
                    if rank() == 0:
                        why = "standard output is closed or full, " * (stop == CLOSED)
                        print(f"{why}stopped at step {self.step}: --resume auto continues from here", file=sys.stderr)
                    raise SystemExit(128 + stop)
            bar.close()
            if rank() == 0:
                memory = peak_memory(self.device) / 2**30
                print(f"{self.step} steps, {self.seconds:.0f} s, peak memory {memory:.1f} GiB")
                plot_curves(self.folder.path, [resume["step"] for resume in self.folder.starts[1:]])
                write_json(self.folder.path / "done", {"steps": self.step, "seconds": round(self.seconds, 1)})
        finally:
            bar.close()
            self.folder.release()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: object) -> None:
        self._signal = number

    def _dry_run(self) -> Iterator[int]:
        """Yield a few steps, print what the run will take, and exit."""
        untimed = 1 if self.device.type == "cpu" else WARM_UP + 1  # slower: on a GPU, up to the capture
        for i in range(untimed + DRY_RUN_STEPS):
            if i == untimed:
                synchronize(self.device)
                began = time.perf_counter()
            seed_step(self.settings["seed"], i)
            yield i
        synchronize(self.device)
        seconds = (time.perf_counter() - began) / DRY_RUN_STEPS
        count = sum(parameter.numel() for network in self._networks() for parameter in network.parameters())
        num_steps, memory = self.settings["steps"], peak_memory(self.device) / 2**30
        print(f"{count:,} parameters, peak memory {memory:.1f} GiB, {seconds:.2g} s per step, "
              f"{clock(seconds * num_steps)} for {num_steps} steps without previews")
        raise SystemExit(0)

    def _sane_means(self) -> dict[str, float]:
        """Return the means of the metrics since the last row; UserError if one shows that the run diverged."""
        means = self._log.means()
        for name, mean in means.items():
            if not math.isfinite(mean) or (name.endswith("loss") and abs(mean) > LARGEST_LOSS):
                raise self._diverged(name, mean)
        return means

    def _diverged(self, name: str, value: float | str) -> UserError:
        cure = "a lower learning rate or --precision fp32"
        path = self.folder.checkpoint_path
        cure = (f"{path} is from before; --resume auto continues it with {cure}" if path.exists() else
                f"no checkpoint was written yet; start again with {cure}")
        return UserError(f"{name} became {value} before step {self.step}: {cure}")

    def _log_row(self, bar: tqdm, rate: float) -> dict[str, float]:
        lrs = {name.replace("optimizer", "lr"): float(part.param_groups[0]["lr"]) for name, part in self.parts.items()
               if isinstance(part, Optimizer)}
        row = {"step": self.step} | self._sane_means() | lrs
        self._log.clear()
        append_row(self.folder.path, row, self._events)
        shown = " ".join(f"{name}={value:.4g}" for name, value in row.items() if name != "step")
        if bar.disable:
            num_steps = self.settings["steps"]
            left = clock((num_steps - self.step) * self.settings["batch_size"] / rate)
            self._print(f"step {self.step}/{num_steps} {shown} {rate:.0f} images/s, {left} left")
        else:
            bar.set_postfix_str(shown)
        return row

    def _print(self, line: str) -> None:
        """Print a line; if nobody reads it any more, stop as after a signal."""
        try:
            print(line, flush=True)
        except OSError:
            drop_stdout()
            self._signal = CLOSED


def clock(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds: "1:02:03"."""
    return str(datetime.timedelta(seconds=round(seconds)))


def _float_tensors(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the floating-point tensors of nested dicts and lists with their path, e.g. model.inc.weight."""
    if isinstance(state, Tensor):
        if state.is_floating_point():
            yield name, state
    elif isinstance(state, dict | list | tuple):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from _float_tensors(value, f"{name}.{key}".lstrip("."))
