"""Checkpoints: the only module that writes or reads model files.

A run's checkpoint holds all that an exact resume needs. A released file holds what inference needs: `kind`,
`model_args` and `weights`, in half precision. `load_weights` reads both. No file can run code when it is loaded.
"""

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.files import atomic_path, cannot_write, read_json

FORMAT = 1
MANIFEST = "manifest.json"  # stands beside released files: how each was made, and its SHA-256
RELEASED = Path(__file__).resolve().parent.parent / "weights"  # the checkpoints that come with the project


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically, flushed to the disk before it gets its name. Raises UserError if it cannot."""
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:
        # On a full disk torch.save fails a second time, when it closes the archive; the first error has the reason.
        if not isinstance(error.__context__, OSError):
            raise
        raise cannot_write(path, error.__context__) from error


def load(path: Path, *kinds: str) -> dict[str, Any]:
    """Read a run's checkpoint or a released file onto the CPU.

    `kinds` are the expected kinds, e.g. "gan/sagan"; without them, any is accepted. Raises UserError for a missing,
    damaged or foreign file, and for another kind or format.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: train one first, or name another file")
    _check_manifest(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about foreign files
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check its permissions") from None
    except Exception:  # random bytes make the unpickler fail in many ways
        content = None
    if not isinstance(content, dict) or "format" not in content:
        raise UserError(f"{path} is not a checkpoint of this project, or it is damaged")
    if content["format"] != FORMAT:
        raise UserError(f"{path}: got checkpoint format {content['format']}, expected {FORMAT}")
    if not content.keys() >= {"kind", "model_args", "weights"}:
        raise UserError(f"{path} is damaged: parts of it are missing")
    if kinds and content["kind"] not in kinds:
        raise UserError(f"{path}: got a checkpoint of {content['kind']}, expected {' or '.join(kinds)}")
    return content


def _check_manifest(path: Path) -> None:
    """Compare a released file with the SHA-256 in the manifest beside it, if there is one."""
    manifest = path.with_name(MANIFEST)
    if manifest.is_file():
        try:
            expected = read_json(manifest, "a manifest").get(path.name, {}).get("sha256")
        except AttributeError:
            raise UserError(f"{manifest} is damaged: fetch it again") from None
        if expected not in (None, sha256(path)):
            raise UserError(f"{path} is not the file that {manifest} describes: fetch it again")


def load_weights(path: Path, *kinds: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return (model_args, float32 state dict) for inference. Raises UserError like `load`."""
    content = load(path, *kinds)
    weights = {name: w.float() if w.is_floating_point() else w for name, w in content["weights"].items()}
    return content["model_args"], weights


def load_into(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load a state dict, read from `path`, into a network. Raises UserError with the first tensor that does not fit."""
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    got = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            raise UserError(f"{path}: {name}: got shape {got.get(name)}, expected {expected.get(name)}")
    module.load_state_dict(weights)


def sha256(path: Path) -> str:
    """Return a file's SHA-256 as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
