"""The scores of a run: accuracies and validators at every preview, the network to keep, and result.json at the end."""

import argparse
import copy
import json
import logging
from pathlib import Path
from typing import Any

import torch

from common.cli import Parser
from common.data.folder import ImageSet, has_split, load_digits
from common.distributed import max_over_ranks, rank
from common.errors import UserError
from common.files import write_json
from dann.networks import DANN
from dann.predict import predict
from dann.recipes import changes_of
from dann.validators import OF_SOURCE, VALIDATORS, Outputs, judge

SPLITS = ("val", "test")  # of the target, for accuracies
MOST = 1000  # images of each domain that the validators look at

log = logging.getLogger(__name__)


def add_select_flag(parser: Parser) -> None:
    """Add --select: which preview's network is kept."""
    parser.add_argument("--select", choices=("last", *VALIDATORS), default="last",
                        help="the network that is kept: of the last step, or of the preview that a validator, which "
                             "sees no target labels, likes best")


def scored_sets(args: argparse.Namespace, unlabelled: ImageSet | None) -> dict[str, ImageSet]:
    """Load what is scored: the target's splits val and test, and what the validators look at: "target" and "source".

    Splits without images or labels are left out with a note: the coursework's test split is only a CSV file, and a
    target need not have labels at all. `unlabelled` are the target's training images; None in mode target, which needs
    no validator. Of these and of the source's val split, a fixed choice is taken.

    Raises UserError if --select names a validator that cannot be computed, or another mode than dann.
    """
    if args.select != "last" and args.mode != "dann":
        raise UserError(f"--select {args.select} chooses a step of --mode dann, got --mode {args.mode}: leave it out")
    sets = {}
    for split in SPLITS:
        if has_split(args.data, args.target, split):
            sets[split] = load_digits(args.data, args.target, split)
        else:
            log.warning("no %s score: %s has no images with labels for it", split, args.target)
    if unlabelled is not None:
        sets["target"] = _some(unlabelled)
        if has_split(args.data, args.source, "val"):
            sets["source"] = _some(load_digits(args.data, args.source, "val"))
        elif args.select in OF_SOURCE:
            raise UserError(f"--select {args.select} needs labelled val images, which {args.source} has not: choose "
                            "another validator")
        else:
            log.warning("no validators %s: %s has no val images with labels", " and ".join(OF_SOURCE), args.source)
    return sets


def _some(digits: ImageSet) -> ImageSet:
    rows = torch.randperm(len(digits.images), generator=torch.Generator().manual_seed(0))[:MOST]
    return ImageSet(digits.images[rows], None if digits.labels is None else digits.labels[rows],
                    [digits.names[row] for row in rows])


def best(rows: list[dict[str, float]], name: str) -> dict[str, float]:
    """Return the row with the highest value of `name`, the last of equal ones."""
    return max(reversed(rows), key=lambda row: row[name])


class Scores:
    """What is measured at each preview, one row each in the order of steps; and the network to keep.

    Args:
        network: the one to score, on its device; each preview finds other weights in it.
        sets: as `scored_sets` returns them.
        standardise: as in `predict`.
        select: a validator, or "last".

    Attributes:
        rows: the step, the accuracy on each split, and each validator, by name.
        kept: the network whose weights are kept: `network` itself, or a copy from the validator's best preview so far.
    """

    def __init__(self, network: DANN, sets: dict[str, ImageSet], standardise: bool, select: str) -> None:
        self.network, self.sets, self.standardise = network, sets, standardise
        self.criterion = "step" if select == "last" else select
        self.kept = network if select == "last" else copy.deepcopy(network)
        self.rows: list[dict[str, float]] = []

    def add(self, step: int) -> None:
        """Score the network after `step` updates. It is left in eval mode."""
        row, seen, device = {"step": step}, {}, next(self.network.parameters()).device
        for name, digits in self.sets.items():
            features, logits = predict(self.network, digits.images, self.standardise, device)
            if name in SPLITS:
                row[name] = (logits.argmax(1) == digits.labels).float().mean().item()
            else:  # numbers that are not finite end the run, but only when it saves
                seen |= {f"{name}_features": features.nan_to_num(0, 0, 0),
                         f"{name}_probabilities": logits.nan_to_num(0, 0, 0).softmax(1)}
        if seen:
            row |= judge(Outputs(**seen, source_labels=self.sets["source"].labels if "source" in self.sets else None))
        self.rows.append(row)
        if max_over_ranks(int(rank() == 0 and self.selected() is row)):  # others may have rounded differently
            self._keep()

    def before_save(self) -> None:
        """Let the network to keep follow the training until the first preview."""
        if not self.rows:
            self._keep()

    def _keep(self) -> None:
        if self.kept is not self.network:
            self.kept.load_state_dict(self.network.state_dict())

    def finish(self, step: int) -> None:
        """Score the network that is kept after `step` updates, unless a preview did.

        The last preview is older if a run is stopped, and its --steps are then set to what was done.
        """
        if not self.rows or (self.criterion == "step" and self.rows[-1]["step"] != step):
            self.add(step)

    def selected(self) -> dict[str, float]:
        """Return the row of the network that is kept."""
        return best(self.rows, self.criterion)

    def oracle(self) -> dict[str, float] | None:
        """Return the row with the best accuracy on val, which only target labels can choose; None without them."""
        return best(self.rows, "val") if "val" in self.rows[0] else None

    def state_dict(self) -> dict:
        """Return the rows, and the weights of the network to keep if they are not those of the training."""
        return {"rows": self.rows} | ({} if self.kept is self.network else {"kept": self.kept.state_dict()})

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.rows = state["rows"]
        if "kept" in state:
            self.kept.load_state_dict(state["kept"])


def write_result(run_dir: Path, settings: dict[str, Any], scores: Scores) -> str:
    """Write result.json of a finished run, with accuracies in 0..1; return those of the kept network as one line."""
    selected, oracle = scores.selected(), scores.oracle()
    accuracies = {split: selected[split] for split in SPLITS if split in selected}
    names = ("data", "source", "target", "mode", "recipe", "seed", "batch_size", "precision", "inputs")
    result = {name: settings[name] for name in names}
    by = [] if settings["select"] == "last" else [f"step by {settings['select']}"]
    result |= {"changes": [*changes_of(settings), *by], **json.loads((run_dir / "done").read_text()), **accuracies,
               "selected_step": selected["step"], "previews": scores.rows,
               "oracle": oracle and {name: oracle[name] for name in ("step", *SPLITS) if name in oracle}}
    write_json(run_dir / "result.json", result)
    title = " ".join(filter(None, (f"{result['source']} -> {result['target']}", result["mode"], result["recipe"])))
    scored = ", ".join(f"{name} {score:.1%}" for name, score in accuracies.items()) or "without labels"
    return f"{title}: target {scored}"
