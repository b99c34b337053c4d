"""The two models by name, for training, inference and evaluation."""

from typing import Any

from torch import nn

from gan import dcgan, sagan

KINDS = {"dcgan": "gan/dcgan", "sagan": "gan/sagan"}  # what a checkpoint of each model is called
WIDTH_MULTIPLE = {"dcgan": 1, "sagan": sagan.KEY_DIVISOR}
_MODULES = {"dcgan": dcgan, "sagan": sagan}


def build_generator(model_args: dict[str, Any]) -> nn.Module:
    """Build an untrained generator from {"model": a key of KINDS, "width": channels}."""
    return _MODULES[model_args["model"]].Generator(width=model_args["width"])


def build_discriminator(model_args: dict[str, Any]) -> nn.Module:
    """Build an untrained discriminator; arguments as for the generator."""
    return _MODULES[model_args["model"]].Discriminator(width=model_args["width"])
