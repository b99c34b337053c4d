"""Exponential moving average of a network's weights (Polyak & Juditsky 1992; for GANs Yazici et al. 2019)."""

import copy

import torch
from torch import nn


class EMA:
    """Keep a slowly moving copy of a network: parameters averaged, buffers copied.

    The decay warms up as min(decay, (1 + n) / (10 + n)) after n updates, so that early averages follow the
    network instead of its random start.

    Args:
        module: the network in training.
        decay: the final decay a step; 0 makes the copy equal the network.
        copy_buffers: False for a copy that makes running statistics of its own.
    """

    def __init__(self, module: nn.Module, decay: float, copy_buffers: bool = True) -> None:
        self.decay, self.copy_buffers = decay, copy_buffers
        self.updates = 0
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take one step towards the network."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.module.parameters()), [p.detach() for p in module.parameters()], 1 - decay)
        if self.copy_buffers:
            for mine, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
                mine.copy_(theirs)
        self.updates += 1

    def state_dict(self) -> dict:
        """Return the averaged weights and the count of updates."""
        return {"updates": self.updates, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.updates = state["updates"]
        self.module.load_state_dict(state["module"])
