"""SAGAN (Zhang et al. 2019, arXiv:1805.08318) for 64x64 RGB images.

At width 64 the generator has 3,832,885 parameters and the discriminator 3,175,299. Both have spectral normalisation
(Miyato et al. 2018, arXiv:1802.05957) on l1 to l4, and two attention layers. Unlike the paper's, they have DCGAN's
shape instead of residual blocks, are unconditional, and keep PyTorch's default initialisation. Values keep all C
channels, without the paper's last 1x1 convolution.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

KEY_DIVISOR = 8  # queries and keys have C / 8 channels (SAGAN sec. 3)


class SelfAttention(nn.Module):
    """Let every position attend to all others: x + gamma * attention(x) (SAGAN eq. 1-3).

    The map has `channels`, a multiple of 8.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_conv = nn.Conv2d(channels, channels // KEY_DIVISOR, kernel_size=1)
        self.key_conv = nn.Conv2d(channels, channels // KEY_DIVISOR, kernel_size=1)
        self.value_conv = nn.Conv2d(channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(1))  # training starts with local features alone (SAGAN sec. 3)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, H, W). The softmax runs in float32 at any precision."""
        channels, size = x.shape[1], x.shape[-2:]

        def positions(conv: nn.Conv2d) -> Tensor:  # (B, 1 head, HW, C)
            features = conv(x).flatten(2).transpose(1, 2)
            # The fused kernel, 3 times as fast, needs one length for all three; zeros do not change q.k.
            return F.pad(features, (0, channels - features.shape[2])).unsqueeze(1)

        out = F.scaled_dot_product_attention(positions(self.query_conv), positions(self.key_conv),
                                             positions(self.value_conv), scale=1.0)
        return x + self.gamma * out.squeeze(1).transpose(1, 2).unflatten(2, size)


class Generator(nn.Module):
    """Generate images from noise of `z_dim` numbers each.

    Args:
        width: channels of the last hidden map, a multiple of 8; 64 gives the network of hw2_report.md.
        attention: False leaves out both attention layers.
    """

    z_dim = 128

    def __init__(self, width: int = 64, attention: bool = True) -> None:
        super().__init__()

        def block(in_channels: int, out_channels: int, stride: int, padding: int) -> nn.Sequential:
            return nn.Sequential(
                spectral_norm(nn.ConvTranspose2d(in_channels, out_channels, 4, stride, padding)),
                nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))

        self.l1 = block(self.z_dim, 8 * width, 1, 0)
        self.l2 = block(8 * width, 4 * width, 2, 1)
        self.l3 = block(4 * width, 2 * width, 2, 1)
        self.attn1 = SelfAttention(2 * width) if attention else nn.Identity()
        self.l4 = block(2 * width, width, 2, 1)
        self.attn2 = SelfAttention(width) if attention else nn.Identity()
        self.last = nn.Sequential(nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        """z: (B, z_dim) -> (B, 3, 64, 64) float32 in [-1, 1]."""
        x = self.l3(self.l2(self.l1(z[:, :, None, None])))
        x = self.l4(self.attn1(x))
        return self.last(self.attn2(x)).float()


class Discriminator(nn.Module):
    """Tell real images from generated ones.

    Args:
        width: channels of the first map, a multiple of 8; 64 gives the network of hw2_report.md.
        attention: False leaves out both attention layers.
    """

    def __init__(self, width: int = 64, attention: bool = True) -> None:
        super().__init__()

        def block(in_channels: int, out_channels: int) -> nn.Sequential:
            return nn.Sequential(spectral_norm(nn.Conv2d(in_channels, out_channels, 4, 2, 1)),
                                 nn.LeakyReLU(0.1, inplace=True))

        self.l1 = block(3, width)
        self.l2 = block(width, 2 * width)
        self.l3 = block(2 * width, 4 * width)
        self.attn1 = SelfAttention(4 * width) if attention else nn.Identity()
        self.l4 = block(4 * width, 8 * width)
        self.attn2 = SelfAttention(8 * width) if attention else nn.Identity()
        self.last = nn.Sequential(nn.Conv2d(8 * width, 1, 4, 1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, 64, 64) in [-1, 1] -> (B,) float32 logits."""
        x = self.attn1(self.l3(self.l2(self.l1(x))))
        return self.last(self.attn2(self.l4(x))).flatten().float()
