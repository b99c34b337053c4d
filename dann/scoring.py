"""The scores of a run: accuracy on held-out target digits at every preview, and result.json at the end."""

import json
import logging
from pathlib import Path
from typing import Any

import torch

from common.data.folder import ImageSet, has_split, load_digits
from common.files import write_json
from dann.networks import DANN
from dann.predict import predict
from dann.recipes import changes_of

log = logging.getLogger(__name__)


def held_out(data: str, domain: str) -> dict[str, ImageSet]:
    """Load the splits to score, val and test, where they have images and labels; a note says which is left out.

    The coursework's test split is only a CSV file, and a target need not have labels at all.
    """
    splits = {}
    for split in ("val", "test"):
        if has_split(data, domain, split):
            splits[split] = load_digits(data, domain, split)
        else:
            log.warning("no %s score: %s has no images with labels for it", split, domain)
    return splits


class Scores:
    """The accuracy of a network on each of `splits`, one row per preview, in the order of steps.

    `standardise` and `device` are those of the network, as in `predict`.
    """

    def __init__(self, splits: dict[str, ImageSet], standardise: bool, device: torch.device) -> None:
        self.splits, self.standardise, self.device = splits, standardise, device
        self.rows: list[dict[str, float]] = []

    def add(self, model: DANN, step: int) -> None:
        """Score the network after `step` updates. It is left in eval mode."""
        row = {"step": step}
        for name, digits in self.splits.items():
            _, predicted = predict(model, digits.images, self.standardise, self.device)
            row[name] = (predicted == digits.labels).float().mean().item()
        self.rows.append(row)

    def oracle(self) -> dict[str, float] | None:
        """Return the row with the best accuracy on val, which only target labels can choose; None without them."""
        return max(self.rows, key=lambda row: row["val"]) if "val" in self.rows[0] else None

    def state_dict(self) -> dict:
        """Return the rows."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.rows = state["rows"]


def write_result(run_dir: Path, settings: dict[str, Any], scores: Scores) -> str:
    """Write result.json of a finished run, with accuracies in 0..1; return those of the last step as one line."""
    last = {name: score for name, score in scores.rows[-1].items() if name != "step"}
    names = ("data", "source", "target", "mode", "recipe", "seed", "batch_size", "precision", "inputs")
    result = {name: settings[name] for name in names}
    result |= {"changes": changes_of(settings), **json.loads((run_dir / "done").read_text())}
    write_json(run_dir / "result.json", result | last | {"oracle": scores.oracle()})
    title = " ".join(filter(None, (f"{result['source']} -> {result['target']}", result["mode"], result["recipe"])))
    return f"{title}: target " + (", ".join(f"{name} {score:.1%}" for name, score in last.items()) or "without labels")
