"""The folder of one training run: who may write it, its settings and versions, and resuming.

    args.json  versions.json  metrics.jsonl  curves.png  samples/  last.pt  done

`args.json` marks a folder that holds a run; `done` marks a finished one. `versions.json` says what the run was trained
with, and lists its starts: the first one and each resume.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Set
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from common import checkpoint
from common.device import describe_machine
from common.distributed import rank, world_size
from common.errors import UserError
from common.files import lock_folder, read_json, write_json, write_text
from common.metrics_log import METRICS, read_metrics

RESULTS = {"done", "result.json", "previews.json"}  # of a finished run; only dann.train writes the .json files
FILES = {"args.json", "versions.json", METRICS, "curves.png", "samples", "last.pt", *RESULTS}
NOT_STORED = {"config", "seeds", "tensorboard"}  # flags that args.json does not have
OF_THIS_START = {"out", "resume", "epochs", "device", "dry_run", "debug"}  # never taken from an args.json
NOTED = {"steps", "lr", "g_lr", "d_lr", "precision"}  # may differ in a continuation, of which `starts` keep a note
UNRELATED = OF_THIS_START | {"log_every", "sample_every", "save_every"}  # do not change what is trained


def read_config(path: Path, names: Set[str]) -> tuple[dict[str, Any], Path]:
    """Return the settings of a run and the file that has them; `path` is its folder, its args.json or a released file.

    A released file may come from another machine: of its settings, precision and data folder are left out.

    Raises UserError if there are no settings, or others than `names`.
    """
    if path.name == "last.pt":
        path = path.parent
    if path.suffix == ".pt":
        source = path.with_name(checkpoint.MANIFEST)
        entry = read_json(source, "the manifest of a released file; of a run, name the folder").get(path.name)
        settings = entry.get("args") if isinstance(entry, dict) else None
        if not isinstance(settings, dict):
            raise UserError(f"{source} has no settings of {path.name}: name another released file, or a run's folder")
    else:
        source = path / "args.json" if path.is_dir() else path
        settings = read_json(source, "the settings of a run")
    if other := sorted(settings.keys() ^ names):
        raise UserError(f"{path} has the settings of another command or version, which differ in "
                        f"{', '.join(other[:3])}{', ...' * (len(other) > 3)}: start without --config")
    if path.suffix == ".pt":
        of_a_machine = {"precision", *({"data"} if settings["data"] != "builtin" else ())}
        settings = {name: value for name, value in settings.items() if name not in of_a_machine}
    return settings, source


class RunFolder:
    """A run folder, created if it does not exist. Process 0 holds its lock until the run ends, in whatever way.

    Args:
        path: of the folder.
        settings: of the command line; `resume` is None, "auto" or the path of a checkpoint.
        inputs: a hash of the content of each setting that names a file or folder which the run reads.

    Raises:
        UserError: the folder holds a run that `resume` does not continue, or files of something else; another process
            trains there; it cannot be written.
    """

    def __init__(self, path: Path, settings: dict[str, Any], inputs: dict[str, str]) -> None:
        self.path, self.settings, self.inputs = path, settings, inputs
        self.checkpoint_path = path / "last.pt"
        self.starts: list[dict[str, Any]] = []
        self._changes: dict[str, Any] = {}
        self._is_new = not path.exists()
        self._lock = FileLock(path / ".lock")
        if rank() == 0:
            self._names_before = self._claim()

    def _claim(self) -> set[str]:
        """Lock the folder, if it is empty or holds the run to continue; return the names that it holds."""
        resume, names = self.settings["resume"], set(os.listdir(self.path)) if self.path.is_dir() else set()
        if "args.json" in names:
            if resume != "auto" and not (resume and Path(resume).resolve() == self.checkpoint_path.resolve()):
                raise UserError(f"{self.path} already holds a run: --resume auto continues it, --out DIR starts "
                                "another")
            if set(read_json(self.path / "args.json", "the settings of a run")) != self.settings.keys():
                raise UserError(f"{self.path} holds a run of another command or version: name another --out")
        elif foreign := sorted(FILES & names):
            raise UserError(f"{self.path} has {foreign[0]}, but not of a run: name another --out")
        try:
            lock_folder(self._lock)
        except Timeout:
            raise UserError(f"{self.path}: another process trains there: wait for it, or name another --out") from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot write the run folder ({error.strerror}): "
                            "name another --out") from error
        return names

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def abandon(self) -> None:
        """Remove the files of a run that could not start, while the folder is still locked, and release the lock."""
        if rank() == 0:
            with contextlib.suppress(OSError):
                for name in {"args.json", "versions.json", METRICS, ".lock"} - self._names_before:
                    (self.path / name).unlink(missing_ok=True)
                if self._is_new:
                    self.path.rmdir()
        self.release()

    def load_checkpoint(self, kind: str, part_names: set[str]) -> dict[str, Any] | None:
        """Return the checkpoint to resume from, or None for a new run.

        Raises UserError if the checkpoint is missing, or of another kind, version, setting or input.
        """
        resume = self.settings["resume"]
        if resume is None:
            return None
        if resume == "auto" and not self.checkpoint_path.exists():
            rows, path = read_metrics(self.path), self.path / "args.json"
            # The settings with which the rows were logged: --save-every may differ now.
            logged = read_json(path, "the settings of a run") if path.exists() else self.settings
            if (self.path / "done").exists() or (rows and rows[-1]["step"] > logged["save_every"]):
                raise UserError(f"{self.checkpoint_path} is gone: put it back, or name another --out")
            return None
        path = self.checkpoint_path if resume == "auto" else Path(resume)
        content = checkpoint.load(path, kind)
        if "parts" not in content:
            raise UserError(f"{path} is a released file: it has the weights, but not what a resume needs")
        before, step = content.get("args", {}), content["step"]
        other = f"{path} was written by another version of this project: start a new run"
        if not content.keys() >= {"inputs", "starts"} or before.keys() != self.settings.keys():
            raise UserError(other)
        for name, value in self.settings.items():
            if name not in UNRELATED | NOTED | self.inputs.keys() and before[name] != value:
                raise UserError(f"{path} was trained with {name}={before[name]}, got {name}={value}: resume with the "
                                "same")
        if content["parts"].keys() != part_names:
            raise UserError(other)
        for name, value in self.inputs.items():
            if content["inputs"].get(name) != value:
                raise UserError(f"{path} was trained with another content of --{name}, got {self.settings[name]}: "
                                "resume with the same, or start a new run with another --out")
        if self.settings["steps"] < step:
            raise UserError(f"{path} is at step {step}, got --steps {self.settings['steps']}: give at least {step}, or "
                            "start a new run with another --out")
        print(f"resumed {path} at step {step}")
        self.starts = content["starts"]
        self._changes = {name: value for name, value in self.settings.items()
                         if name in NOTED and before[name] != value}
        for name, value in self._changes.items():
            print(f"{name}: {before[name]} until step {step}, {value} from here on")
        if "steps" in self._changes and self.settings["lr_schedule"] != "constant":
            print(f"a {self.settings['lr_schedule']} schedule depends on --steps: the learning rate jumps to that of "
                  "the new plan")
        return content

    def open(self, step: int, device: torch.device) -> None:
        """Write settings and versions, and remove what belongs to later steps: metrics, samples, and the results."""
        program = Path(sys.argv[0])  # .../gan/train.py is the module gan.train
        command = shlex.join(["python", "-m", f"{program.parent.name}.{program.stem}", *sys.argv[1:]])
        machine = describe_machine(device)
        if not self.starts or step < self.settings["steps"]:
            self.starts = [*self.starts, {"step": step, "command": command, "machine": machine, **self._changes}]
        versions = {"python": platform.python_version(), "torch": torch.__version__,
                    **{name: importlib.metadata.version(name) for name in ("torchvision", "numpy", "pillow")},
                    "machine": machine, "processes": world_size(), "command": command, "starts": self.starts}
        write_json(self.path / "args.json", self.settings)
        write_json(self.path / "versions.json", versions)
        for name in RESULTS:  # the end of an earlier, shorter run
            (self.path / name).unlink(missing_ok=True)
        # A killed run may have logged and drawn later steps than its last checkpoint; they will be computed again.
        for sample in (self.path / "samples").glob("[0-9]" * 7 + ".png"):
            if int(sample.stem) > step:
                sample.unlink()
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        write_text(self.path / METRICS, "".join(json.dumps(row) + "\n" for row in kept))
