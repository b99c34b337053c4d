"""Start a wide U-Net where a narrow one has arrived: Net2WiderNet, Chen et al. (2016), arXiv:1511.05641."""

import torch
from torch import Tensor

SPLIT_NOISE = 0.5  # how unevenly two copies of a channel share its outgoing weight; 0 would keep them equal for ever


def widen(weights: dict[str, Tensor], factor: int, seed: int) -> dict[str, Tensor]:
    """Return the weights of a `ConditionalUNet` `factor` times as wide that computes the same function.

    Every hidden channel becomes `factor` neighbours. Each layer shares a channel's outgoing weight among its
    copies in random parts that sum to the whole, so that their gradients differ and training can part them.
    Normalisation over all channels sees the same mean and variance. Attention sums q.k over `factor` times as
    many channels but divides by the root of their number only, which smaller q and k undo.

    Args:
        weights: state dict of the narrow network.
        factor: whole number; 1 changes nothing.
        seed: of the random parts.
    """
    generator = torch.Generator().manual_seed(seed)

    def copies(value: Tensor, dim: int) -> Tensor:
        return value.repeat_interleave(factor, dim)

    def shared(value: Tensor) -> Tensor:
        parts = torch.rand(*value.shape[:2], factor, generator=generator) - 0.5
        parts = (1 + 2 * SPLIT_NOISE * (parts - parts.mean(2, keepdim=True))) / factor
        parts = parts.flatten(1).view(len(value), -1, *[1] * (value.dim() - 2))
        return copies(value, 1) * parts

    wide = {}
    for name, value in weights.items():
        if name == "label_emb.weight":  # fixed at 256 wide, as the time embedding that it is added to
            wide[name] = value
            continue
        if name != "outc.weight" and name != "outc.bias":
            value = copies(value, 0)
        if value.dim() > 1 and "emb_layer" not in name and name != "inc.double_conv.0.weight":
            value = shared(value)
        if "in_proj" in name:
            q_and_k, v = value.tensor_split([len(value) * 2 // 3])
            value = torch.cat([q_and_k * factor ** -0.25, v])
        wide[name] = value
    return wide
