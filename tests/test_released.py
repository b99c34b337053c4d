"""The released weights generate and predict what they always did; tests/golden/ holds what they gave at first.

On the processor that the golden files come from, every byte must be equal. Another one may round differently.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.checkpoint import RELEASED
from common.data.folder import load_digits
from common.device import describe_machine
from dann.predict import load_network, predict
from diffusion import inference as diffusion_inference
from gan import inference as gan_inference

GOLDEN = Path(__file__).parent / "golden"
RECORD = json.loads((GOLDEN / "released.json").read_text())
DIGITS = ["--grid", "--per-digit", "4", "--precision", "fp32", "--device", "cpu"]
COMMANDS = {
    "dcgan": (gan_inference.main, ["--model", "dcgan", "--grid", "8", "--device", "cpu"]),
    "sagan": (gan_inference.main, ["--model", "sagan", "--grid", "8", "--device", "cpu"]),
    "diffusion-distilled": (diffusion_inference.main, [*DIGITS, "--digits", "3,5"]),
    "diffusion": (diffusion_inference.main, [*DIGITS, "--digits", "2,7", "--weights", str(RELEASED / "diffusion.pt")]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_pictures(name, tmp_path):
    main, flags = COMMANDS[name]
    path = tmp_path / f"{name}.png"
    assert main([str(path), *flags]) == 0
    got, expected = path.read_bytes(), (GOLDEN / path.name).read_bytes()
    if describe_machine(torch.device("cpu")) == RECORD["processor"]:
        assert hashlib.sha256(got).hexdigest() == hashlib.sha256(expected).hexdigest()
    with Image.open(path) as new, Image.open(GOLDEN / path.name) as old:
        difference = np.abs(np.asarray(new, np.int16) - np.asarray(old, np.int16))
    assert difference.max() <= 8 and difference.mean() < 0.1


@pytest.mark.parametrize("target", ["svhn", "usps"])
def test_predictions(target):
    cpu, name = torch.device("cpu"), f"dann-mnistm-{target}"
    model, _ = load_network(RELEASED / f"{name}.pt", cpu)
    images = load_digits("builtin", target, "test").images[:100]
    digits = predict(model, images, cpu)[1].argmax(1)
    assert "".join(map(str, digits.tolist())) == RECORD[name]
