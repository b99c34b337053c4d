"""Train a digit classifier for a target domain without its labels.

    python -m dann.train --source mnistm --target usps --mode dann --recipe plus --data hw2_data

Recipe plain is DANN (Ganin & Lempitsky 2015, arXiv:1409.7495; Ganin et al. 2016, JMLR 17(59)), with Adam and augmented
images. Recipe plus replaces the adversary by a mean teacher that labels target images. Modes source and target train on
one domain alone, for comparison. Source and target images pass through the network in separate batches, so batch
normalisation sees one domain at a time.

The network of the last step is kept and scored on the target, or that of the preview which --select likes best. The
best score of all previews is stored as `oracle`, for comparison only, because choosing it takes target labels.

The run folder holds last.pt (for resume and inference), result.json (the scores), augmented images under samples/,
curves.png and metrics.jsonl, which docs/training-logs.md explains.

An epoch is one pass over the smaller training set. Learning rate and lambda follow the share of --steps that is done.
"""

import argparse

import torch
from torch import Tensor

from common import cli, distributed
from common.batches import Batches
from common.data.domains import DOMAIN_CHOICES
from common.data.folder import ImageSet, fingerprint, load_digits
from common.device import Captured, autocast, capturable, place
from common.ema import EMA
from common.images import save_picture
from common.lr_schedule import lr_at, set_lr
from common.run import Run
from dann.grl import grl_coeff
from dann.inputs import neighbours, network_input, picture, scale_range
from dann.losses import diagnose
from dann.networks import DANN, KIND
from dann.recipes import MODES, add_recipe_flags, complete, model_args_of, of_seed, run_dir
from dann.scoring import Scores, add_select_flag, scored_sets, write_result
from dann.step import train_step
from dann.teacher import DECAY, Alignment, pseudo_labels


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = cli.Parser(__doc__)
    cli.add_training_flags(parser, steps=8000, batch_size=128, lr_schedule=None)
    parser.add_argument("--seeds", metavar="N", type=cli.seed_number, nargs="+",
                        help="train once per seed, in run folders whose names end in -seedN")
    parser.add_argument("--source", metavar="DOMAIN", choices=DOMAIN_CHOICES, default="mnistm",
                        help=f"domain with labels, one of {', '.join(DOMAIN_CHOICES)}")
    parser.add_argument("--target", metavar="DOMAIN", choices=DOMAIN_CHOICES, default="usps",
                        help="domain to adapt to, one of the same")
    parser.add_argument("--mode", choices=MODES, default="dann",
                        help="dann adapts from source to target, the others train on that one")
    add_recipe_flags(parser)
    add_select_flag(parser)
    args = cli.parse_training_args(parser, argv, run_dir,
                                   lambda args, out: of_seed(out, args.seeds[0]) if args.seeds else out)
    vars(args).update(complete(vars(args)))
    if args.seeds and (len(set(args.seeds)) < len(args.seeds) or args.seed != args.defaults["seed"]):
        parser.error("--seeds: expected different numbers, and no --seed")
    if args.seeds and args.resume not in (None, "auto"):
        parser.error("--seeds: expected --resume auto, because a checkpoint belongs to one seed")
    if args.seeds and args.out.name in ("", ".."):
        parser.error(f"--out: {args.out} has no name to which -seedN could be added")
    same_name = args.source.removeprefix("builtin-") == args.target.removeprefix("builtin-")
    if args.source == args.target or (same_name and args.data == "builtin"):
        parser.error(f"--source and --target: got {args.source} twice, expected two domains")
    smallest_batch = 2 * distributed.world_size()  # batch normalisation needs two images
    if args.batch_size < smallest_batch:
        parser.error(f"--batch-size: got {args.batch_size}, expected at least {smallest_batch} (two per process)")
    return args


