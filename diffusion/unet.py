"""The class-conditional U-Net of the report: 28x28x3, 10 classes, 23,335,299 parameters at width 64.

The layout follows the conditional DDPM of T. Capelle (2022), itself after dome272; the second up-sampling
(x2.5) exists because 28 halves to 14, 7 and 3, and 3 has to come back to 7. `nn.MultiheadAttention` holds the
report's parameters; what it computes is done by `diffusion.attention`, without attention weights to return.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.attention import attend

KIND = "diffusion"  # what a checkpoint of this network is called
TIME_DIM = 256
NUM_HEADS = 4


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each followed by GroupNorm over all channels; optionally residual."""

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int | None = None,
                 residual: bool = False) -> None:
        super().__init__()
        mid_channels = mid_channels or out_channels
        self.residual = residual
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(1, mid_channels),
            nn.GELU(),
            nn.Conv2d(mid_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(1, out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in, H, W) -> (B, out, H, W)."""
        if self.residual:
            return F.gelu(x + self.double_conv(x))
        return self.double_conv(x)


def _embedding_layer(out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(TIME_DIM, out_channels))


class Down(nn.Module):
    """Halve the map, convolve, add the projected time and class embedding."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(
            nn.MaxPool2d(2),
            DoubleConv(in_channels, in_channels, residual=True),
            DoubleConv(in_channels, out_channels),
        )
        self.emb_layer = _embedding_layer(out_channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: (B, in, H, W), emb: (B, 256) -> (B, out, H // 2, W // 2)."""
        return self.maxpool_conv(x) + self.emb_layer(emb)[:, :, None, None]


class Up(nn.Module):
    """Enlarge the map to its skip connection's size, concatenate, convolve, add the embedding."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up1 = nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True)
        self.up2 = nn.Upsample(scale_factor=2.5, mode="bilinear", align_corners=True)
        self.conv = nn.Sequential(
            DoubleConv(in_channels, in_channels, residual=True),
            DoubleConv(in_channels, out_channels, in_channels // 2),
        )
        self.emb_layer = _embedding_layer(out_channels)

    def forward(self, x: Tensor, skip: Tensor, emb: Tensor) -> Tensor:
        """x: (B, C, h, w), skip: (B, in - C, H, W), emb: (B, 256) -> (B, out, H, W)."""
        x = self.up1(x) if 2 * x.shape[-1] == skip.shape[-1] else self.up2(x)
        x = self.conv(torch.cat([skip, x], dim=1))
        return x + self.emb_layer(emb)[:, :, None, None]


class SelfAttention(nn.Module):
    """Multi-head self-attention over all positions and a feed-forward layer, both residual, pre-norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(channels, NUM_HEADS, batch_first=True)
        self.ln = nn.LayerNorm([channels])
        self.ff_self = nn.Sequential(
            nn.LayerNorm([channels]),
            nn.Linear(channels, channels),
            nn.GELU(),
            nn.Linear(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, H, W)."""
        size = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)  # (B, HW, C)
        qkv = F.linear(self.ln(x), self.mha.in_proj_weight, self.mha.in_proj_bias)
        q, k, v = qkv.unflatten(2, (3, NUM_HEADS, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, HW, C / heads) each
        x = x + self.mha.out_proj(attend(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.ff_self(x)
        return x.transpose(1, 2).unflatten(2, size)


def time_embedding(t: Tensor, dim: int = TIME_DIM) -> Tensor:
    """Return the sinusoidal embedding of Vaswani et al. (2017), sines first: t (B,) -> (B, dim)."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(0, dim, 2, device=t.device) / dim)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ConditionalUNet(nn.Module):
    """Predict the noise (or velocity) in x_t, given t and a digit, or no digit.

    Args:
        width: channels of the first map; 64 is the report's network, smaller ones are for demo and tests.
        num_classes: rows of the label embedding. The unconditional branch adds no label: it has no row.
    """

    def __init__(self, width: int = 64, num_classes: int = 10) -> None:
        super().__init__()
        w = width
        self.inc = DoubleConv(3, w)
        self.down1 = Down(w, 2 * w)
        self.sa1 = SelfAttention(2 * w)
        self.down2 = Down(2 * w, 4 * w)
        self.sa2 = SelfAttention(4 * w)
        self.down3 = Down(4 * w, 4 * w)
        self.sa3 = SelfAttention(4 * w)
        self.bot1 = DoubleConv(4 * w, 8 * w)
        self.bot2 = DoubleConv(8 * w, 8 * w)
        self.bot3 = DoubleConv(8 * w, 4 * w)
        self.up1 = Up(8 * w, 2 * w)
        self.sa4 = SelfAttention(2 * w)
        self.up2 = Up(4 * w, w)
        self.sa5 = SelfAttention(w)
        self.up3 = Up(2 * w, w)
        self.sa6 = SelfAttention(w)
        self.outc = nn.Conv2d(w, 3, kernel_size=1)
        self.label_emb = nn.Embedding(num_classes, TIME_DIM)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Return the prediction for x_t.

        Args:
            x: (B, 3, 28, 28) float, x_t.
            t: (B,) integer time step in 0..T-1.
            labels: (B,) int64 digit, or None for the unconditional branch.
            keep: (B,) bool; where False the label is dropped, sample by sample. None keeps all.

        Returns:
            (B, 3, 28, 28) float32.
        """
        emb = time_embedding(t)
        if labels is not None:
            label_emb = self.label_emb(labels)
            emb = emb + (label_emb if keep is None else label_emb * keep[:, None])

        x1 = self.inc(x)
        x2 = self.sa1(self.down1(x1, emb))
        x3 = self.sa2(self.down2(x2, emb))
        x4 = self.sa3(self.down3(x3, emb))
        x4 = self.bot3(self.bot2(self.bot1(x4)))
        x = self.sa4(self.up1(x4, x3, emb))
        x = self.sa5(self.up2(x, x2, emb))
        x = self.sa6(self.up3(x, x1, emb))
        return self.outc(x).float()
