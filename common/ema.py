"""Exponential moving average of a network's weights (Polyak & Juditsky 1992; for GANs Yazici et al. 2019)."""

import copy

import torch
from torch import nn


class EMA:
    """Keep a slowly moving copy of a network: its parameters are averages, its buffers its own.

    Running statistics of the network in training would be of other activations than the averaged weights have. The
    decay warms up as min(decay, (1 + n) / (10 + n)) after n updates, so that early averages follow the
    network instead of its random start.

    Args:
        module: the network in training.
        decay: the final decay a step; with 0 the copy's parameters are the network's.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take one step towards the network."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.module.parameters()), [p.detach() for p in module.parameters()], 1 - decay)
        self.updates += 1

    def state_dict(self) -> dict:
        """Return the copy and the count of updates."""
        return {"updates": self.updates, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.updates = state["updates"]
        self.module.load_state_dict(state["module"])
