"""Measure this project's defaults against the plain loop of the usual tutorials, alternating, in one run.

    bash scripts/benchmark.sh [--device cpu|cuda] [--quick] [--out report/benchmark.json]

Plain is float32, contiguous, eager, a DataLoader that decodes PNG files one by one, attention that also returns its
weights, and `.item()` of the loss at every step. Both train the same networks with the same batch size on the same
embedded images. Every round times plain, then ours; the ratio is the median over rounds, its spread the smallest and
largest round.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import normalize, to_tensor

from common.batches import Batches
from common.cli import Parser, add_device_flags, run_main
from common.datasets import ImageSet, load_digits, load_faces
from common.device import autocast, describe_machine, place, seed_everything, select_device, select_dtype, synchronize
from common.ema import EMA
from common.files import write_json
from common.images import save_image, to_float
from dann import train as dann_train
from dann.grl import grad_reverse
from dann.inputs import network_input, scale_range
from dann.networks import DANN
from diffusion import train as diffusion_train
from diffusion.loss import diffusion_loss
from diffusion.schedule import make_schedule
from diffusion.unet import ConditionalUNet, SelfAttention
from gan import train as gan_train
from gan.models import build_discriminator, build_generator

BATCH_SIZE = {"diffusion": 64, "gan": 64, "dann": 128}
EVALUATION_BATCH_SIZE = 100
IMAGES = 512  # written as PNG for the plain loops, resident for ours


class PngFiles(Dataset):
    """Images and labels, opened, decoded and normalised one by one, as tutorials do."""

    def __init__(self, images: ImageSet, folder: Path) -> None:
        self.paths = [folder / f"{i:05d}.png" for i in range(len(images.images))]
        self.labels = images.labels if images.labels is not None else torch.zeros(len(self.paths), dtype=torch.int64)
        for path, image in zip(self.paths, images.images, strict=True):
            save_image(image, path)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.paths[index]) as image:
            return normalize(to_tensor(image.convert("RGB")), [0.5] * 3, [0.5] * 3), self.labels[index]


def plain_batches(images: ImageSet, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield float batches and labels for ever, from PNG files in a folder that goes with the process."""
    with tempfile.TemporaryDirectory() as folder:
        loader = DataLoader(PngFiles(images, Path(folder)), batch_size, shuffle=True, drop_last=True)
        while True:
            for x, labels in loader:
                yield x.to(device), labels.to(device)


def our_batches(images: ImageSet, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield uint8 batches and labels for ever, from resident tensors."""
    resident = images.images.to(device)
    labels = images.labels.to(device) if images.labels is not None else torch.zeros(len(resident), device=device)
    batches = Batches(len(resident), batch_size, seed=0)
    while True:
        index = batches.next().to(device)
        yield resident[index], labels[index]


def some(images: ImageSet) -> ImageSet:
    """Return the first IMAGES of a set."""
    return ImageSet(*(part if part is None else part[:IMAGES] for part in images))


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


def plain_diffusion_training(device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    """Return a function that takes one plain step and says how many images it saw."""
    model, schedule = plain_unet(device), make_schedule("linear").to(device)
    average = plain_unet(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)
    batches = plain_batches(some(load_digits("builtin", "mnistm", "train")), BATCH_SIZE["diffusion"], device)

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

    return step


def our_diffusion_training(device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    """Return a function that takes one step of `diffusion.train` and says how many images it saw."""
    args = diffusion_train.parse_args([])
    model, schedule = place(ConditionalUNet(), device), make_schedule(args.schedule).to(device)
    ema = EMA(model, args.ema_decay)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batches = our_batches(some(load_digits("builtin", "mnistm", "train")), BATCH_SIZE["diffusion"], device)

    def step() -> int:
        images, labels = next(batches)
        diffusion_train.train_step(model, ema, optimiser, schedule, to_float(images), labels, args, dtype)
        return len(images)

    return step


def plain_gan_training(device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    """Return one plain step of DCGAN, as PyTorch's tutorial writes it: no augmentation, no average."""
    generator, discriminator = (build({"model": "dcgan", "width": 64}).to(device)
                                for build in (build_generator, build_discriminator))
    g_optimiser, d_optimiser = (torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999), foreach=False)
                                for network in (generator, discriminator))
    batches = plain_batches(some(load_faces("builtin", "train")), BATCH_SIZE["gan"], device)
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

    return step


