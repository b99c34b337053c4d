"""DANN: a feature extractor, a digit classifier, and a domain discriminator behind gradient reversal.

Ganin et al. 2016, JMLR 17(59), arXiv:1505.07818. The paper uses several networks; here all pairs of domains share one.
"""

from torch import Tensor, nn

from dann.grl import grad_reverse

KIND = "dann"  # of its checkpoints


class DANN(nn.Module):
    """Digit and domain logits from shared features (fig. 1).

    Images are (B, 3, 28, 28) float32, standardised one by one (mean 0, standard deviation 1), as
    `dann.inputs.network_input` prepares them. `dropout` is the share of feature channels that a training step leaves
    out.
    """

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.feature = nn.Sequential(  # ReLU after pooling gives the same numbers as before it, on a quarter as many
            nn.Conv2d(3, 32, 5), nn.BatchNorm2d(32), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(32, 48, 5), nn.BatchNorm2d(48), nn.Dropout2d(dropout), nn.MaxPool2d(2), nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Linear(768, 384), nn.BatchNorm1d(384), nn.ReLU(),
            nn.Linear(384, 192), nn.BatchNorm1d(192), nn.ReLU(),
            nn.Linear(192, 10),
        )
        self.discriminator = nn.Sequential(nn.Linear(768, 384), nn.BatchNorm1d(384), nn.ReLU(), nn.Linear(384, 2))

    def features(self, x: Tensor) -> Tensor:
        """Map images (B, 3, 28, 28) to features (B, 768)."""
        return self.feature(x).flatten(1)

    def forward(self, x: Tensor, coeff: Tensor | float | None) -> tuple[Tensor, Tensor | None]:
        """Map images to (B, 10) class logits and (B, 2) domain logits.

        The gradient of the domain logits reaches the features multiplied by -coeff, a float or 0-d tensor. If it is
        None, the discriminator is left out, and there are no domain logits.
        """
        features = self.features(x)
        domain_logits = None if coeff is None else self.discriminator(grad_reverse(features, coeff))
        return self.classifier(features), domain_logits
