"""What the benchmark measures of this project: the steps of the trainers and of the inference commands.

Each function here makes a Work, as those of `scripts/plain.py`. Rows of the log, previews and checkpoints are left out.
"""

from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor

from common.batches import Batches
from common.checkpoint import RELEASED
from common.data.folder import load_readable
from common.device import Captured, autocast, capturable, place, send
from common.ema import EMA
from common.images import DIGIT_SIZE, to_float, to_uint8
from common.lr_schedule import lr_at, set_lr
from common.metrics_log import MetricsLog
from common.randomness import seed_step, seeded_normal
from dann import step as dann_step
from dann import train as dann_train
from dann.grl import grl_coeff
from dann.inputs import network_input, scale_range
from dann.networks import DANN
from dann.predict import predict
from diffusion import train as diffusion_train
from diffusion.pipeline import DISTILLED, load_pipeline, sample
from diffusion.schedule import make_schedule
from diffusion.unet import ConditionalUNet
from gan import train as gan_train
from gan.models import MODELS, build_discriminator, build_generator
from scripts.plain import DCGAN, Data, Work, evaluation, sampling, settings


def steps() -> Iterator[int]:
    """Count training steps, and seed each as common.run does."""
    for step in count():
        seed_step(0, step)
        yield step


def diffusion_training(data: Data, device: torch.device, batch_size: int, dtype: torch.dtype) -> Work:
    """Train as diffusion.train does."""
    args = diffusion_train.parse_args(["--data", "builtin"])
    images, labels = data["mnistm"].images.images.to(device), data["mnistm"].images.labels.to(device)
    model, schedule, log = place(ConditionalUNet(), device), make_schedule(args.schedule).to(device), MetricsLog()
    ema, batches = EMA(model, args.ema_decay), Batches(len(images), batch_size, 0, device)
    optimizer = capturable(torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99), fused=True))
    captured = Captured(lambda index: diffusion_train.train_step(
        model, optimizer, schedule, to_float(images[index]), labels[index], prediction=args.prediction,
        min_snr=args.min_snr, dtype=dtype), device)
    for step in steps():
        set_lr(optimizer, lr_at(args.lr, args.lr_schedule, step, args.steps, args.warmup))
        log.add(captured(batches.next()))
        ema.update(model)
        yield batch_size


def gan_training(data: Data, device: torch.device, batch_size: int, dtype: torch.dtype) -> Work:
    """Train as gan.train --model dcgan does."""
    args = gan_train.parse_args(["--model", "dcgan", "--data", "builtin"])
    images, log = data["face"].images.images.to(device), MetricsLog()
    generator, discriminator = place(build_generator(DCGAN), device), place(build_discriminator(DCGAN), device)
    ema, batches = EMA(generator, args.ema_decay), Batches(len(images), batch_size, 0, device)
    lrs = args.g_lr, args.d_lr
    optimizers = [capturable(torch.optim.Adam(network.parameters(), lr=lr, betas=MODELS["dcgan"].betas, fused=True))
                  for network, lr in zip((generator, discriminator), lrs, strict=True)]
    captured = Captured(lambda index: gan_train.train_step(
        generator, discriminator, *optimizers, to_float(images[index]), loss=args.loss, augmented=args.augment,
        dtype=dtype), device)
    for step in steps():
        for optimizer, lr in zip(optimizers, lrs, strict=True):
            set_lr(optimizer, lr_at(lr, args.lr_schedule, step, args.steps))
        log.add(captured(batches.next()))
        ema.update(generator)
        yield batch_size


def dann_training(data: Data, device: torch.device, batch_size: int, dtype: torch.dtype) -> Work:
    """Train as dann.train --recipe plain does, with its augmentation."""
    args = dann_train.parse_args(["--recipe", "plain", "--data", "builtin"])
    model, log, domains = place(DANN(), device), MetricsLog(), (args.source, args.target)
    optimizer = capturable(torch.optim.Adam(model.parameters(), lr=args.lr, fused=True))
    images = [data[name].images.images.to(device) for name in domains]
    labels = data[args.source].images.labels.to(device)
    streams = [Batches(len(every), batch_size, i, device) for i, every in enumerate(images)]

    def step_on(coeff: Tensor, *indices: Tensor) -> dict[str, Tensor]:
        x, target_x = (network_input(every[index], scale_range(name, args.target), args.intensity)
                       for every, index, name in zip(images, indices, domains, strict=True))
        return dann_step.train_step(model, optimizer, (x, labels[indices[0]]), target_x, None, coeff, dtype)

    captured = Captured(step_on, device)
    for step in steps():
        set_lr(optimizer, lr_at(args.lr, args.lr_schedule, step, args.steps))
        coeff = torch.full((), grl_coeff(step / args.steps), device=device)
        log.add(captured(coeff, *(stream.next() for stream in streams)))
        yield 2 * batch_size


def diffusion_evaluation(data: Data, device: torch.device, batch_size: int, dtype: torch.dtype) -> Work:
    """Evaluate our U-Net."""
    model = place(ConditionalUNet(), device).eval()

    def evaluate(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        with autocast(device, dtype):
            return model(x, t, labels)

    yield from evaluation(Captured(evaluate, device), device, batch_size)


def diffusion_sampling(data: Data, device: torch.device, batch_size: int, dtype: torch.dtype) -> Work:
    """Generate digits as diffusion.inference does, by the released student."""
    pipeline = load_pipeline(RELEASED / DISTILLED, device)
    pairs = [(number % 10, number) for number in range(batch_size)]
    yield from sampling(lambda: sample(pipeline, pipeline.setting, 0, pairs, dtype), pipeline.setting.steps,
                        batch_size)


@settings(convolutions=True, products=True)
@torch.no_grad()
def gan_sampling(data: Data, device: torch.device, batch_size: int, dtype: torch.dtype) -> Work:
    """Generate batches of faces as gan.inference does."""
    generator = place(build_generator(DCGAN), device).eval()
    draw = Captured(lambda z: to_uint8(generator(z)), device)
    while True:
        z = seeded_normal([(0, i) for i in range(batch_size)], (generator.z_dim,))
        yield len(draw(send(z, device)).cpu())


def dann_inference(data: Data, device: torch.device, batch_size: int, dtype: torch.dtype) -> Work:
    """Predict the digits of a folder as dann.inference does."""
    model = place(DANN(), device)
    while True:
        found, _ = load_readable(f"{data['unlabelled'].folder}/0", DIGIT_SIZE)
        yield len(predict(model, found.images, device)[1].argmax(1))
