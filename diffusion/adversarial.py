"""Tune a distilled diffusion model with a GAN, until one evaluation per image is enough.

    python -m diffusion.inference runs/generated --weights runs/distill-8/last.pt --per-digit 1200 --seed 1000
    python -m diffusion.adversarial --student runs/distill-2/last.pt --generated runs/generated

This is latent adversarial diffusion distillation (Sauer et al. 2024, arXiv:2403.12015), on pixels: D is small heads on
the maps of the teacher's encoder, which stays as it is and sees images with noise of many levels. With --generated,
half of what D takes for real are images by a slower student, which are easier to read than training digits. Unlike in
the paper, D and G are updated at once, from the same images. G needs a far lower learning rate than D: at 5e-5 it
collapses.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from common import cli
from common.batches import Batches
from common.checkpoint import RELEASED, sha256
from common.data.folder import ImageSet, fingerprint, load_digits
from common.device import Captured, autocast, capturable, place
from common.distributed import average_gradients, init_process_group, rank, rank_zero_first, shard
from common.ema import EMA
from common.errors import UserError
from common.images import save_picture, to_float
from common.losses import hinge_d, hinge_g
from common.lr_schedule import lr_at, set_lr
from common.run import Run
from diffusion.pipeline import Pipeline, Setting, load_distillable, load_generated, load_pipeline, preview
from diffusion.unet import KIND, NUM_CLASSES

SETTING = Setting("ddim", 1, 1.0)  # of the result
MAX_T = 600  # D sees images at random times below it, of 1000
WARMUP = 150  # steps in which G's learning rate rises, so that D learns first
HEAD_WIDTH, GROUPS = 128, 8  # channels of a head, and their groups of GroupNorm


class Heads(nn.Module):
    """One discriminator head per map of the encoder of a U-Net of some width: a logit at every position.

    Labels enter by projection (Miyato & Koyama 2018, arXiv:1802.05637).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = (width, 2 * width, 4 * width, 4 * width)
        self.body = nn.ModuleList(nn.Sequential(nn.Conv2d(c, HEAD_WIDTH, 3, padding=1),
                                                nn.GroupNorm(GROUPS, HEAD_WIDTH), nn.LeakyReLU(0.2)) for c in channels)
        self.out = nn.ModuleList(nn.Conv2d(HEAD_WIDTH, 1, 1) for _ in channels)
        self.label_emb = nn.ModuleList(nn.Embedding(NUM_CLASSES, HEAD_WIDTH) for _ in channels)
        for embedding in self.label_emb:
            nn.init.zeros_(embedding.weight)

    def forward(self, maps: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
        """Return the logits (B, H, W) float32 of each of the maps (B, C, H, W) with labels (B,) int64."""
        logits = []
        for x, body, out, label_emb in zip(maps, self.body, self.out, self.label_emb, strict=True):
            features = body(x)
            projection = (features * label_emb(labels)[:, :, None, None]).sum(1) / HEAD_WIDTH**0.5
            logits.append((out(features)[:, 0] + projection).float())
        return logits


def mixed(real: ImageSet, generated: ImageSet) -> ImageSet:
    """Return the generated images and as many real ones, chosen at random; fewer, if there are fewer."""
    real = real.sample(len(generated.images))
    return ImageSet(torch.cat([real.images, generated.images]), torch.cat([real.labels, generated.labels]),
                    real.names + generated.names)


def train_step(student: Pipeline, optimizer: torch.optim.Optimizer, teacher: Pipeline, heads: Heads,
               d_optimizer: torch.optim.Optimizer, real: Tensor, labels: Tensor, *,
               dtype: torch.dtype) -> dict[str, Tensor]:
    """Update D and G once, from the same images, and return 0-d metrics.

    Args:
        student: G, which starts from noise at the last time.
        teacher, heads: D, of which only the heads learn.
        real, labels: this process's share of the batch: (B, 3, 28, 28) float32 in [-1, 1], and (B,) int64 digits.
        dtype: in which the networks run.
    """
    def maps(images: Tensor) -> tuple[Tensor, ...]:
        t = torch.randint(0, MAX_T, (len(images),), device=images.device)
        x_t = teacher.schedule.q_sample(images, t, torch.randn_like(images))
        return teacher.model.encode(x_t, teacher.model.embed(t, labels))

    with autocast(real.device, dtype):
        with torch.no_grad():
            real_maps = maps(real)
        last = torch.full_like(labels, student.schedule.num_timesteps - 1)
        fake = student.denoise(torch.randn_like(real), last, labels, 1.0)
        real_logits, fake_logits = heads(real_maps, labels), heads(maps(fake), labels)
    d_loss = torch.stack([hinge_d(*logits) for logits in zip(real_logits, fake_logits, strict=True)]).mean()
    g_loss = torch.stack([hinge_g(logits) for logits in fake_logits]).mean()
    for part in (optimizer, d_optimizer):
        part.zero_grad(set_to_none=True)
    d_loss.backward(inputs=list(heads.parameters()), retain_graph=True)
    g_loss.backward(inputs=list(student.model.parameters()))
    average_gradients(heads)
    average_gradients(student.model)
    grad_norm = nn.utils.clip_grad_norm_(student.model.parameters(), 1.0)
    d_optimizer.step()
    optimizer.step()
    return {"d_loss": d_loss.detach(), "g_loss": g_loss.detach(), "grad_norm": grad_norm}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(__doc__)
    cli.add_training_flags(parser, steps=1400, batch_size=64, lr_schedule="linear-half")
    parser.add_argument("--student", metavar="CKPT", type=Path, default=Path("runs/distill-2/last.pt"),
                        help="the network to tune (default: %(default)s)")
    parser.add_argument("--teacher", metavar="CKPT", type=Path, default=RELEASED / "diffusion.pt",
                        help="the network whose encoder D uses (default: the released one)")
    parser.add_argument("--generated", metavar="DIR", type=Path,
                        help="a folder by diffusion.inference: D takes these images, and as many training digits, for "
                             "real (default: all training digits)")
    parser.add_argument("--domain", default="mnistm", help="digits to train on")
    parser.add_argument("--lr", type=cli.positive_float, default=1e-5, help="learning rate of G, the student")
    parser.add_argument("--d-lr", metavar="LR", type=cli.positive_float, default=2e-3, help="rate of D, constant")
    parser.add_argument("--ema-decay", type=cli.fraction, default=0.998,
                        help="decay of the average of the weights, which generates the images")
    return cli.parse_training_args(parser, argv, lambda args: Path("runs/adversarial"))


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device, dtype = cli.select_device_and_dtype(args)
    init_process_group(device)
    student, teacher = load_distillable(args.student, device), load_pipeline(args.teacher, device)
    if teacher.distilled:
        raise UserError(f"--teacher: {args.teacher} is distilled and knows few times: name the one that taught it")
    inputs = {"student": sha256(args.student), "teacher": sha256(args.teacher)}
    with rank_zero_first():
        digits = load_digits(args.data, args.domain, "train")
    inputs["data"] = fingerprint(digits)
    if args.generated:
        generated = load_generated(args.generated)
        inputs["generated"] = fingerprint(generated)
        digits = mixed(digits, generated)
    cli.finalize_settings(args, len(digits.images))

    torch.manual_seed(args.seed)
    images, labels = digits.images.to(device), digits.labels.to(device)
    model = student.model
    teacher.model.requires_grad_(False)
    heads = place(Heads(teacher.model_args["width"]), device)
    ema = EMA(model, args.ema_decay)
    optimizer = capturable(torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.0, 0.99), fused=True))
    d_optimizer = capturable(torch.optim.Adam(heads.parameters(), lr=args.d_lr, betas=(0.0, 0.99), fused=True))
    batches = Batches(len(images), args.batch_size, args.seed, device)

    run = Run(args.out, KIND, vars(args), student.model_args | {"distilled": list(SETTING)},
              parts={"model": model, "ema": ema, "heads": heads, "optimizer": optimizer, "d_optimizer": d_optimizer,
                     "batches": batches}, weights=ema.module,
              inputs=inputs)

    def step_on(index: Tensor) -> dict[str, Tensor]:
        return train_step(student, optimizer, teacher, heads, d_optimizer, to_float(images[index]), labels[index],
                          dtype=dtype)

    captured, pipeline = Captured(step_on, device), replace(student, model=ema.module)
    for step in run.steps():
        set_lr(optimizer, lr_at(args.lr, args.lr_schedule, step, args.steps, WARMUP))
        run.record(captured(shard(batches.next())))
        ema.update(model)
        if run.due(args.sample_every) and rank() == 0:
            save_picture(preview(pipeline, SETTING, args.seed, dtype), run.sample_path())
    print(f"done: {args.out}/last.pt, samples in {args.out}/samples")
    return 0


if __name__ == "__main__":
    cli.run_main(main)
