"""Model files: the only place that writes or reads them.

A run's checkpoint holds all that an exact resume needs. A released file holds what inference needs: `kind`,
`model_args` and `weights`, in half precision. Both are read by `load_weights`, and never by a loader that
could run code.
"""

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.files import cannot_write, whole

FORMAT = 1
MANIFEST = "manifest.json"  # beside released files: what made each, and its SHA-256
RELEASED = Path(__file__).resolve().parent.parent / "weights"  # the checkpoints that come with the project


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint under a temporary name, flush it to the disk, and rename it.

    Raises:
        UserError: it cannot be written; what stood at `path` is as it was.
    """
    try:
        with whole(path) as temporary, open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:
        # On a full disk torch.save fails a second time, in closing the archive; the first error says why.
        if not isinstance(error.__context__, OSError):
            raise
        raise cannot_write(path, error.__context__) from error


def load(path: Path, kind: str | None = None) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: a run's checkpoint or a released file.
        kind: what it must hold, e.g. "gan/sagan"; None takes any.

    Raises:
        UserError: missing, damaged or foreign file, another kind or format.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: train one first, or name another file")
    _check_manifest(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what a foreign file might be
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # bytes at random can fail anywhere in the unpickler, and in many ways
        content = None
    if not isinstance(content, dict) or "format" not in content:
        raise UserError(f"{path} is not a checkpoint of this project, or it is damaged")
    if content["format"] != FORMAT:
        raise UserError(f"{path}: got checkpoint format {content['format']}, expected {FORMAT}")
    if not content.keys() >= {"kind", "model_args", "weights"}:
        raise UserError(f"{path} is damaged: parts of it are missing")
    if kind not in (None, content["kind"]):
        raise UserError(f"{path}: got a checkpoint of {content['kind']}, expected {kind}")
    return content


def _check_manifest(path: Path) -> None:
    """Compare a released file with what the manifest beside it says; other files have no manifest."""
    manifest = path.with_name(MANIFEST)
    if manifest.is_file():
        try:
            expected = json.loads(manifest.read_text()).get(path.name, {}).get("sha256")
        except (ValueError, AttributeError):
            raise UserError(f"{manifest} is damaged: fetch it again") from None
        if expected not in (None, sha256(path)):
            raise UserError(f"{path} is not the file that {manifest} describes: fetch it again")


def load_weights(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return (model_args, float32 state dict) of the weights that inference uses.

    Raises:
        UserError: as `load`.
    """
    content = load(path, kind)
    weights = {name: value.float() if value.is_floating_point() else value
               for name, value in content["weights"].items()}
    return content["model_args"], weights


def load_into(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load a state dict into a network.

    Raises:
        UserError: a missing, unknown or reshaped tensor of `path`, which the message names.
    """
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    got = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            raise UserError(f"{path}: {name}: got shape {got.get(name)}, expected {expected.get(name)}")
    module.load_state_dict(weights)


def release(run_checkpoint: Path, path: Path) -> dict[str, Any]:
    """Write the weights of a run's checkpoint in half precision, without anything that only training needs.

    Returns:
        what was written, but for the weights: kind, model_args and step.
    """
    content = load(run_checkpoint)
    weights = {name: value.half() if value.is_floating_point() else value
               for name, value in content["weights"].items()}
    about = {name: content[name] for name in ("kind", "model_args", "step")}
    save(path, {**about, "weights": weights})
    return about


def sha256(path: Path) -> str:
    """Return a file's SHA-256 as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
