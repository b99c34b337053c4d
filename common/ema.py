"""Exponential moving average of a network's weights (Polyak & Juditsky 1992; for GANs: Yazici et al. 2019).

Unlike `torch.optim.swa_utils`, the decay warms up, and buffers are neither averaged nor copied.
"""

import copy

import torch
from torch import nn


class EMA:
    """Keep a slowly moving copy of a network, in eval mode: its parameters are averages.

    Buffers of the copy are not updated: running statistics of the training network belong to other weights. The decay
    per step warms up as min(decay, (1 + n) / (10 + n)) after n updates, so early averages follow the network instead
    of its random initialisation. With decay 0 the copy's parameters equal the network's.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move one step towards the network."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.module.parameters()), [p.detach() for p in module.parameters()], 1 - decay)
        self.updates += 1

    def state_dict(self) -> dict:
        """Return the copy's state and the number of updates."""
        return {"updates": self.updates, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.updates = state["updates"]
        self.module.load_state_dict(state["module"])
