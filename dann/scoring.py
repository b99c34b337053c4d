"""The scores of a run: accuracies and validators at every preview, the network to keep, and the files of results."""

import argparse
import copy
import logging
from pathlib import Path
from typing import Any

from common.cli import Parser
from common.data.folder import ImageSet, has_split, load_digits
from common.distributed import max_over_ranks, rank
from common.errors import UserError
from common.files import read_json, write_json
from dann.networks import DANN
from dann.predict import predict
from dann.recipes import MODES, RECIPES, changes_of
from dann.validators import OF_SOURCE, VALIDATORS, Outputs, compute_validators

SPLITS = ("val", "test")  # of the target, for accuracies
SETTINGS = ("data", "source", "target", "mode", "recipe", "seed", "batch_size", "precision", "inputs")  # in result.json
MOST = 1000  # images of each domain that the validators look at

log = logging.getLogger(__name__)


def add_select_flag(parser: Parser) -> None:
    """Add --select: which preview's network is kept."""
    parser.add_argument("--select", choices=("last", *VALIDATORS), default="last",
                        help="the network that is kept: of the last step, or of the preview that a validator, which "
                             "sees no target labels, likes best")


def scored_sets(args: argparse.Namespace, unlabelled: ImageSet | None = None) -> dict[str, ImageSet]:
    """Load "val" and "test" of the target for accuracies, "target" and "source" for validators.

    "target" is a fixed choice from the target's training images, which are `unlabelled` in mode dann; mode target needs
    no validators. "source" is one from the source's val split. What has no images or labels is left out with a note.

    Raises UserError if --select does not go with --mode, or names a validator that cannot be computed.
    """
    if args.select != "last" and args.mode != "dann":
        raise UserError(f"--select {args.select} chooses a step of --mode dann, got --mode {args.mode}: type "
                        "--select last")
    sets = {}
    for split in SPLITS:
        if has_split(args.data, args.target, split):
            sets[split] = load_digits(args.data, args.target, split)
        else:
            log.warning("no %s score: %s has no images with labels for it", split, args.target)
    if args.mode == "source":
        try:
            unlabelled = load_digits(args.data, args.target, "train", labelled=False)
        except UserError as missing:  # this mode trains without them
            log.warning("no validators: %s", missing)
    if unlabelled is not None:
        sets["target"] = unlabelled.sample(MOST)
        if has_split(args.data, args.source, "val"):
            sets["source"] = load_digits(args.data, args.source, "val").sample(MOST)
        elif args.select in OF_SOURCE:
            raise UserError(f"--select {args.select} needs labelled val images, which {args.source} has not: choose "
                            "another validator")
        else:
            log.warning("no validators %s: %s has no val images with labels", " and ".join(OF_SOURCE), args.source)
    return sets


def best(rows: list[dict[str, float]], name: str) -> dict[str, float]:
    """Return the row with the highest value of `name`, the last of equal ones."""
    return max(reversed(rows), key=lambda row: row[name])


class Scores:
    """Score `network`, which is being trained, at each preview, and keep the one that is wanted.

    `sets` are those of `scored_sets`, and `select` is a validator or "last".

    `rows` has of each preview the step, the accuracy on each split in 0..1, and each validator, by name. `kept` is the
    network to keep: `network` itself, or a copy, which is as `network` was at the validator's best preview so far.
    """

    def __init__(self, network: DANN, sets: dict[str, ImageSet], select: str) -> None:
        self.network, self.sets = network, sets
        self.criterion = "step" if select == "last" else select
        self.kept = network if select == "last" else copy.deepcopy(network)
        self.rows: list[dict[str, float]] = []

    def add(self, step: int) -> None:
        """Score the network after `step` updates. It is left in eval mode."""
        row, seen, device = {"step": step}, {}, next(self.network.parameters()).device
        for name, digits in self.sets.items():
            features, logits = predict(self.network, digits.images, device)
            if name in SPLITS:
                row[name] = (logits.argmax(1) == digits.labels).float().mean().item()
            else:  # numbers that are not finite end the run, but only when it saves
                seen |= {f"{name}_features": features.nan_to_num(0, 0, 0),
                         f"{name}_probabilities": logits.nan_to_num(0, 0, 0).softmax(1)}
        if seen:
            labels = self.sets["source"].labels if "source" in self.sets else None
            row |= compute_validators(Outputs(**seen, source_labels=labels))
        self.rows.append(row)
        if max_over_ranks(int(rank() == 0 and self.selected() is row)):  # others may have rounded differently
            self._keep()

    def before_save(self) -> None:
        """Until the first preview, keep the network as it is."""
        if not self.rows:
            self._keep()

    def _keep(self) -> None:
        self.kept.load_state_dict(self.network.state_dict())  # which changes nothing if they are the same

    def finish(self, step: int) -> None:
        """Score the kept network, unless a preview did: --steps may end a stopped run between two previews."""
        if not self.rows or (self.criterion == "step" and self.rows[-1]["step"] != step):
            self.add(step)

    def selected(self) -> dict[str, float]:
        """Return the row of the kept network."""
        return best(self.rows, self.criterion)

    def state_dict(self) -> dict:
        """Return the rows, and the weights of the kept network if it is a copy."""
        return {"rows": self.rows} | ({} if self.kept is self.network else {"kept": self.kept.state_dict()})

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.rows = state["rows"]
        if "kept" in state:
            self.kept.load_state_dict(state["kept"])


def write_result(run_dir: Path, settings: dict[str, Any], scores: Scores) -> str:
    """Write the scores of a finished run, with accuracies in 0..1; return those of the kept network as one line.

    result.json is about the kept network, previews.json about all previews.
    """
    kept, rows, select = scores.selected(), scores.rows, settings["select"]
    oracle = best(rows, "val") if "val" in rows[0] else None  # which only target labels can choose
    accuracies = {split: kept[split] for split in SPLITS if split in kept}
    parts = {name: settings[name] for name in RECIPES[None]}
    write_json(run_dir / "result.json", {
        **{name: settings[name] for name in SETTINGS}, "parts": parts,
        "changes": changes_of(settings) + [f"step by {select}"] * (select != "last"),
        **read_json(run_dir / "done", "the end of a run"), **accuracies, "selected_step": kept["step"],
        "oracle": oracle and {name: oracle[name] for name in ("step", *SPLITS) if name in oracle}})
    write_json(run_dir / "previews.json", {"previews": rows})
    method = " ".join(filter(None, (settings["mode"], settings["recipe"])))
    scored = ", ".join(f"{name} {score:.1%}" for name, score in accuracies.items()) or "without labels"
    return f"{settings['source']} -> {settings['target']} {method}: target {scored}"


def read_result(run_dir: Path) -> dict[str, Any]:
    """Return result.json and "run_dir"; UserError if the file is missing, of something else, or without scores."""
    path = run_dir / "result.json"
    result = read_json(path, "the scores of a run of dann.train, which --resume auto finishes")
    if not result.keys() >= {*SETTINGS, "parts", "changes", "steps", "oracle"}:
        raise UserError(f"{path} does not hold the scores of a run of dann.train: leave it out")
    mode, recipe = result["mode"], result["recipe"]
    if mode not in MODES or recipe not in RECIPES or (mode == "dann") != (recipe is not None):
        raise UserError(f"{path}: recipe {recipe} of mode {mode} is of another version: leave it out")
    if not result.keys() & set(SPLITS):
        raise UserError(f"{run_dir} has no scores, because its target has no labels: leave it out")
    return result | {"run_dir": run_dir}