def our_gan_training(device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    """Return one step of `gan.train --model dcgan`."""
    args = gan_train.parse_args(["--model", "dcgan"])
    generator, discriminator = (place(build({"model": "dcgan", "width": 64}), device)
                                for build in (build_generator, build_discriminator))
    g_ema = EMA(generator, args.ema_decay)
    g_optimiser, d_optimiser = (torch.optim.Adam(network.parameters(), lr=lr, betas=(0.5, 0.999), fused=True)
                                for network, lr in ((generator, args.g_lr), (discriminator, args.d_lr)))
    batches = our_batches(some(load_faces("builtin", "train")), BATCH_SIZE["gan"], device)

    def step() -> int:
        images, _ = next(batches)
        gan_train.train_step(generator, discriminator, g_ema, g_optimiser, d_optimiser, to_float(images), args, dtype)
        return len(images)

    return step


def plain_dann_training(device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    """Return one plain step of DANN: no augmentation."""
    model = DANN().to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=False)
    source, target = (plain_batches(some(load_digits("builtin", domain, "train")), BATCH_SIZE["dann"], device)
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

    return step


def our_dann_training(device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    """Return one step of `dann.train --recipe plain`, augmentation and all."""
    model = place(DANN(), device)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    pair = ("mnistm", "usps")
    source, target = (our_batches(some(load_digits("builtin", domain, "train")), BATCH_SIZE["dann"], device)
                      for domain in pair)

    def step() -> int:
        (images, labels), (target_images, _) = next(source), next(target)
        x = network_input(images, scale=scale_range(*pair), recolour=True)
        target_x = network_input(target_images, scale=scale_range(pair[1], pair[1]), recolour=True)
        dann_train.train_step(model, optimiser, x, labels, target_x, None, True, 0.5, dtype)
        return len(images) + len(target_images)

    return step


def plain_diffusion_evaluation(device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    """Return a function that evaluates the plain network once and says on how many images."""
    return _evaluation(plain_unet(device), device, torch.float32)


def our_diffusion_evaluation(device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    """Return a function that evaluates our network once and says on how many images."""
    return _evaluation(place(ConditionalUNet(), device), device, dtype)


def _evaluation(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Callable[[], int]:
    model.eval()
    x = torch.randn(EVALUATION_BATCH_SIZE, 3, 28, 28, device=device)
    t = torch.arange(EVALUATION_BATCH_SIZE, device=device)

    @torch.no_grad()
    def evaluate() -> int:
        with autocast(device, dtype):
            model(x, t, t % 10)
        return EVALUATION_BATCH_SIZE

    return evaluate


PAIRS = {
    "diffusion training": (plain_diffusion_training, our_diffusion_training),
    "GAN training": (plain_gan_training, our_gan_training),
    "DANN training": (plain_dann_training, our_dann_training),
    "diffusion evaluation": (plain_diffusion_evaluation, our_diffusion_evaluation),
}


def images_per_second(work: Callable[[], int], device: torch.device, seconds: float) -> float:
    """Repeat `work` for at least `seconds`; return images/s."""
    synchronize(device)
    start, images = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        images += work()
        synchronize(device)
    return images / elapsed


def compare(plain: Callable[[], int], ours: Callable[[], int], device: torch.device, rounds: int,
            seconds: float) -> dict[str, float]:
    """Time both alternately; return medians and the ratio's spread."""
    plain(), ours()  # the first call allocates and picks kernels
    pairs = [(images_per_second(plain, device, seconds), images_per_second(ours, device, seconds))
             for _ in range(rounds)]
    ratios = [fast / slow for slow, fast in pairs]
    return {"plain": statistics.median(slow for slow, _ in pairs), "ours": statistics.median(f for _, f in pairs),
            "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add_device_flags(parser)
    parser.add_argument("--quick", action="store_true", help="one short round instead of five")
    parser.add_argument("--out", metavar="PATH", type=Path, help="write the figures there as JSON as well")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    args = parse_args(argv)
    device = select_device(args.device)
    dtype = select_dtype(device, args.precision)
    rounds, seconds = (1, 0.1) if args.quick else (5, 5)
    results = {}
    print(f"{describe_machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {dtype}")
    for name, makers in PAIRS.items():
        seed_everything(0)
        plain, ours = (make(device, dtype) for make in makers)
        row = results[name] = compare(plain, ours, device, rounds, seconds)
        print(f"{name:22} plain {row['plain']:8.1f}  ours {row['ours']:8.1f} images/s  "
              f"ratio {row['ratio']:.2f} ({row['ratio_min']:.2f} .. {row['ratio_max']:.2f})", flush=True)
    if args.out:
        about = {"machine": describe_machine(), "torch": torch.__version__,
                 "threads": torch.get_num_threads(), "precision": str(dtype), "rounds": rounds}
        write_json(args.out, {**about, "images_per_second": results})
    return 0


if __name__ == "__main__":
    run_main(main)
