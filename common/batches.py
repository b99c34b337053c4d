"""The order in which training images are used."""

import torch
from torch import Tensor

from common.device import send

CPU = torch.device("cpu")


class Batches:
    """An endless stream of batches of indices below `num_items`; epoch e is a permutation seeded by (seed, e).

    Its position is two integers, so a resume is exact. Every batch has `batch_size` indices, at most `num_items`: an
    incomplete last batch is dropped. Streams with different seeds are unrelated. The order is the same on every device.
    """

    def __init__(self, num_items: int, batch_size: int, seed: int, device: torch.device = CPU) -> None:
        if not 1 <= batch_size <= num_items:
            raise ValueError(f"batch_size: got {batch_size}, expected 1..{num_items}")
        self.num_items, self.batch_size, self.seed, self.device = num_items, batch_size, seed, device
        self.epoch, self.position = 0, 0
        self._order = self._permutation()

    def _permutation(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return send(torch.randperm(self.num_items, generator=generator), self.device)

    def next(self) -> Tensor:
        """Return the next (batch_size,) int64 indices, on the device."""
        if self.position + self.batch_size > self.num_items:
            self.epoch, self.position = self.epoch + 1, 0
            self._order = self._permutation()
        batch = self._order[self.position:self.position + self.batch_size]
        self.position += self.batch_size
        return batch

    def state_dict(self) -> dict[str, int]:
        """Return the position in the stream."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to the position of a stream with the same number of items, batch size and seed."""
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._permutation()