def train(args: cli.Settings, seed: int, sets: list[ImageSet], scored: dict[str, ImageSet], device: torch.device,
          dtype: torch.dtype) -> None:
    """Train with one seed: on `sets`, the labelled domain and in mode dann the target; `scored` is for the scores."""
    domain = args.target if args.mode == "target" else args.source  # the labelled one
    inputs = {"data": fingerprint(*sets, *scored.values())}
    images, labels = sets[0].images.to(device), sets[0].labels.to(device)
    target_images = sets[1].images.to(device) if args.mode == "dann" else None
    out = of_seed(args.out, seed) if args.seeds else args.out
    settings = vars(args) | {"seed": seed, "out": out}

    torch.manual_seed(seed)
    model = place(DANN(args.dropout), device)
    optimizer = capturable(torch.optim.Adam(model.parameters(), lr=args.lr, fused=True))
    teacher = EMA(model, DECAY) if args.teacher else None
    alignment = Alignment().to(device) if args.alignment else None
    scores = Scores(model if teacher is None else teacher.module, scored, args.select)
    # Two streams of different seeds, because MNIST and MNIST-M hold the same digits in the same order.
    streams = [Batches(len(digits.images), args.batch_size, 2 * seed + i, device) for i, digits in enumerate(sets)]
    parts = {"model": model, "optimizer": optimizer, "scores": scores}
    if teacher is not None:
        parts["teacher"] = teacher
    if alignment is not None:
        parts["alignment"] = alignment
    parts |= dict(zip(("batches", "target_batches"), streams, strict=False))
    run = Run(out, KIND, settings, model_args_of(settings), parts, weights=scores.kept, inputs=inputs)

    def augmented(batch: Tensor, name: str) -> Tensor:
        scale = scale_range(name, args.target) if args.geometry else None
        return network_input(batch, scale, args.intensity, args.photograph)

    def step_on(coeff: Tensor, progress: Tensor, index: Tensor, target_index: Tensor | None = None, *,
                target_only: bool) -> tuple:
        x = target_x = pseudo = None
        if target_index is not None:
            clean = target_images[target_index]
            target_x = augmented(clean, args.target)
            if teacher is not None:
                with autocast(device, dtype):
                    pseudo = pseudo_labels(teacher.module, network_input(clean), alignment, progress)
        if not target_only:
            chosen = neighbours(images[index], clean) if args.neighbours else images[index]
            x = augmented(chosen, domain)
        labelled = None if target_only else (x, labels[index])
        metrics = train_step(model, optimizer, labelled, target_x, pseudo, coeff if args.adversary else None, dtype)
        return metrics, [batch for batch in (x, target_x) if batch is not None]

    captured = Captured(step_on, device)
    for step in run.steps(diagnose, scores.before_save):
        set_lr(optimizer, lr_at(args.lr, args.lr_schedule, step, args.steps))
        progress = step / args.steps
        coeff = torch.full((), grl_coeff(progress), device=device)
        metrics, batches = captured(coeff, torch.full((), progress, device=device),
                                    *(distributed.shard(stream.next()) for stream in streams),
                                    target_only=progress >= 1 - args.target_only)
        run.record(metrics)
        if teacher is not None:
            distributed.average_buffers(teacher.module)
            if alignment is not None:
                distributed.average_buffers(alignment)
            teacher.update(model)
        if run.due(args.sample_every):
            scores.add(step + 1)
            model.train()
            if distributed.rank() == 0:
                save_picture(picture(batches), run.sample_path())
    scores.finish(run.step)
    if distributed.rank() == 0:
        print(write_result(out, settings | {"inputs": inputs}, scores))


def main(argv: list[str] | None = None) -> int:
    """Run the command: one training per seed."""
    args = parse_args(argv)
    device, dtype = cli.select_device_and_dtype(args)
    distributed.init_process_group(device)
    with distributed.rank_zero_first():
        sets = [load_digits(args.data, args.target if args.mode == "target" else args.source, "train")]
        if args.mode == "dann":
            sets.append(load_digits(args.data, args.target, "train", labelled=False))
        scored = scored_sets(args, *sets[1:])
    cli.finalize_settings(args, min(len(digits.images) for digits in sets))
    for seed in args.seeds or [args.seed]:
        train(args, seed, sets, scored, device, dtype)
    return 0


if __name__ == "__main__":
    cli.run_main(main)
