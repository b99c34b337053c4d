"""The order in which training images are drawn, and the parts in which a batch that is too large is computed."""

from collections.abc import Callable

import torch
from torch import Tensor

from common.device import release_cached_memory
from common.errors import UserError


class Batches:
    """An endless stream of index batches; epoch e is a permutation seeded by (seed, e).

    Two integers say where it stands in a set of a known size, so a resume is exact. An incomplete last batch is left
    out, so every batch has the same size.

    Args:
        num_items: size of the training set.
        batch_size: at most num_items.
        seed: streams with different seeds are unrelated.
    """

    def __init__(self, num_items: int, batch_size: int, seed: int) -> None:
        if not 1 <= batch_size <= num_items:
            raise ValueError(f"batch_size: got {batch_size}, expected 1..{num_items}")
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed
        self.epoch, self.position = 0, 0
        self._order = self._permutation()

    def _permutation(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(self.num_items, generator=generator)

    def next(self) -> Tensor:
        """Return the next (batch_size,) int64 indices."""
        if self.position + self.batch_size > self.num_items:
            self.epoch, self.position = self.epoch + 1, 0
            self._order = self._permutation()
        batch = self._order[self.position:self.position + self.batch_size]
        self.position += self.batch_size
        return batch

    def state_dict(self) -> dict[str, int]:
        """Return where the stream stands."""
        return {"num_items": self.num_items, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where a stream of the same seed stood.

        Raises:
            UserError: it was of another number of items, whose order would be another.
        """
        if state["num_items"] != self.num_items:
            raise UserError(f"got a training set of {self.num_items} images, expected {state['num_items']} as before: "
                            "resume with the same data, or start anew with another --out")
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._permutation()


class MicroBatches:
    """Compute gradients of a batch whole or, once the GPU's memory was too small for that, in parts.

    The sum over parts is the gradient of the whole batch, but for rounding, in a network without batch
    normalisation. Parts are halved until one fits, and stay so: a change costs a failed step.
    """

    def __init__(self) -> None:
        self.size: int | None = None  # images a part; None is the whole batch

    def run(self, backward: Callable[[slice], Tensor], zero_grad: Callable[[], None], batch_size: int) -> Tensor:
        """Run `backward` on all parts of a batch and return its results, joined.

        Args:
            backward: adds the gradient of a part to the parameters and returns its results, (images, ...); draws
                nothing at random.
            zero_grad: sets the gradients to zero.
            batch_size: images in the batch.

        Returns:
            (batch_size, ...).

        Raises:
            UserError: one image alone does not fit.
        """
        while True:
            size = self.size or batch_size
            zero_grad()
            try:
                return torch.cat([backward(slice(i, i + size)) for i in range(0, batch_size, size)])
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise UserError("the GPU's memory is full with one image a time: take a smaller --width") from error
            release_cached_memory()
            self.size = -(-size // 2)
            print(f"the GPU's memory is full: batches of {batch_size} are computed {self.size} images at a time from "
                  "here; a smaller --batch-size or --width, or --precision bf16, would avoid it")
