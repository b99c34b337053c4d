"""The plain loops that the benchmark compares with, as tutorials and the reference repositories write them.

float32, contiguous, eager, a DataLoader that decodes PNG files one by one, attention that also returns its weights,
and `.item()` of the loss at every step.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import normalize, to_tensor

from common.datasets import ImageSet, load_digits, load_faces
from common.images import save_image
from dann.grl import grad_reverse
from dann.networks import DANN
from diffusion.loss import diffusion_loss
from diffusion.samplers import ddpm
from diffusion.schedule import make_schedule
from diffusion.unet import ConditionalUNet, SelfAttention
from gan.models import build_discriminator, build_generator

BATCH_SIZE = {"diffusion": 64, "gan": 64, "dann": 128}
EVALUATION_BATCH_SIZE = 100
IMAGES = 512  # written as PNG for the plain loops, resident for ours


class Stopwatch:
    """An iterator that measures how long it was waited for."""

    def __init__(self, batches: Iterator) -> None:
        self.batches, self.seconds = batches, 0.0

    def __next__(self) -> tuple[Tensor, Tensor]:
        start = time.perf_counter()
        batch = next(self.batches)
        self.seconds += time.perf_counter() - start
        return batch


class Work(NamedTuple):
    """What is measured: a function that does a piece of it and says how many images that was.

    batches: what it waits for data from. networks: what it trains.
    """

    step: Callable[[], float]
    batches: tuple[Stopwatch, ...] = ()
    networks: tuple[nn.Module, ...] = ()


class PngFiles(Dataset):
    """Images and labels, opened, decoded and normalised one by one, as tutorials do; in a folder that goes with it."""

    def __init__(self, images: ImageSet) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.paths = [Path(self.folder.name, f"{i:05d}.png") for i in range(len(images.images))]
        self.labels = images.labels if images.labels is not None else torch.zeros(len(self.paths), dtype=torch.int64)
        for path, image in zip(self.paths, images.images, strict=True):
            save_image(image, path)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.paths[index]) as image:
            return normalize(to_tensor(image.convert("RGB")), [0.5] * 3, [0.5] * 3), self.labels[index]


def plain_batches(images: ImageSet, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (B, 3, H, W) float32 in [-1, 1] and labels (B,) for ever, from PNG files."""
    loader = DataLoader(PngFiles(images), batch_size, shuffle=True, drop_last=True)
    while True:
        for x, labels in loader:
            yield x.to(device), labels.to(device)


_drawn: dict[str, ImageSet] = {}


def drawn() -> dict[str, ImageSet]:
    """Return the first IMAGES of three embedded training sets: mnistm, usps and, without labels, face."""
    if not _drawn:
        for name in ("mnistm", "usps", "face"):
            every = load_faces("builtin", "train") if name == "face" else load_digits("builtin", name, "train")
            _drawn[name] = ImageSet(*(part if part is None else part[:IMAGES] for part in every))
    return _drawn


def take(images: dict[str, ImageSet]) -> None:
    """Use images that another process has drawn, whose time and memory are then its own."""
    _drawn.update(images)


class AttentionWithWeights(SelfAttention):
    """Attention as the reference repositories call it: the weights are computed, averaged and thrown away."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, H, W)."""
        size = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        normed = self.ln(x)
        x = x + self.mha(normed, normed, normed)[0]
        x = x + self.ff_self(x)
        return x.transpose(1, 2).unflatten(2, size)


def plain_unet(device: torch.device) -> ConditionalUNet:
    """Return the U-Net as the reference repositories run it: float32, contiguous, attention with weights."""
    model = ConditionalUNet().to(device)
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.__class__ = AttentionWithWeights
    return model


def plain_diffusion_training(device: torch.device, dtype: torch.dtype) -> Work:
    """Return one plain step."""
    model, schedule = plain_unet(device), make_schedule("linear").to(device)
    average = plain_unet(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)
    batches = Stopwatch(plain_batches(drawn()["mnistm"], BATCH_SIZE["diffusion"], device))

    def step() -> int:
        x_0, labels = next(batches)
        t = torch.randint(0, schedule.num_timesteps, (len(x_0),), device=device)
        noise = torch.randn_like(x_0)
        loss = diffusion_loss(lambda x_t, t: model(x_t, t, labels), schedule, x_0, t, noise, "noise", False).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
                mine.copy_(0.995 * mine + 0.005 * theirs)
        loss.item()
        return len(x_0)

    return Work(step, (batches,), (model,))


