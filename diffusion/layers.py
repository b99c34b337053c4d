"""Norms and upsampling that are faster on a GPU than PyTorch's layers; on a CPU, and in print, they are PyTorch's.

Under autocast PyTorch's norms return float32, and its group norm leaves channels_last. These keep dtype and memory
format, and sum in float32. Group norm is written out: a layer norm of the whole sample would be the same, but has one
thread block per sample. Upsampling is one matrix product, where PyTorch's has one thread per pixel.
"""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def on_cpu(x: Tensor) -> bool:
    """Say whether x is on a CPU, where PyTorch's own layers are the fastest."""
    return x.device.type == "cpu"


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last axis, in the dtype of its input; statistics are float32."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., C) -> (..., C)."""
        if on_cpu(x):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class GroupNorm(nn.GroupNorm):
    """Group norm with one group."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, H, W)."""
        return super().forward(x) if on_cpu(x) else normalise(x, self.weight, self.bias, self.eps)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        mean = x.mean((1, 2), dtype=torch.float32)[:, None]  # (B, 1), as the next two
        norm = torch.linalg.vector_norm(x, dim=(1, 2), dtype=torch.float32)[:, None]
        variance = norm.square().div_(x[0].numel()).addcmul_(mean, mean, value=-1).clamp_(min=0)
        inverse = variance.add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, mean, inverse)
        scale = inverse * weight
        shift = torch.addcmul(bias, mean, scale, value=-1)
        return torch.addcmul(shift.to(x.dtype)[:, None], x, scale.to(x.dtype)[:, None])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        # dL/dx = inverse * (h - mean(h) - n mean(h n)) with h = grad * weight, and n the normed x.
        x, weight, mean, inverse = ctx.saved_tensors
        grad_sum = grad.sum(1, dtype=torch.float32)  # (B, C)
        grad_n_sum = (grad * x).sum(1, dtype=torch.float32).addcmul_(mean, grad_sum, value=-1).mul_(inverse)
        h_mean, hn_mean = (sums @ weight[:, None] / x[0].numel() for sums in (grad_sum, grad_n_sum))  # (B, 1)
        times_x = inverse.square().mul_(hn_mean).neg_()
        constant = torch.addcmul(inverse * h_mean, times_x, mean).neg_()
        dx = torch.addcmul(constant.to(x.dtype)[:, None], x, times_x.to(x.dtype)[:, None])
        dx = dx.addcmul_(grad, (inverse * weight).to(x.dtype)[:, None])
        return dx, grad_n_sum.sum(0), grad_sum.sum(0), None


def normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return group norm with one group of a channels_last map (B, C, H, W), like x; weight and bias are (C,) float32.

    Ba et al. 2016, arXiv:1607.06450, sec. 3: mean and deviation are those of all channels and positions of a sample.
    """
    with torch.autocast(x.device.type, enabled=False):
        rows = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, HW, C): of a channels_last map, as it lies in memory
        return _Normalise.apply(rows, weight, bias, eps).mT.unflatten(2, x.shape[2:])


@functools.cache
def upsampling(size: int, new_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the matrix of bilinear upsampling with aligned corners, (new_size ** 2, size ** 2)."""
    line = torch.eye(size, dtype=torch.float64)[None]
    line = F.interpolate(line, size=new_size, mode="linear", align_corners=True)[0].T  # (new_size, size)
    return torch.kron(line, line).to(device, dtype)


class Upsample(nn.Upsample):
    """Bilinear upsampling of a square map with aligned corners: a product with a constant matrix."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, H) -> (B, C, H', H')."""
        if on_cpu(x):
            return super().forward(x)
        size, new_size = x.shape[-1], int(x.shape[-1] * self.scale_factor)
        pixels = upsampling(size, new_size, x.device, x.dtype) @ x.flatten(2).mT  # (B, H' H', C)
        return pixels.mT.unflatten(2, (new_size, new_size))
