"""The baselines of the benchmark: plain loops, written as tutorials and the reference repositories write them.

float32, contiguous, eager; a DataLoader that decodes PNG files one by one; attention that also returns its weights;
`.item()` of each loss at every step. Each function here is a Work: an endless generator that takes one step per item
and yields the number of images and the seconds that the step waited for data.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, ToTensor

from common.data.folder import ImageSet
from common.device import autocast
from common.images import save_image
from dann.grl import grad_reverse
from dann.networks import DANN
from diffusion.loss import diffusion_loss
from diffusion.samplers import ddpm
from diffusion.schedule import make_schedule
from diffusion.unet import ConditionalUNet, SelfAttention
from gan.models import build_discriminator, build_generator

Images = dict[str, ImageSet]
Work = Iterator[tuple[float, float]]

BATCH_SIZE = {"diffusion": 64, "gan": 64, "dann": 128}
EVALUATION_BATCH_SIZE = 100
DCGAN = {"model": "dcgan", "width": 64}


def timed(batches: Iterator) -> Iterator[tuple[Any, float]]:
    """Yield each batch and the seconds it took to get it."""
    while True:
        start = time.perf_counter()
        batch = next(batches)
        yield batch, time.perf_counter() - start


def png_files(images: ImageSet, folder: str) -> ImageFolder:
    """Write images as PNG files, into one folder per label; return a data set that decodes them one by one."""
    labels = [0] * len(images.images) if images.labels is None else images.labels.tolist()
    for i, (image, label) in enumerate(zip(images.images, labels, strict=True)):
        save_image(image, Path(folder, str(label), f"{i:05d}.png"))
    return ImageFolder(folder, Compose([ToTensor(), Normalize([0.5] * 3, [0.5] * 3)]))


def plain_batches(images: ImageSet, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (B, 3, H, W) float32 in [-1, 1] and labels (B,) without end, from PNG files."""
    with tempfile.TemporaryDirectory() as folder:
        loader = DataLoader(png_files(images, folder), batch_size, shuffle=True, drop_last=True)
        while True:
            for x, labels in loader:
                yield x.to(device), labels.to(device)


class AttentionWithWeights(SelfAttention):
    """Attention as the reference repositories call it: the weights are computed, averaged and discarded."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, H, W)."""
        size = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        normed = self.ln(x)
        x = x + self.mha(normed, normed, normed)[0]
        x = x + self.ff_self(x)
        return x.transpose(1, 2).unflatten(2, size)


def plain_unet(device: torch.device) -> ConditionalUNet:
    """Return the U-Net as the reference repositories run it."""
    model = ConditionalUNet().to(device)
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.__class__ = AttentionWithWeights
    return model


def diffusion_training(images: Images, device: torch.device, dtype: torch.dtype) -> Work:
    """Train the U-Net by the reference recipe."""
    model, average, schedule = plain_unet(device), plain_unet(device), make_schedule("linear").to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)
    for (x_0, labels), waited in timed(plain_batches(images["mnistm"], BATCH_SIZE["diffusion"], device)):
        t, noise = torch.randint(0, schedule.num_timesteps, (len(x_0),), device=device), torch.randn_like(x_0)
        loss = diffusion_loss(partial(model, labels=labels), schedule, x_0, t, noise, "noise", False).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
                mine.copy_(0.995 * mine + 0.005 * theirs)
        loss.item()
        yield len(x_0), waited


def gan_training(images: Images, device: torch.device, dtype: torch.dtype) -> Work:
    """Train DCGAN as PyTorch's tutorial does: no augmentation, no average of the weights."""
    generator, discriminator = build_generator(DCGAN).to(device), build_discriminator(DCGAN).to(device)
    g_optimizer, d_optimizer = (torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999), foreach=False)
                                for network in (generator, discriminator))
    loss_of = nn.BCELoss()
    for (real, _), waited in timed(plain_batches(images["face"], BATCH_SIZE["gan"], device)):
        ones, zeros = torch.ones(len(real), device=device), torch.zeros(len(real), device=device)
        fake = generator(torch.randn(len(real), generator.z_dim, device=device))
        discriminator.zero_grad()
        real_loss = loss_of(discriminator.probability(real), ones)
        real_loss.backward()
        fake_loss = loss_of(discriminator.probability(fake.detach()), zeros)
        fake_loss.backward()
        d_optimizer.step()
        generator.zero_grad()
        g_loss = loss_of(discriminator.probability(fake), ones)
        g_loss.backward()
        g_optimizer.step()
        real_loss.item(), fake_loss.item(), g_loss.item()
        yield len(real), waited