def plain_gan_training(device: torch.device, dtype: torch.dtype) -> Work:
    """Return one plain step of DCGAN, as PyTorch's tutorial writes it: no augmentation, no average."""
    generator, discriminator = (build({"model": "dcgan", "width": 64}).to(device)
                                for build in (build_generator, build_discriminator))
    g_optimiser, d_optimiser = (torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999), foreach=False)
                                for network in (generator, discriminator))
    batches = Stopwatch(plain_batches(drawn()["face"], BATCH_SIZE["gan"], device))
    loss_of = nn.BCELoss()

    def step() -> int:
        real, _ = next(batches)
        ones, zeros = torch.ones(len(real), device=device), torch.zeros(len(real), device=device)
        fake = generator(torch.randn(len(real), generator.z_dim, device=device))
        discriminator.zero_grad()
        real_loss = loss_of(discriminator.probability(real), ones)
        real_loss.backward()
        fake_loss = loss_of(discriminator.probability(fake.detach()), zeros)
        fake_loss.backward()
        d_optimiser.step()
        generator.zero_grad()
        g_loss = loss_of(discriminator.probability(fake), ones)
        g_loss.backward()
        g_optimiser.step()
        real_loss.item(), fake_loss.item(), g_loss.item()
        return len(real)

    return Work(step, (batches,), (generator, discriminator))


def plain_dann_training(device: torch.device, dtype: torch.dtype) -> Work:
    """Return one plain step of DANN: no augmentation."""
    model = DANN().to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=False)
    source, target = (Stopwatch(plain_batches(drawn()[domain], BATCH_SIZE["dann"], device))
                      for domain in ("mnistm", "usps"))
    loss_of = nn.CrossEntropyLoss()

    def step() -> int:
        (x, labels), (target_x, _) = next(source), next(target)
        domains = torch.arange(2, device=device).repeat_interleave(len(x))
        features = model.features(torch.cat([x, target_x]))
        of_class = loss_of(model.classifier(features[:len(x)]), labels)
        of_domain = loss_of(model.discriminator(grad_reverse(features, 0.5)), domains)
        optimiser.zero_grad()
        (of_class + of_domain).backward()
        optimiser.step()
        of_class.item(), of_domain.item()
        return len(domains)

    return Work(step, (source, target), (model,))


def plain_diffusion_evaluation(device: torch.device, dtype: torch.dtype) -> Work:
    """Return one evaluation of the plain network."""
    return evaluation(plain_unet(device), device)


def evaluation(model: nn.Module, device: torch.device) -> Work:
    """Return one evaluation of a U-Net on EVALUATION_BATCH_SIZE images, without gradients."""
    model.eval()
    x = torch.randn(EVALUATION_BATCH_SIZE, 3, 28, 28, device=device)
    t = torch.arange(EVALUATION_BATCH_SIZE, device=device)

    @torch.no_grad()
    def evaluate() -> int:
        model(x, t, t % 10)
        return EVALUATION_BATCH_SIZE

    return Work(evaluate)


def plain_diffusion_sampling(device: torch.device, dtype: torch.dtype) -> Work:
    """Return one of the 1000 steps of guided ancestral sampling: two evaluations, of as many images."""
    model, schedule = plain_unet(device).eval(), make_schedule("linear").to(device)
    labels = torch.arange(EVALUATION_BATCH_SIZE, device=device) % 10
    nobody = torch.zeros(EVALUATION_BATCH_SIZE, dtype=torch.bool, device=device)

    def denoise(x_t: Tensor, t: int) -> Tensor:
        times = torch.full_like(labels, t)
        output = torch.lerp(model(x_t, times, labels, nobody), model(x_t, times, labels), 2.0)
        return schedule.predict_x0(x_t, times, output, "noise").clamp(-1, 1)

    def noise() -> Tensor:
        return torch.randn(EVALUATION_BATCH_SIZE, 3, 28, 28, device=device)

    return sampling(lambda: ddpm(denoise, schedule, noise), schedule.num_timesteps)


def sampling(chain: Callable[[], Iterator], num_steps: int) -> Work:
    """Return one step of a sampler, which is a `num_steps`th of EVALUATION_BATCH_SIZE images."""
    def endless() -> Iterator:
        while True:
            yield from islice(chain(), 1, None)  # the first state is noise, and no work

    states = endless()

    def step() -> float:
        next(states)
        return EVALUATION_BATCH_SIZE / num_steps

    return Work(step)


def plain_gan_sampling(device: torch.device, dtype: torch.dtype) -> Work:
    """Return the drawing of a batch of faces."""
    generator = build_generator({"model": "dcgan", "width": 64}).to(device).eval()

    @torch.no_grad()
    def step() -> int:
        generator(torch.randn(BATCH_SIZE["gan"], generator.z_dim, device=device)).cpu()
        return BATCH_SIZE["gan"]

    return Work(step)


def plain_dann_inference(device: torch.device, dtype: torch.dtype) -> Work:
    """Return the reading of a folder of IMAGES digits."""
    model = DANN().to(device).eval()
    loader = DataLoader(PngFiles(drawn()["usps"]), BATCH_SIZE["dann"])

    @torch.no_grad()
    def step() -> int:
        return sum(len(model.classifier(model.features(x.to(device))).argmax(1).cpu()) for x, _ in loader)

    return Work(step)
