"""Train one row of the domain adaptation table: on source, with DANN, or on target.

    python -m dann.train --source mnistm --target usps --mode dann --recipe plus --data hw2_data

DANN (Ganin & Lempitsky 2015, arXiv:1409.7495; Ganin et al. 2016, JMLR 17(59)) on the report's network. All rows
share inputs (`dann.inputs`), optimiser and schedule; target labels train mode target alone, and no step is chosen
by them: the network of the last one is scored. Recipe `plain` is the paper's algorithm, but for Adam instead of
SGD and the augmentation. Recipe `plus` puts a teacher (`dann.teacher`) in the adversary's place: its confident
readings of target images become their labels, and its weights are kept. Its learning rate is higher and falls to 0,
so that what it ends with is settled. Every part has a switch; `--adversary` brings the domain loss back.

Source and target go through the network one after the other, so that batch normalisation sees one domain at a
time; the network's running statistics see both, the teacher's the target alone.

The run folder gets metrics.jsonl (domain_accuracy 0.5 means that the domains cannot be told apart),
augmented images under samples/, last.pt for resume and inference, curves.png and result.json. The network is
scored at every preview too; the best of these scores, which only target labels can find, is reported as the
oracle and used for nothing. An epoch is a pass over the smaller training set. `progress` is the share of
--steps: a resume with another --steps follows another schedule.
"""

import argparse
import json
import logging
import math
from pathlib import Path

import torch
from torch import Tensor

from common.batches import Batches
from common.cli import (
    Parser,
    add_sync_bn_flag,
    add_training_flags,
    describe,
    non_negative_int,
    positive_float,
    resolve_steps,
    run_main,
)
from common.datasets import DOMAINS, ImageSet, load_digits
from common.device import autocast, place, seed_everything, select_device, select_dtype
from common.distributed import (
    average_gradients,
    average_statistics,
    first_alone,
    join,
    own_draws,
    rank,
    share,
    sync_batch_norm,
    world_size,
)
from common.ema import EMA
from common.errors import UserError
from common.files import write_json
from common.images import grid, save_picture, to_uint8
from common.runlog import Run
from dann.grl import grl_coeff
from dann.inputs import network_input, scale_range
from dann.losses import called_source, class_loss, domain_accuracy, domain_loss, pseudo_label_loss
from dann.networks import DANN, KIND
from dann.predict import predict
from dann.teacher import DECAY, pseudo_labels

MODES = ("source", "dann", "target")
# A flag that is not given takes its value from here. Without a target there is nothing to adapt to: recipe None.
COMMON = {"geometry": True, "intensity": True, "standardise": True}
RECIPES = {None: COMMON | {"adversary": False, "teacher": False, "balance": False, "lr": 1e-3, "lr_decay": "paper"},
           "plain": COMMON | {"adversary": True, "teacher": False, "balance": False, "lr": 1e-3, "lr_decay": "paper"},
           "plus": COMMON | {"adversary": False, "teacher": True, "balance": True, "lr": 2e-3, "lr_decay": "cosine"}}
LR_DECAYS = ("paper", "cosine")
PREVIEW = 16  # augmented images a domain


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_training_flags(parser, steps=2000, batch_size=128)
    add_sync_bn_flag(parser)
    domains = (*DOMAINS, *(f"builtin-{domain}" for domain in DOMAINS))
    parser.add_argument("--source", choices=domains, default="mnistm", help="domain with labels")
    parser.add_argument("--target", choices=domains, default="usps", help="domain to adapt to")
    parser.add_argument("--mode", choices=MODES, default="dann", help="row of the table")
    parser.add_argument("--recipe", choices=("plain", "plus"), default="plus",
                        help="of mode dann (default: %(default)s)")
    parser.add_argument("--seeds", metavar="N", type=non_negative_int, nargs="+",
                        help="train once with each of them, in the run folder's name plus -seed0, ...")
    parser.add_argument("--lr", type=positive_float, help="(default: 1e-3; recipe plus 2e-3)")
    parser.add_argument("--lr-decay", choices=LR_DECAYS, help="(default: paper; recipe plus cosine)")
    for name, about in (("geometry", "move, scale, turn and shear training images"),
                        ("intensity", "invert and recolour training images"),
                        ("standardise", "mean 0 and deviation 1 for every image, in inference too"),
                        ("adversary", "the domain loss"),
                        ("teacher", "learn the digits that an average of the network reads in target images"),
                        ("balance", "align what it reads with equally many of each digit")):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=about)
    args = parser.parse_args(argv)
    if args.mode != "dann":
        args.recipe = None
        if args.adversary or args.teacher:
            parser.error(f"--adversary and --teacher belong to --mode dann, got --mode {args.mode}")
    if args.balance and not (RECIPES[args.recipe]["teacher"] if args.teacher is None else args.teacher):
        parser.error("--balance is about what a teacher reads: it needs --teacher")
    for name, value in RECIPES[args.recipe].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.mode == "dann" and not (args.adversary or args.teacher):
        parser.error("without --adversary and --teacher there is nothing to adapt with: use --mode source")
    if args.source == args.target:
        parser.error(f"--source and --target: got {args.source} twice, expected two domains")
    if args.batch_size < 2 * world_size():
        parser.error(f"--batch-size: got {args.batch_size}, expected at least {2 * world_size()} "
                     "(batch normalisation needs two images)")
    if args.out is None:
        name = "-".join(filter(None, ("dann", args.source, args.target, args.mode, args.recipe)))
        args.out = Path("runs") / name
    return args


