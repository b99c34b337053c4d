"""The class-conditional U-Net: 28x28x3 images, 10 classes, 23,335,299 parameters at width 64.

The layout is that of T. Capelle's conditional DDPM (2022), which follows dome272's Diffusion-Models-pytorch.
report/networks.md prints it. Maps have 28, 14, 7 and 3 pixels per side; the second upsampling layer (x2.5) takes 3 back
to 7. `nn.MultiheadAttention` only holds the attention parameters, under the printed names. The computation is in
diffusion/attention.py, because that of the module is slower in training. Norms and upsampling are those of
diffusion/layers.py, which print as PyTorch's and compute the same.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.attention import attend
from diffusion.layers import GroupNorm, LayerNorm, Upsample

KIND = "diffusion"  # the kind of its checkpoints
TIME_DIM, NUM_HEADS, NUM_CLASSES = 256, 4, 10


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each followed by GroupNorm with one group; optionally residual."""

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int | None = None,
                 residual: bool = False) -> None:
        super().__init__()
        mid_channels = mid_channels or out_channels
        self.residual = residual
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, 3, padding=1, bias=False), GroupNorm(1, mid_channels), nn.GELU(),
            nn.Conv2d(mid_channels, out_channels, 3, padding=1, bias=False), GroupNorm(1, out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in, H, W) -> (B, out, H, W)."""
        return F.gelu(x + self.double_conv(x)) if self.residual else self.double_conv(x)


class Down(nn.Module):
    """Halve the map, convolve, add the projected time and label embedding."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(in_channels, in_channels, residual=True),
                                          DoubleConv(in_channels, out_channels))
        self.emb_layer = nn.Sequential(nn.SiLU(), nn.Linear(TIME_DIM, out_channels))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: (B, in, H, W), emb: (B, 256) -> (B, out, H // 2, W // 2)."""
        return self.maxpool_conv(x) + self.emb_layer(emb)[:, :, None, None]


class Up(nn.Module):
    """Upsample the map to the size of the skip connection, concatenate, convolve, add the projected embedding."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up1 = Upsample(scale_factor=2.0, mode="bilinear", align_corners=True)
        self.up2 = Upsample(scale_factor=2.5, mode="bilinear", align_corners=True)
        self.conv = nn.Sequential(DoubleConv(in_channels, in_channels, residual=True),
                                  DoubleConv(in_channels, out_channels, in_channels // 2))
        self.emb_layer = nn.Sequential(nn.SiLU(), nn.Linear(TIME_DIM, out_channels))

    def forward(self, x: Tensor, skip: Tensor, emb: Tensor) -> Tensor:
        """x: (B, C, h, w), skip: (B, in - C, H, W), emb: (B, 256) -> (B, out, H, W)."""
        x = self.up1(x) if 2 * x.shape[-1] == skip.shape[-1] else self.up2(x)
        return self.conv(torch.cat([skip, x], dim=1)) + self.emb_layer(emb)[:, :, None, None]


class SelfAttention(nn.Module):
    """Multi-head self-attention over all positions, then a feed-forward layer; both pre-norm and residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(channels, NUM_HEADS, batch_first=True)
        self.ln = LayerNorm([channels])
        self.ff_self = nn.Sequential(LayerNorm([channels]), nn.Linear(channels, channels), nn.GELU(),
                                     nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, H, W)."""
        size = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)  # (B, HW, C)
        qkv = F.linear(self.ln(x), self.mha.in_proj_weight, self.mha.in_proj_bias)
        q, k, v = qkv.unflatten(2, (3, NUM_HEADS, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, HW, C / heads) each
        x = x + self.mha.out_proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return (x + self.ff_self(x)).transpose(1, 2).unflatten(2, size)


def time_embedding(t: Tensor) -> Tensor:
    """Return the sinusoidal embedding of Vaswani et al. (2017, arXiv:1706.03762), sines first: (B,) -> (B, 256)."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(0, TIME_DIM, 2, device=t.device) / TIME_DIM)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ConditionalUNet(nn.Module):
    """Predict the noise or the velocity in x_t from t and, optionally, a label.

    `width` is the number of channels of the first map, a multiple of 4. The network of hw2_report.md has width 64.
    The label embedding has one row per digit; the unconditional branch adds none of them.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.inc = DoubleConv(3, width)
        self.down1 = Down(width, 2 * width)
        self.sa1 = SelfAttention(2 * width)
        self.down2 = Down(2 * width, 4 * width)
        self.sa2 = SelfAttention(4 * width)
        self.down3 = Down(4 * width, 4 * width)
        self.sa3 = SelfAttention(4 * width)
        self.bot1 = DoubleConv(4 * width, 8 * width)
        self.bot2 = DoubleConv(8 * width, 8 * width)
        self.bot3 = DoubleConv(8 * width, 4 * width)
        self.up1 = Up(8 * width, 2 * width)
        self.sa4 = SelfAttention(2 * width)
        self.up2 = Up(4 * width, width)
        self.sa5 = SelfAttention(width)
        self.up3 = Up(2 * width, width)
        self.sa6 = SelfAttention(width)
        self.outc = nn.Conv2d(width, 3, kernel_size=1)
        self.label_emb = nn.Embedding(NUM_CLASSES, TIME_DIM)

    def embed(self, t: Tensor, labels: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the embedding of times and labels, (B, 256); the arguments are those of `forward`."""
        label_emb = self.label_emb(labels)
        return time_embedding(t) + (label_emb if keep is None else label_emb * keep[:, None])

    def encode(self, x: Tensor, emb: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the maps on the way down, of 28, 14, 7 and 3 pixels per side; the last is that of the bottleneck."""
        x1 = self.inc(x)
        x2 = self.sa1(self.down1(x1, emb))
        x3 = self.sa2(self.down2(x2, emb))
        x4 = self.sa3(self.down3(x3, emb))
        return x1, x2, x3, self.bot3(self.bot2(self.bot1(x4)))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the predicted noise or velocity, (B, 3, 28, 28) float32.

        Args:
            x, t: x_t, (B, 3, 28, 28) floating point, and its times, (B,) int64 in 0..T-1.
            labels: (B,) int64 digits.
            keep: (B,) bool, False where the label is dropped, for the unconditional branch; None keeps all labels.
        """
        emb = self.embed(t, labels, keep)
        x1, x2, x3, x4 = self.encode(x, emb)
        x = self.sa4(self.up1(x4, x3, emb))
        x = self.sa5(self.up2(x, x2, emb))
        x = self.sa6(self.up3(x, x1, emb))
        return self.outc(x).float()
