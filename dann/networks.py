"""The report's DANN: a feature extractor, a digit classifier, and a domain discriminator behind a GRL."""

from torch import Tensor, nn

from dann.grl import grad_reverse

KIND = "dann"


class DANN(nn.Module):
    """Digit and domain logits from shared features (Ganin et al. 2016, JMLR 17(59), fig. 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.feature = nn.Sequential(
            nn.Conv2d(3, 32, 5), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 48, 5), nn.BatchNorm2d(48), nn.Dropout2d(0.5), nn.ReLU(), nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(768, 384), nn.BatchNorm1d(384), nn.ReLU(),
            nn.Linear(384, 192), nn.BatchNorm1d(192), nn.ReLU(),
            nn.Linear(192, 10),
        )
        self.discriminator = nn.Sequential(
            nn.Linear(768, 384), nn.BatchNorm1d(384), nn.ReLU(),
            nn.Linear(384, 2),
        )

    def features(self, x: Tensor) -> Tensor:
        """Map (B, 3, 28, 28) float32 in [-1, 1] to (B, 768)."""
        return self.feature(x).flatten(1)

    def forward(self, x: Tensor, coeff: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return (B, 10) class and (B, 2) domain logits; the domain's gradient into the features is reversed.

        Args:
            x: (B, 3, 28, 28) float32 in [-1, 1].
            coeff: the factor of the reversed gradient, a float or 0-d.
        """
        features = self.features(x)
        return self.classifier(features), self.discriminator(grad_reverse(features, coeff))
