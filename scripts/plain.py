"""The baselines of the benchmark: plain loops, written as tutorials and the reference repositories write them.

float32, contiguous, eager, with PyTorch's default settings; a DataLoader that decodes PNG files one by one; attention
that also returns its weights; `.item()` of each loss at every step. Each function here makes a Work: an endless
generator that takes one step per item and yields its number of images.
"""

from collections.abc import Callable, Iterator
from functools import partial, wraps
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, ToTensor

from common.data.folder import ImageSet, load_digits, load_faces
from common.images import save_image
from dann.grl import grad_reverse
from dann.networks import DANN
from diffusion.loss import diffusion_loss
from diffusion.samplers import ddpm
from diffusion.schedule import make_schedule
from diffusion.unet import ConditionalUNet, SelfAttention
from gan.models import build_discriminator, build_generator

Work = Iterator[float]

DCGAN = {"model": "dcgan", "width": 64}


class Stored(NamedTuple):
    """A data set, and a folder with its images as PNG files, in one folder per label."""

    images: ImageSet
    folder: str


Data = dict[str, Stored]


def store(images: ImageSet, folder: str) -> Stored:
    """Write the images as PNG files."""
    labels = [0] * len(images.images) if images.labels is None else images.labels.tolist()
    for i, (image, label) in enumerate(zip(images.images, labels, strict=True)):
        save_image(image, Path(folder, str(label), f"{i:05d}.png"))
    return Stored(images, folder)


def load_embedded(folder: str, count: int) -> Data:
    """Return at most `count` images of each embedded data set, with their files in `folder`."""
    sets = {name: load_digits("builtin", name, "train") for name in ("mnistm", "usps")}
    sets |= {"face": load_faces("builtin", "train"), "unlabelled": sets["usps"]._replace(labels=None)}
    return {name: store(images.sample(count), f"{folder}/{name}") for name, images in sets.items()}


def settings(convolutions: bool, products: bool) -> Callable[[Callable[..., Work]], Callable[..., Work]]:
    """Return a decorator: a work takes each step with these settings; between steps the caller's are restored.

    Args:
        convolutions, products: whether a GPU may round the factors of float32 convolutions and matrix products to TF32.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul

    def decorate(make: Callable[..., Work]) -> Callable[..., Work]:
        @wraps(make)
        def made(*args: object) -> Work:
            work = make(*args)
            while True:
                before = cudnn.allow_tf32, matmul.allow_tf32
                cudnn.allow_tf32, matmul.allow_tf32 = convolutions, products
                try:
                    done = next(work)
                finally:
                    cudnn.allow_tf32, matmul.allow_tf32 = before
                yield done
        return made
    return decorate


by_default = settings(convolutions=True, products=False)  # of PyTorch


def png_files(folder: str) -> ImageFolder:
    """Return a data set that decodes the files of a `Stored` one by one."""
    return ImageFolder(folder, Compose([ToTensor(), Normalize([0.5] * 3, [0.5] * 3)]))


def plain_batches(stored: Stored, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (B, 3, H, W) float32 in [-1, 1] and labels (B,) without end, from PNG files."""
    loader = DataLoader(png_files(stored.folder), batch_size, shuffle=True, drop_last=True)
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
    """Return the U-Net as the reference repositories run it, with PyTorch's layers."""
    model = ConditionalUNet().to(device)
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.__class__ = AttentionWithWeights
        for layer in (nn.GroupNorm, nn.LayerNorm, nn.Upsample):
            if isinstance(module, layer):
                module.__class__ = layer
    return model


@by_default
def diffusion_training(data: Data, device: torch.device, batch_size: int) -> Work:
    """Train the U-Net by the reference recipe."""
    model, average, schedule = plain_unet(device), plain_unet(device), make_schedule("linear").to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for x_0, labels in plain_batches(data["mnistm"], batch_size, device):
        t, noise = torch.randint(0, schedule.num_timesteps, (len(x_0),), device=device), torch.randn_like(x_0)
        output = model(schedule.q_sample(x_0, t, noise), t, labels)
        loss = diffusion_loss(output, x_0, noise, schedule, t, "noise", False).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
                mine.copy_(0.995 * mine + 0.005 * theirs)
        loss.item()
        yield len(x_0)


