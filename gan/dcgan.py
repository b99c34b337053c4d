"""DCGAN (Radford et al. 2016, arXiv:1511.06434) for 64x64 RGB images.

At width 64 the generator has 3,576,704 parameters and the discriminator 2,765,568. Convolutions have no bias: batch
normalisation, which follows all but the outermost ones, has its own.
"""

from torch import Tensor, nn


def init_weights(module: nn.Module) -> None:
    """Initialise convolution weights from N(0, 0.02) and batch normalisation scales from N(1, 0.02) (DCGAN sec. 4)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


class Generator(nn.Module):
    """Generate images from noise of `z_dim` numbers each.

    Args:
        width: channels of the last hidden map; 64 gives the network of hw2_report.md.
    """

    z_dim = 100

    def __init__(self, width: int = 64) -> None:
        super().__init__()

        def block(in_channels: int, out_channels: int, stride: int, padding: int) -> list[nn.Module]:
            return [nn.ConvTranspose2d(in_channels, out_channels, 4, stride, padding, bias=False),
                    nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]

        self.main = nn.Sequential(
            *block(self.z_dim, 8 * width, 1, 0),
            *block(8 * width, 4 * width, 2, 1),
            *block(4 * width, 2 * width, 2, 1),
            *block(2 * width, width, 2, 1),
            nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False),
            nn.Tanh(),
        )
        self.apply(init_weights)

    def forward(self, z: Tensor) -> Tensor:
        """z: (B, z_dim) -> (B, 3, 64, 64) float32 in [-1, 1]."""
        return self.main(z[:, :, None, None]).float()


class Discriminator(nn.Module):
    """Tell real images from generated ones.

    `main` ends with the paper's sigmoid, but `forward` stops before it: the losses take logits, which do not saturate.

    Args:
        width: channels of the first map; 64 gives the network of hw2_report.md.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()

        def block(in_channels: int, out_channels: int) -> list[nn.Module]:
            return [nn.Conv2d(in_channels, out_channels, 4, 2, 1, bias=False), nn.BatchNorm2d(out_channels),
                    nn.LeakyReLU(0.2, inplace=True)]

        self.main = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            *block(width, 2 * width),
            *block(2 * width, 4 * width),
            *block(4 * width, 8 * width),
            nn.Conv2d(8 * width, 1, 4, 1, 0, bias=False),
            nn.Sigmoid(),
        )
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, 64, 64) in [-1, 1] -> (B,) float32 logits."""
        return self.main[:-1](x).flatten().float()

    def probability(self, x: Tensor) -> Tensor:
        """x: (B, 3, 64, 64) in [-1, 1] -> (B,) float32 probability of being real, through all of `main`."""
        return self.main[-1](self(x))
