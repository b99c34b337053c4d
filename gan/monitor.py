"""How a GAN training is doing: previews, measurements on the same faces every time, and a warning in words."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from common.device import autocast
from common.distributed import rank
from common.errors import UserError
from common.images import grid, save_picture, to_float, to_uint8
from common.scores import near_duplicates
from gan.sagan import SelfAttention

WATCHED = 64  # faces of each kind that `health` measures: generated, training, validation
PREVIEW_IMAGES, PREVIEW_COLUMNS = 32, 8
QUIET_STEPS = 1000  # steps without a warning; in healthy runs near_duplicates fell from 1 to below 1/2 within 400
MEMORISED = 0.75  # d_auc; chance alone moves it by 0.05 (standard deviation of 64 and 64 faces)


@torch.no_grad()
def generate(generator: nn.Module, z: Tensor, dtype: torch.dtype) -> Tensor:
    """Generate the faces of noise z, (N, z_dim): (N, 3, 64, 64) uint8 on the CPU."""
    with autocast(z.device, dtype):
        return to_uint8(generator(z)).cpu()


def save_preview(generator: nn.Module, z: Tensor, dtype: torch.dtype, path: Path) -> None:
    """Write a picture of the first 32 faces of noise z, (N, z_dim); only process 0 writes."""
    if rank() == 0:
        save_picture(grid(generate(generator, z[:PREVIEW_IMAGES], dtype), PREVIEW_COLUMNS), path)


def watched_faces(train: Tensor, val: Tensor) -> tuple[Tensor, Tensor]:
    """Return min(WATCHED, N, M) of (N, ...) training and of (M, ...) validation faces; UserError if that is below 2.

    They are spread evenly over both sets, which may be sorted by person.
    """
    count = min(WATCHED, len(train), len(val))
    if count < 2:
        raise UserError(f"--data: got {len(train)} training and {len(val)} validation faces, expected at least 2 of "
                        "each")
    train, val = (faces[torch.linspace(0, len(faces) - 1, count).long()] for faces in (train, val))
    return train, val


def attention_gammas(generator: nn.Module, discriminator: nn.Module) -> dict[str, Tensor]:
    """Return the weight of each attention layer, 0-d: gamma_g1, gamma_g2, gamma_d1, gamma_d2; none for DCGAN."""
    return {f"gamma_{letter}{i}": layer.gamma.detach().clone().squeeze()
            for letter, network in (("g", generator), ("d", discriminator))
            for i, layer in enumerate((m for m in network.modules() if isinstance(m, SelfAttention)), 1)}


@torch.no_grad()
def health(discriminator: nn.Module, generated: Tensor, train: Tensor, val: Tensor,
           dtype: torch.dtype) -> dict[str, Tensor]:
    """Measure whether D memorises the training faces and whether G repeats itself. No network changes.

    Args:
        discriminator: in training mode.
        generated: (N, 3, 64, 64) uint8, N >= 2, from the averaged generator.
        train, val: (M, 3, 64, 64) uint8 each, training faces, M >= 2, and validation faces.
        dtype: in which the discriminator runs.

    Returns:
        d_auc, the probability that D's logit of a training face is above that of a validation face (area under the ROC
        curve), and near_duplicates, a share of the generated faces (common.scores).
    """
    judge = copy.deepcopy(discriminator)  # a forward pass in training mode changes running statistics
    device = next(judge.parameters()).device
    with autocast(device, dtype):  # in one batch, or batch normalisation would tell the two apart
        d_train, d_val = judge(to_float(torch.cat([train, val]).to(device))).view(2, -1)
    d_auc = (1 + (d_train[:, None] - d_val).sign().mean()) / 2  # a tie counts half
    repeated = near_duplicates(generated.numpy(), train.numpy())
    return {"d_auc": d_auc, "near_duplicates": torch.tensor(repeated, device=device)}


def diagnose(row: dict[str, float]) -> str | None:
    """Return one line about what goes wrong in a logged row of training, and what may help; None if nothing does."""
    if row["step"] <= QUIET_STEPS:
        return None
    if row["near_duplicates"] > 0.5:
        return "G has collapsed, most of its faces repeat one another: start again with a lower --g-lr"
    if row["d_loss"] < 0.05:
        return "D recognises nearly every generated face, so G learns little: try a lower --d-lr"
    if row["d_real"] - row["d_fake"] < 0.02:
        return "D cannot tell generated faces from real ones, so G learns nothing: try a higher --d-lr"
    if row["d_auc"] > MEMORISED:
        return "D has memorised the training faces: try --augment or more faces"
    return None