def learning_rate(lr: float, decay: str, progress: float) -> float:
    """Return the rate at a share of training that is done.

    Args:
        lr: at the start.
        decay: "paper" (JMLR sec. 5.2: alpha 10, beta 0.75; down to a sixth) or "cosine" (down to 0).
        progress: in [0, 1].
    """
    if decay == "cosine":
        return lr * (1 + math.cos(math.pi * progress)) / 2
    return lr / (1 + 10 * progress) ** 0.75


def train_step(model: DANN, optimiser: torch.optim.Optimizer, images: Tensor, labels: Tensor,
               target_images: Tensor | None, pseudo: tuple[Tensor, Tensor] | None, adversary: bool,
               progress: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """Descend the class loss, and what there is of domain loss and pseudo-label loss; return 0-d metrics.

    Args:
        images: (B, 3, 28, 28) float32, the source in DANN.
        labels: (B,) int64, of these alone.
        target_images: as many target images, or None.
        pseudo: the teacher's digits of these (B,) int64 and where it is sure (B,) bool, or None.
        adversary: descend the domain loss.
        progress: the share of training that is done.
    """
    coeff = torch.tensor(grl_coeff(progress), device=images.device)
    with autocast(images.device, dtype):
        class_logits, source_logits = model(images, coeff)
        if target_images is not None:
            target_class_logits, target_logits = model(target_images, coeff)
    loss = class_loss(class_logits, labels)
    metrics = {"class_loss": loss}
    if adversary:
        metrics["domain_loss"] = domain_loss(source_logits, target_logits)
        metrics["domain_accuracy"] = domain_accuracy(source_logits, target_logits)
        metrics["called_source"] = called_source(source_logits, target_logits)
        metrics["grl_coeff"] = coeff
        loss = loss + metrics["domain_loss"]  # eq. 9; the reversal gives the features its other sign
    if pseudo is not None:
        metrics["pseudo_loss"] = pseudo_label_loss(target_class_logits, *pseudo)
        metrics["confident"] = pseudo[1].float().mean()
        loss = loss + metrics["pseudo_loss"]
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(model)
    average_statistics(model)
    optimiser.step()
    return metrics


def diagnose(row: dict[str, float]) -> str | None:
    """Return what a logged row says against the discriminator, if anything."""
    if not 0.02 < row.get("called_source", 0.5) < 0.98:
        return "the discriminator has collapsed: it gives one answer for both domains, and teaches the features nothing"
    if row.get("domain_accuracy", 0.5) > 0.98:
        return "the discriminator tells the domains apart: the features are not aligned"
    return None


def describe_change(name: str, value: bool | float | str) -> str:
    """Return how a row of the table says that a setting is not the recipe's."""
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {value}"


class Scores:
    """The target accuracy of the kept network at every preview, in the order of steps."""

    def __init__(self, splits: dict[str, ImageSet], standardise: bool, device: torch.device) -> None:
        self.splits, self.standardise, self.device = splits, standardise, device
        self.rows: list[dict[str, float]] = []

    def add(self, model: DANN, step: int) -> None:
        """Score the network, which is left in eval mode."""
        row = {"step": step}
        for name, digits in self.splits.items():
            _, predicted = predict(model, digits.images, self.standardise, self.device)
            row[name] = (predicted == digits.labels).float().mean().item()
        self.rows.append(row)

    def oracle(self) -> dict[str, float]:
        """Return the row that only target labels can choose."""
        return max(self.rows, key=lambda row: row["val"])

    def state_dict(self) -> dict:
        """Return the rows, for a checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.rows = state["rows"]


def held_out(data: str, domain: str) -> dict[str, ImageSet]:
    """Return the splits to score: val, and test where it has images (the coursework's is a CSV alone)."""
    sets = {"val": load_digits(data, domain, "val")}
    try:
        sets["test"] = load_digits(data, domain, "test")
    except UserError as mistake:
        logging.getLogger(__name__).warning("no test score: %s", mistake)
    return sets


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    seeds, out = args.seeds, args.out
    del args.seeds  # a run knows its own
    for seed in [args.seed] if seeds is None else seeds:
        args.seed, args.out = seed, out if seeds is None else out.with_name(f"{out.name}-seed{seed}")
        train(argparse.Namespace(**vars(args)))
    return 0


def train(args: argparse.Namespace) -> None:
    """Train one run."""
    device = select_device(args.device)
    dtype = select_dtype(device, args.precision)
    labelled_domain = args.target if args.mode == "target" else args.source
    join(device)
    with first_alone():
        labelled = load_digits(args.data, labelled_domain, "train")
        unlabelled = load_digits(args.data, args.target, "train").images if args.mode == "dann" else None
        scored = held_out(args.data, args.target)
    resolve_steps(args, min(len(images) for images in (labelled.images, unlabelled) if images is not None))
    if args.dry_run:
        print(describe(args))
        return

    seed_everything(args.seed)
    model = place(DANN(), device)
    if args.sync_bn:
        model = sync_batch_norm(model, device)
    teacher = EMA(model, DECAY) if args.teacher else None
    kept = model if teacher is None else teacher.module
    optimiser = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
    images, labels = labelled.images.to(device), labelled.labels.to(device)
    # An even and an odd seed, because MNIST and MNIST-M show the same digits in the same order.
    batches = Batches(len(images), args.batch_size, 2 * args.seed)
    scores = Scores(scored, args.standardise, device)
    parts = {"model": model, "optimiser": optimiser, "batches": batches, "scores": scores}
    if unlabelled is not None:
        unlabelled = unlabelled.to(device)
        target_batches = Batches(len(unlabelled), args.batch_size, 2 * args.seed + 1)
        parts["target_batches"] = target_batches
    if teacher is not None:
        parts["teacher"] = teacher
    if args.compile:
        model.compile()

    def augmented(images: Tensor, domain: str) -> Tensor:
        scale = scale_range(domain, args.target) if args.geometry else None
        return network_input(images, args.standardise, scale, args.intensity)

    run = Run(args.out, KIND, args,
              model_args={name: getattr(args, name) for name in ("source", "target", "mode", "recipe", "standardise")},
              parts=parts, weights=kept)
    for step in run.steps(diagnose):
        progress = step / args.steps
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(args.lr, args.lr_decay, progress)
        index = share(batches.next()).to(device)
        with own_draws():
            x, target_x, pseudo = augmented(images[index], labelled_domain), None, None
            if unlabelled is not None:
                target_images = unlabelled[share(target_batches.next()).to(device)]
                target_x = augmented(target_images, args.target)
                if teacher is not None:
                    clean = network_input(target_images, args.standardise)
                    with autocast(device, dtype):
                        pseudo = pseudo_labels(teacher.module, clean, args.balance)
            metrics = train_step(model, optimiser, x, labels[index], target_x, pseudo, args.adversary, progress, dtype)
        run.record(metrics)
        if teacher is not None:
            average_statistics(teacher.module)
            teacher.update(model)
        if run.due(args.sample_every):
            scores.add(kept, step + 1)
            model.train()
            shown = [x[:PREVIEW]] if target_x is None else [x[:PREVIEW], target_x[:PREVIEW]]
            contrast = 0.5 if args.standardise else 1  # standardised images reach further than a picture's range
            if rank() == 0:
                save_picture(grid(to_uint8(contrast * torch.cat(shown)), 8, scale=2), run.sample_path())

    if rank():
        return
    changes = [describe_change(name, getattr(args, name)) for name, value in RECIPES[args.recipe].items()
               if getattr(args, name) != value]
    settings = {name: getattr(args, name) for name in ("data", "source", "target", "mode", "recipe", "seed")}
    finished = json.loads((args.out / "done").read_text())
    result = settings | {"changes": changes} | finished | scores.rows[-1] | {"oracle": scores.oracle()}
    del result["step"]
    write_json(args.out / "result.json", result)
    print(" ".join(filter(None, (f"{args.source} -> {args.target}", args.mode, args.recipe))) + ": target "
          + ", ".join(f"{split} {result[split]:.1%}" for split in scored))


if __name__ == "__main__":
    run_main(main)
