"""The digit classifier that scores generated digits. It is trained on real digits only, except for `--cas`."""

from pathlib import Path

import torch
from torch import Tensor, nn

from common import checkpoint
from common.batches import Batches
from common.data.folder import ImageSet, fingerprint
from common.device import autocast, place
from common.errors import UserError
from common.images import to_float

KIND = "digit-classifier"
EPOCHS, MIN_STEPS, BATCH_SIZE, MAX_LR = 3, 300, 256, 4e-3
CAS_BATCH_SIZE = 32  # of 1000 images, MIN_STEPS are 9 epochs
MIN_ACCURACY = 0.9  # on real digits; scores by a classifier that cannot read them would mean nothing


class DigitClassifier(nn.Module):
    """A small convolutional network. The Frechet distance uses its 128 last hidden features."""

    def __init__(self) -> None:
        super().__init__()

        def block(i: int, o: int) -> list[nn.Module]:
            return [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]

        self.body = nn.Sequential(*block(3, 32), nn.MaxPool2d(2), *block(32, 64), nn.MaxPool2d(2), *block(64, 128),
                                  *block(128, 128), nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (B, 3, 28, 28) in [-1, 1] -> features (B, 128), class_logits (B, 10), float32."""
        features = self.body(x).float()
        return features, self.head(features)


@torch.inference_mode()
def predict(model: DigitClassifier, images: Tensor, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return features (N, 128) float32 and digits (N,) int64, both on the CPU, of uint8 images (N, 3, 28, 28)."""
    with autocast(device, dtype):
        outputs = [model(to_float(batch.to(device))) for batch in images.split(500)]
    features, class_logits = (torch.cat(parts).cpu() for parts in zip(*outputs, strict=True))
    return features, class_logits.argmax(1)


def train(digits: ImageSet, device: torch.device, dtype: torch.dtype, batch_size: int = BATCH_SIZE) -> DigitClassifier:
    """Train with random shifts of one pixel and a one-cycle rate: one minute on two cores for 48,000 digits."""
    torch.manual_seed(0)
    model = place(DigitClassifier(), device)
    images, labels = digits.images.to(device), digits.labels.to(device)
    batches = Batches(len(images), min(batch_size, len(images)), 0, device)
    num_steps = max(MIN_STEPS, EPOCHS * len(images) // batches.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LR, total_steps=num_steps, pct_start=0.2)
    for _ in range(num_steps):
        index = batches.next()
        shift = torch.randint(-1, 2, (2,)).tolist()
        with autocast(device, dtype):
            _, class_logits = model(to_float(images[index].roll(shift, dims=(2, 3))))
        loss = nn.functional.cross_entropy(class_logits, labels[index], label_smoothing=0.05)
        if not loss.isfinite():
            raise UserError("the digit classifier diverged: check the images, or use --precision fp32")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        one_cycle.step()
    return model.eval()


def load_or_train(path: Path | None, domain: str, digits: ImageSet, device: torch.device,
                  dtype: torch.dtype) -> DigitClassifier:
    """Load the classifier of a training set, `digits` of `domain`; if there is none, train and store it.

    `path` is where it is stored, or None for a name under runs/ that says what it was trained on. Raises UserError for
    a classifier that was trained on other digits.
    """
    data = fingerprint(digits)
    path = path or Path("runs", f"classifier-{domain}-{data}.pt")
    if path.exists():
        model_args, weights = checkpoint.load_weights(path, KIND)
        if model_args.get("data") != data:
            raise UserError(f"{path} was trained on other digits than those of {domain} here: name another "
                            "--classifier")
        model = DigitClassifier()
        checkpoint.load_into(model, weights, path)
        return place(model, device).eval()
    print(f"training the digit classifier once; it will be stored as {path}", flush=True)
    model = train(digits, device, dtype)
    checkpoint.save(path, {"kind": KIND, "model_args": {"data": data}, "weights": model.state_dict()})
    return model


def classify_real(model: DigitClassifier, digits: ImageSet, device: torch.device,
              dtype: torch.dtype) -> tuple[Tensor, float]:
    """Return features (N, 128) of real digits, and the share that is read right; UserError below MIN_ACCURACY."""
    features, predicted = predict(model, digits.images, device, dtype)
    accuracy = float((predicted == digits.labels).float().mean())
    if accuracy < MIN_ACCURACY:
        raise UserError(f"the digit classifier reads {accuracy:.1%} of the real validation digits, expected at least "
                        f"{MIN_ACCURACY:.0%}, so its scores would mean nothing: correct the labels, or use more digits")
    return features, accuracy


def classification_accuracy(fake: ImageSet, real: ImageSet, val: ImageSet, device: torch.device,
                            dtype: torch.dtype) -> dict[str, float]:
    """Train a classifier on generated digits, and one on real digits; let both read other real digits.

    This is the classification accuracy score (Ravuri & Vinyals 2019, arXiv:1905.10887): bad, mislabelled or uniform
    digits teach little. Both trainings use equally many digits, chosen at random, and equally many steps; 1000 digits
    take 40 s on one core.

    Args:
        fake: generated digits, labelled as they were asked for.
        real, val: real digits to train on and to read.

    Returns:
        `cas` and `cas_real`, the shares of `val` that are read right after training on `fake` and on `real`, 0..1.
    """
    count, scores = min(len(fake.images), len(real.images)), {}
    for name, digits in (("cas", fake), ("cas_real", real)):
        _, predicted = predict(train(digits.sample(count), device, dtype, CAS_BATCH_SIZE), val.images, device, dtype)
        scores[name] = float((predicted == val.labels).float().mean())
    return scores
