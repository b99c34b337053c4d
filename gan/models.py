"""The GAN models: one row per model holds its networks and the settings it is trained with by default."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from gan import dcgan, sagan


class Model(NamedTuple):
    """Everything that the project knows of one model."""

    kind: str  # of its checkpoints
    generator: Callable[..., nn.Module]
    discriminator: Callable[..., nn.Module]
    width_multiple: int  # `width` must be divisible by it
    loss: str  # a key of gan.losses.LOSSES
    g_lr: float
    d_lr: float
    betas: tuple[float, float]  # of Adam


# Losses, rates and betas are the papers' (DCGAN sec. 4, SAGAN sec. 4), except SAGAN's g_lr: the paper has 1e-4, but
# even at half of D's rate some faces turned into speckles (hw2_report.md, GAN, section 2).
MODELS = {
    "dcgan": Model("gan/dcgan", dcgan.Generator, dcgan.Discriminator, width_multiple=1,
                   loss="non-saturating", g_lr=2e-4, d_lr=2e-4, betas=(0.5, 0.999)),
    "sagan": Model("gan/sagan", sagan.Generator, sagan.Discriminator, width_multiple=sagan.KEY_DIVISOR,
                   loss="hinge", g_lr=4e-4, d_lr=4e-4, betas=(0.0, 0.9)),
}


def build_generator(model_args: dict[str, Any]) -> nn.Module:
    """Build an untrained generator from {"model": a key of MODELS} and arguments of its class, such as "width"."""
    arguments = dict(model_args)
    return MODELS[arguments.pop("model")].generator(**arguments)


def build_discriminator(model_args: dict[str, Any]) -> nn.Module:
    """Build an untrained discriminator from {"model": a key of MODELS} and arguments of its class, such as "width"."""
    arguments = dict(model_args)
    return MODELS[arguments.pop("model")].discriminator(**arguments)
