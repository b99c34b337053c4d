"""Recipes: which parts a run is trained with. A flag that is not given takes its value from the recipe.

- `plain` is DANN (Ganin et al. 2016, JMLR 17(59)) with three differences: Adam instead of SGD, a learning rate that
  falls to 0, and augmented images.
- `plus` replaces the adversary by a mean teacher (`dann.teacher`), whose confident predictions label target images. It
  ends with target images alone, as DIRT-T (Shu et al. 2018, arXiv:1802.08735) refines a network.
- None: modes `source` and `target` do not adapt, and otherwise train like `plain`.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.cli import Parser, fraction, positive_float
from common.errors import UserError

MODES = ("source", "dann", "target")  # trained on source alone, on source and adapted to target, on target alone
_COMMON = {"geometry": True, "intensity": True, "photograph": False, "neighbours": False, "adversary": False,
           "teacher": False, "alignment": False, "target_only": 0.0, "dropout": 0.5, "lr": 1e-3,
           "lr_schedule": "cosine"}
OF_BOTH = ("adversary", "teacher", "alignment", "target_only", "neighbours")  # parts that take images of both domains
RECIPES: dict[str | None, dict[str, Any]] = {
    None: _COMMON,
    "plain": _COMMON | {"adversary": True},
    "plus": _COMMON | {"photograph": True, "neighbours": True, "teacher": True, "alignment": True, "target_only": 0.3,
                       "dropout": 0.1, "lr": 2e-3},
}


def add_recipe_flags(parser: Parser) -> None:
    """Add --recipe, --lr, and a switch for each part of a recipe."""
    parser.add_argument("--recipe", choices=("plain", "plus"), default="plus",
                        help="of --mode dann: the paper's adversary, or a teacher")
    parser.add_argument("--lr", type=positive_float, help="initial learning rate (default: "
                        f"{_COMMON['lr']:g}; recipe plus: {RECIPES['plus']['lr']:g})")
    group = parser.add_argument_group("parts of the recipe, to be switched on or off")
    for name, what in (("geometry", "move, scale, rotate and shear training images"),
                       ("intensity", "invert training images, change their contrast and brightness"),
                       ("photograph", "tint, blur, sharpen and light training images, and add noise"),
                       ("neighbours", "give source images the left and right edges of target images"),
                       ("adversary", "train the features to confuse the domain discriminator"),
                       ("teacher", "train on target images too, labelled by an average of the network"),
                       ("alignment", "align the teacher's labels with class shares: equal ones, then its own")):
        group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=what)
    group.add_argument("--target-only", metavar="SHARE", type=fraction,
                       help="of the steps, at the end, that train on target images alone")
    group.add_argument("--dropout", metavar="SHARE", type=fraction, help="of the feature channels, in training")


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with every None replaced by the recipe's value; UserError if they contradict each other."""
    mode = settings["mode"]
    recipe = settings["recipe"] if mode == "dann" else None
    for name in OF_BOTH:
        if mode != "dann" and settings[name] not in (None, _COMMON[name]):
            raise UserError(f"--{name.replace('_', '-')} belongs to --mode dann, got --mode {mode}: leave it out")
    completed = {**settings, "recipe": recipe}
    defaults = RECIPES[recipe]
    if settings["teacher"] is False:  # what needs a teacher is off too
        defaults = defaults | {"alignment": False, "target_only": 0.0}
    completed |= {name: value for name, value in defaults.items() if settings[name] is None}
    for name in ("alignment", "target_only"):
        if completed[name] and not completed["teacher"]:
            raise UserError(f"--{name.replace('_', '-')} is about a teacher's labels: it needs --teacher")
    if mode == "dann" and not (completed["adversary"] or completed["teacher"]):
        raise UserError("--mode dann needs --adversary or --teacher: to train without both, use --mode source")
    return completed


def run_dir(args: argparse.Namespace) -> Path:
    """Return the run folder that is used without --out."""
    recipe = args.recipe if args.mode == "dann" else None
    return Path("runs", "-".join(filter(None, ("dann", args.source, args.target, args.mode, recipe))))


def of_seed(out: Path, seed: int) -> Path:
    """Return the run folder of one of several seeds; `out` itself if it has no name, which the trainer refuses."""
    return out.with_name(f"{out.name}-seed{seed}") if out.name else out


def model_args_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint tells of its training; the names of embedded domains say that they are embedded."""
    model_args = {name: settings[name] for name in ("source", "target", "mode", "recipe")}
    if settings["data"] == "builtin":
        model_args |= {name: f"builtin-{settings[name].removeprefix('builtin-')}" for name in ("source", "target")}
    return model_args


def changes_of(settings: Mapping[str, Any]) -> list[str]:
    """Return how settings differ from their recipe, for the result table: ["no geometry", "lr schedule constant"]."""
    changed = {name.replace("_", " "): settings[name] for name, value in RECIPES[settings["recipe"]].items()
               if settings[name] != value}
    return [("" if value else "no ") + name if isinstance(value, bool) else f"{name} {value}"
            for name, value in changed.items()]
