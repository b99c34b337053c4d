"""The folder of one training run: who may write it, its settings and versions, and resuming.

    args.json  versions.json  metrics.jsonl  curves.png  samples/  last.pt  done

`args.json` marks a folder that holds a run; `done` marks a finished one.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from common import checkpoint
from common.device import describe_machine
from common.distributed import rank, world_size
from common.errors import UserError
from common.files import write_json, write_text
from common.metrics_log import METRICS, read_metrics

# Settings that may differ between a run and its continuation.
FREE_ON_RESUME = {"out", "resume", "steps", "epochs", "log_every", "sample_every", "save_every", "dry_run",
                  "device", "debug"}


class RunFolder:
    """A run folder, created if it does not exist. Process 0 holds its lock until the run ends, in whatever way.

    `resume` among the settings is None, "auto" or the path of a checkpoint.

    Raises:
        UserError: the folder holds a run and `resume` is None; another process trains there; it cannot be written.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.checkpoint_path = path / "last.pt"
        self._is_new = not path.exists()
        self._lock = self._claim() if rank() == 0 else None
        self._names_before = set(os.listdir(path)) if rank() == 0 else set()

    def _claim(self) -> int:
        """Lock the folder and return its file descriptor."""
        if self.settings["resume"] is None and (self.path / "args.json").exists():
            raise UserError(f"{self.path} already holds a run: --resume auto continues it, --out DIR starts another")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            folder = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{self.path}: cannot write the run folder ({error.strerror}): "
                            "name another --out") from error
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(folder)
            raise UserError(f"{self.path}: another process trains there: wait for it, or name another --out") from None
        except OSError:
            pass  # some network file systems have no locks
        return folder

    def release(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)

    def abandon(self) -> None:
        """Remove the files of a run that could not start, and release the lock."""
        if rank() == 0:
            with contextlib.suppress(OSError):
                for name in {"args.json", "versions.json", METRICS} - self._names_before:
                    (self.path / name).unlink(missing_ok=True)
                if self._is_new:
                    self.path.rmdir()
        self.release()

    def load_checkpoint(self, kind: str, part_names: set[str]) -> dict[str, Any] | None:
        """Return the checkpoint to resume from, or None for a new run.

        Raises UserError if the checkpoint is missing, or of another kind, version or setting.
        """
        resume = self.settings["resume"]
        if resume is None or (resume == "auto" and not self.checkpoint_path.exists()):
            return None
        path = self.checkpoint_path if resume == "auto" else Path(resume)
        content = checkpoint.load(path, kind)
        if "parts" not in content:
            raise UserError(f"{path} is a released file: it has the weights, but not what a resume needs")
        if content["parts"].keys() != part_names and content["args"].keys() != self.settings.keys():
            raise UserError(f"{path} was written by another version of this project: start a new run")
        for name, value in self.settings.items():
            before = content["args"].get(name)
            if name not in FREE_ON_RESUME and before != value:
                raise UserError(f"{path} was trained with {name}={before}, got {name}={value}: resume with the same")
        print(f"resumed {path} at step {content['step']}")
        return content

    def open(self, step: int) -> None:
        """Write settings and versions, and remove what belongs to later steps: metrics, `done`, DANN's result.json."""
        program = Path(sys.argv[0])  # .../gan/train.py is the module gan.train
        versions = {"python": platform.python_version(), "torch": torch.__version__,
                    **{name: importlib.metadata.version(name) for name in ("torchvision", "numpy", "pillow")},
                    "machine": describe_machine(), "processes": world_size(),
                    "command": shlex.join(["python", "-m", f"{program.parent.name}.{program.stem}", *sys.argv[1:]])}
        write_json(self.path / "args.json", self.settings)
        write_json(self.path / "versions.json", versions)
        for name in ("done", "result.json"):  # the end of an earlier, shorter run
            (self.path / name).unlink(missing_ok=True)
        # A killed run may have logged steps after its last checkpoint; they will be computed again.
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        write_text(self.path / METRICS, "".join(json.dumps(row) + "\n" for row in kept))
