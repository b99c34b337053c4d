"""Precision, memory format and released weights on a GPU, beside a CPU."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from common.checkpoint import RELEASED
from common.device import allow_tf32, autocast, describe_machine, place, select_device
from dann.predict import load_network, predict
from diffusion import inference as diffusion_inference
from diffusion.pipeline import STANDARD, Pipeline, sample
from diffusion.schedule import make_schedule
from diffusion.unet import ConditionalUNet, DoubleConv
from gan import inference as gan_inference

CPU = torch.device("cpu")


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_fp32_is_exact_and_tf32_need_not_be(precision, device, say):
    allow_tf32(True)
    select_device(device.type)
    if precision == "tf32":
        allow_tf32(True)
    a, b = torch.randn(2, 512, 512, device=device)
    x, kernel = torch.randn(8, 64, 28, 28, device=device), torch.randn(64, 64, 3, 3, device=device)
    last = x.to(memory_format=torch.channels_last), kernel.to(memory_format=torch.channels_last)
    exact = F.conv2d(x.cpu().double(), kernel.cpu().double(), padding=1).to(device)
    errors = {"matmul": relative(a @ b, a.double() @ b.double()),
              "convolution": relative(F.conv2d(x, kernel, padding=1), exact),
              "convolution in channels_last": relative(F.conv2d(*last, padding=1), exact)}
    text = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    say(f"{precision}: {text}")
    assert max(errors.values()) <= (1e-5 if precision == "fp32" else 1e-2), text


@pytest.fixture
def unet(device):
    torch.manual_seed(0)
    return place(ConditionalUNet(32), device).eval()


def test_the_unet_agrees_with_that_of_a_cpu_and_so_do_its_gradients(unet, device, say):
    x, t = torch.randn(6, 3, 28, 28), torch.tensor([0, 1, 100, 400, 800, 999])
    labels, keep = torch.arange(6), torch.arange(6) % 3 > 0
    results = {}
    for on in (CPU, device):
        unet.to(on).zero_grad()
        output = unet(x.to(on), t.to(on), labels.to(on), keep.to(on))
        output.square().mean().backward()
        results[on.type] = output.detach().cpu(), torch.cat([p.grad.cpu().flatten() for p in unet.parameters()])
    pairs = zip(results[device.type], results["cpu"], strict=True)
    errors = [relative(found, exact.double()) for found, exact in pairs]
    say(f"U-Net against a CPU: output {errors[0]:.1e}, gradient {errors[1]:.1e}")
    assert errors[0] <= 1e-4 and errors[1] <= 1e-3, errors


def test_in_bf16_maps_stay_bf16_and_channels_last(unet, device):
    if device.type == "cpu":
        pytest.skip("a CPU has PyTorch's own layers")
    wrong, seen = [], []

    def look(what):
        def hook(module, inputs, output=None):
            x = inputs[0] if output is None else output
            seen.append(what)
            if x.dtype != torch.bfloat16 or not x.is_contiguous(memory_format=torch.channels_last):
                wrong.append(f"{what}: {x.dtype}, {tuple(x.shape)}, strides {x.stride()}")
        return hook

    first = next(module for module in unet.modules() if isinstance(module, nn.Conv2d))  # its input are the images
    for name, module in unet.named_modules():
        if isinstance(module, nn.Conv2d) and module is not first:
            module.register_forward_pre_hook(look(f"input of {name}"))
        if isinstance(module, nn.GroupNorm | DoubleConv):
            module.register_forward_hook(look(f"output of {name}"))
    x, t = torch.randn(4, 3, 28, 28, device=device), torch.tensor([0, 9, 500, 999], device=device)
    with autocast(device, torch.bfloat16):
        output = unet(x, t, torch.arange(4, device=device))
    assert output.dtype == torch.float32
    assert len(seen) > 40
    assert not wrong, "\n".join(wrong)


def test_sampling_leaves_no_autocast_on(unet, device):
    schedule = make_schedule("cosine").to(device)
    pipeline = Pipeline(unet, schedule, {"width": 32, "prediction": "velocity", "schedule": "cosine"})
    states = sample(pipeline, STANDARD._replace(steps=6), 0, [(3, 1), (5, 1)], torch.bfloat16)
    for state in states:
        assert not torch.is_autocast_enabled(device.type), f"on after t = {state.t}"
        assert state.x.isfinite().all()
    assert not torch.is_autocast_enabled(device.type)


FACES, DIGITS = ["--grid", "8", "--model"], ["--grid", "--digits", "0,1,2,3,4,5,6,7", "--per-digit", "1"]
# Flags on both devices, more on the GPU, the released file, and by how many of 255 levels pixels may differ on average.
# On a CPU, bf16 changes the digits by 0.2 levels. Faces are in TF32, unless it is switched off.
PICTURES = {
    "dcgan-fp32": (gan_inference, [*FACES, "dcgan"], [], "dcgan.pt", 0.1),
    "sagan-fp32": (gan_inference, [*FACES, "sagan"], [], "sagan.pt", 0.1),
    "dcgan-tf32": (gan_inference, [*FACES, "dcgan"], [], "dcgan.pt", 0.5),
    "sagan-tf32": (gan_inference, [*FACES, "sagan"], [], "sagan.pt", 0.5),
    "digits-fp32": (diffusion_inference, DIGITS, ["--precision", "fp32"], "diffusion-distilled.pt", 0.1),
    "digits-bf16": (diffusion_inference, DIGITS, ["--precision", "bf16"], "diffusion-distilled.pt", 2),
}


def released(name: str):
    if not (RELEASED / name).exists():
        pytest.skip(f"weights/{name} is not here")
    return RELEASED / name


@pytest.mark.parametrize("name", PICTURES)
def test_released_weights_draw_what_they_draw_on_a_cpu(name, device, tmp_path, say, monkeypatch):
    command, flags, of_gpu, weights, tolerance = PICTURES[name]
    released(weights)
    if name.endswith("-fp32") and command is gan_inference:
        monkeypatch.setattr(command, "allow_tf32", lambda allowed: None)
    pixels = []
    for on, more in ((device, of_gpu), (CPU, ["--precision", "fp32"] if of_gpu else [])):
        path = tmp_path / f"{len(pixels)}.png"
        assert command.main([str(path), "--device", on.type, *flags, *more]) == 0
        with Image.open(path) as picture:
            pixels.append(np.asarray(picture, np.float64))
    difference = np.abs(pixels[0] - pixels[1])
    text = f"{name}: pixels differ by {difference.mean():.3f} levels on average, at most {difference.max():.0f}"
    say(text)
    assert pixels[0].std() > 20
    assert difference.mean() <= tolerance, text


@pytest.mark.parametrize("target", ["svhn", "usps"])
def test_released_classifiers_predict_what_they_predict_on_a_cpu(target, device, say):
    path = released(f"dann-mnistm-{target}.pt")
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 3, 28, 28), np.uint8))
    results = []
    for on in (device, CPU):
        model, _ = load_network(path, on)
        results.append([torch.as_tensor(x).cpu() for x in predict(model, images, on)])
    error = relative(results[0][0], results[1][0].double())
    same = (results[0][1].argmax(1) == results[1][1].argmax(1)).float().mean().item()
    say(f"{target}: first result differs by {error:.1e}, {same:.0%} of the digits agree")
    assert error <= 1e-4 and same >= 0.98, f"{error:.1e}, {same:.2f}"


def test_a_cpu_is_described_as_one_although_a_gpu_is_there(device):
    text = describe_machine(CPU)
    assert "core" in text
    if device.type == "cuda":
        assert torch.cuda.get_device_name(device) not in text
        assert describe_machine(device) == torch.cuda.get_device_name(device)
