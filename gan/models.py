"""The two models by name, for training, inference and evaluation."""

from types import ModuleType
from typing import Any

from torch import nn

from gan import dcgan, sagan

KINDS = {"dcgan": "gan/dcgan", "sagan": "gan/sagan"}  # what a checkpoint of each model is called
WIDTH_MULTIPLE = {"dcgan": 1, "sagan": sagan.KEY_DIVISOR}
_MODULES = {"dcgan": dcgan, "sagan": sagan}


def build_generator(model_args: dict[str, Any]) -> nn.Module:
    """Build an untrained generator from {"model": a key of KINDS} and arguments of its class, as "width"."""
    module, arguments = _split(**model_args)
    return module.Generator(**arguments)


def build_discriminator(model_args: dict[str, Any]) -> nn.Module:
    """Build an untrained discriminator; arguments as for the generator."""
    module, arguments = _split(**model_args)
    return module.Discriminator(**arguments)


def _split(model: str, **arguments: Any) -> tuple[ModuleType, dict[str, Any]]:
    return _MODULES[model], arguments