def dann_training(images: Images, device: torch.device, dtype: torch.dtype) -> Work:
    """Train DANN without augmentation."""
    model = DANN().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=False)
    source, target = (plain_batches(images[domain], BATCH_SIZE["dann"], device) for domain in ("mnistm", "usps"))
    loss_of = nn.CrossEntropyLoss()
    for ((x, labels), (target_x, _)), waited in timed(zip(source, target, strict=True)):
        domains = torch.arange(2, device=device).repeat_interleave(len(x))
        features = model.features(torch.cat([x, target_x]))
        class_loss = loss_of(model.classifier(features[:len(x)]), labels)
        domain_loss = loss_of(model.discriminator(grad_reverse(features, 0.5)), domains)
        optimizer.zero_grad()
        (class_loss + domain_loss).backward()
        optimizer.step()
        class_loss.item(), domain_loss.item()
        yield len(domains), waited


@torch.no_grad()
def evaluation(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Work:
    """Evaluate a U-Net."""
    model.eval()
    x = torch.randn(EVALUATION_BATCH_SIZE, 3, 28, 28, device=device)
    t = torch.arange(EVALUATION_BATCH_SIZE, device=device)
    while True:
        with autocast(device, dtype):
            model(x, t, t % 10)
        yield EVALUATION_BATCH_SIZE, 0.0


def diffusion_evaluation(images: Images, device: torch.device, dtype: torch.dtype) -> Work:
    """Evaluate the plain U-Net."""
    return evaluation(plain_unet(device), device, torch.float32)


def sampling(sample: Callable[[], Iterator], num_steps: int) -> Work:
    """Take the steps of a sampler, each of which counts as a `num_steps`th of EVALUATION_BATCH_SIZE images."""
    while True:
        for _ in islice(sample(), 1, None):  # the first state is the noise, which costs nothing
            yield EVALUATION_BATCH_SIZE / num_steps, 0.0


def diffusion_sampling(images: Images, device: torch.device, dtype: torch.dtype) -> Work:
    """Take the 1000 steps of guided DDPM sampling, two evaluations per image each."""
    model, schedule = plain_unet(device).eval(), make_schedule("linear").to(device)
    labels = torch.arange(EVALUATION_BATCH_SIZE, device=device) % 10
    no_label = torch.zeros(EVALUATION_BATCH_SIZE, dtype=torch.bool, device=device)

    def denoise(x_t: Tensor, t: int) -> Tensor:
        times = torch.full_like(labels, t)
        output = torch.lerp(model(x_t, times, labels, no_label), model(x_t, times, labels), 2.0)
        return schedule.predict_x0(x_t, times, output, "noise").clamp(-1, 1)

    noise = partial(torch.randn, EVALUATION_BATCH_SIZE, 3, 28, 28, device=device)
    return sampling(lambda: ddpm(denoise, schedule, noise), schedule.num_timesteps)


@torch.no_grad()
def gan_sampling(images: Images, device: torch.device, dtype: torch.dtype) -> Work:
    """Generate batches of faces."""
    generator = build_generator(DCGAN).to(device).eval()
    while True:
        yield len(generator(torch.randn(BATCH_SIZE["gan"], generator.z_dim, device=device)).cpu()), 0.0


@torch.no_grad()
def dann_inference(images: Images, device: torch.device, dtype: torch.dtype) -> Work:
    """Predict the digits of a folder."""
    model = DANN().to(device).eval()
    with tempfile.TemporaryDirectory() as folder:
        loader = DataLoader(png_files(images["usps"], folder), BATCH_SIZE["dann"])
        while True:
            yield sum(len(model.classifier(model.features(x.to(device))).argmax(1).cpu()) for x, _ in loader), 0.0