@by_default
def gan_training(data: Data, device: torch.device, batch_size: int) -> Work:
    """Train DCGAN as PyTorch's tutorial does: no augmentation, no average of the weights."""
    generator, discriminator = build_generator(DCGAN).to(device), build_discriminator(DCGAN).to(device)
    g_optimizer, d_optimizer = (torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999))
                                for network in (generator, discriminator))
    loss_of = nn.BCELoss()
    for real, _ in plain_batches(data["face"], batch_size, device):
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
        yield len(real)


@by_default
def dann_training(data: Data, device: torch.device, batch_size: int) -> Work:
    """Train DANN without augmentation."""
    model = DANN().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    source, target = (plain_batches(data[domain], batch_size, device) for domain in ("mnistm", "usps"))
    loss_of = nn.CrossEntropyLoss()
    for (x, labels), (target_x, _) in zip(source, target, strict=True):
        domains = torch.arange(2, device=device).repeat_interleave(len(x))
        features = model.features(torch.cat([x, target_x]))
        class_loss = loss_of(model.classifier(features[:len(x)]), labels)
        domain_loss = loss_of(model.discriminator(grad_reverse(features, 0.5)), domains)
        optimizer.zero_grad()
        (class_loss + domain_loss).backward()
        optimizer.step()
        class_loss.item(), domain_loss.item()
        yield len(domains)


@torch.no_grad()
def evaluation(evaluate: Callable[[Tensor, Tensor, Tensor], Tensor], device: torch.device, batch_size: int) -> Work:
    """Evaluate a U-Net at many times."""
    x = torch.randn(batch_size, 3, 28, 28, device=device)
    t = torch.arange(batch_size, device=device)
    while True:
        evaluate(x, t, t % 10)
        yield batch_size


@by_default
def diffusion_evaluation(data: Data, device: torch.device, batch_size: int) -> Work:
    """Evaluate the plain U-Net."""
    return evaluation(plain_unet(device).eval(), device, batch_size)


def sampling(sample: Callable[[], Iterator], num_steps: int, batch_size: int) -> Work:
    """Take the steps of a sampler, each of which counts as a `num_steps`th of the images."""
    while True:
        for _ in islice(sample(), 1, None):  # the first state is the noise, which costs nothing
            yield batch_size / num_steps


@by_default
def diffusion_sampling(data: Data, device: torch.device, batch_size: int) -> Work:
    """Take the 1000 steps of guided DDPM sampling, two evaluations per image each."""
    model, schedule = plain_unet(device).eval(), make_schedule("linear").to(device)
    labels = torch.arange(batch_size, device=device) % 10
    no_label = torch.zeros(batch_size, dtype=torch.bool, device=device)

    def denoise(x_t: Tensor, t: int) -> Tensor:
        times = torch.full_like(labels, t)
        output = torch.lerp(model(x_t, times, labels, no_label), model(x_t, times, labels), 2.0)
        return schedule.predict_x0(x_t, times, output, "noise").clamp(-1, 1)

    noise = partial(torch.randn, batch_size, 3, 28, 28, device=device)
    return sampling(lambda: ddpm(denoise, schedule, noise), schedule.num_timesteps, batch_size)


@by_default
@torch.no_grad()
def gan_sampling(data: Data, device: torch.device, batch_size: int) -> Work:
    """Generate batches of faces."""
    generator = build_generator(DCGAN).to(device).eval()
    while True:
        yield len(generator(torch.randn(batch_size, generator.z_dim, device=device)).cpu())


@by_default
@torch.no_grad()
def dann_inference(data: Data, device: torch.device, batch_size: int) -> Work:
    """Predict the digits of a folder."""
    model = DANN().to(device).eval()
    loader = DataLoader(png_files(data["unlabelled"].folder), batch_size)
    while True:
        yield sum(len(model.classifier(model.features(x.to(device))).argmax(1).cpu()) for x, _ in loader)
