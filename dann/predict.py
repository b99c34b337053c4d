"""Features and logits of uint8 images from a trained DANN, in float32 and eval mode."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.checkpoint import load_into, load_weights
from common.device import place
from dann.inputs import network_input
from dann.networks import DANN, KIND

BATCH = 1000  # images per forward pass


def load_network(path: Path, device: torch.device) -> tuple[DANN, dict[str, Any]]:
    """Return a network on the device, and its model_args: source, target, mode and recipe.

    Raises UserError if the file is missing, damaged, or not a checkpoint of DANN.
    """
    model_args, weights = load_weights(path, KIND)
    model = DANN()
    load_into(model, weights, path)
    return place(model, device), model_args


@torch.no_grad()
def predict(model: DANN, images: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return features (N, 768) and class logits (N, 10), both float32 on the CPU, of uint8 images (N, 3, 28, 28).

    The network is on `device`, and is left in eval mode.
    """
    model.eval()
    features, logits = [], []
    for batch in images.split(BATCH):
        features.append(model.features(network_input(batch.to(device))))
        logits.append(model.classifier(features[-1]))
    return torch.cat(features).cpu(), torch.cat(logits).cpu()
