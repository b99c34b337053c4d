"""Generating digits: names, bytes, batches, and continuing a stopped command."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from common import checkpoint
from common.errors import UserError
from diffusion import inference
from diffusion.pipeline import Setting, load_pipeline, sample
from diffusion.unet import KIND, ConditionalUNet


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    checkpoint.save(path, {"kind": KIND, "model_args": {"width": 8, "prediction": "velocity", "schedule": "cosine"},
                           "weights": ConditionalUNet(8).state_dict()})
    return path


def generate(out, trained, *more):
    return inference.main([str(out), "--weights", str(trained), "--steps", "3", "--per-digit", "2", *more])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def generated(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("generated") / "out"
    assert generate(out, trained) == 0
    return contents(out)


def test_names_sizes_and_modes(generated, tmp_path):
    assert sorted(generated) == [f"{digit}_{number:03d}.png" for digit in range(10) for number in (1, 2)]
    (tmp_path / "x.png").write_bytes(generated["7_002.png"])
    with Image.open(tmp_path / "x.png") as image:
        assert (image.size, image.mode, image.format) == ((28, 28), "RGB", "PNG")


def test_same_bytes_again_and_others_of_another_seed(generated, trained, tmp_path):
    generate(tmp_path / "again", trained)
    assert contents(tmp_path / "again") == generated
    generate(tmp_path / "other", trained, "--seed", "1")
    assert not set(contents(tmp_path / "other").values()) & set(generated.values())


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm-solver++"])
def test_autocast_is_on_for_the_network_alone(sampler, trained):
    """A generator that holds it would leave it on for its caller between two states."""
    cpu, inside = torch.device("cpu"), []
    pipeline = load_pipeline(trained, cpu)
    pipeline.model.register_forward_hook(lambda *_: inside.append(torch.is_autocast_enabled("cpu")))
    states = sample(pipeline, Setting(sampler, 3, 1.0), 0, [(0, 1)], torch.bfloat16)
    for _, state in zip(range(3), states, strict=False):
        assert not torch.is_autocast_enabled("cpu") and state.x.dtype == torch.float32
    assert inside and all(inside)


class Replayed:
    """Like a CUDA graph: takes tensors, and writes every result of one key to the same place."""

    made = 0

    def __init__(self, function, device):
        self.function, self.outputs = function, {}
        Replayed.made += 1

    def __call__(self, *inputs, **switches):
        with torch.enable_grad():
            output = self.function(*inputs, **switches)
        assert not output.requires_grad
        key = (*((x.shape, x.dtype) for x in inputs), *sorted(switches.items(), key=str))
        return self.outputs.setdefault(key, torch.empty_like(output)).copy_(output)


@pytest.mark.parametrize("setting", [Setting("ddpm", 0, 1.0), Setting("ddim", 5, 2.0), Setting("dpm-solver++", 5, 2.0)])
def test_states_last_though_a_gpu_overwrites_what_it_replays(setting, trained, monkeypatch):
    def states(pipeline):
        chain = sample(pipeline, setting, 0, [(0, 1), (7, 3)], torch.float32)
        return [state.x for _, state in zip(range(6), chain, strict=False)]

    cpu, other = torch.device("cpu"), Setting("ddim", 1, 3.0)
    expected = states(load_pipeline(trained, cpu))
    monkeypatch.setattr("diffusion.pipeline.Captured", Replayed)
    monkeypatch.setattr(Replayed, "made", 0)
    pipeline = load_pipeline(trained, cpu)
    first = states(pipeline)
    *_, state = sample(pipeline, other, 0, [(0, 1), (7, 3)], torch.float32)
    second = states(pipeline)
    assert Replayed.made == 1  # all samples of a pipeline share its graphs
    for x, again, wanted in zip(first, second, expected, strict=True):
        assert torch.equal(x, wanted) and torch.equal(again, wanted)
    assert not torch.equal(state.x, expected[-1])


def test_a_copy_with_other_weights_has_graphs_of_its_own(trained):
    pipeline = load_pipeline(trained, torch.device("cpu"))
    assert pipeline.captured is pipeline.captured
    other = dataclasses.replace(pipeline, model=ConditionalUNet(8).eval())
    args = torch.randn(1, 3, 28, 28), torch.tensor([500]), torch.tensor([3])
    switches = {"guidance": 1.0, "dtype": torch.float32}
    assert torch.equal(other.captured(*args, **switches), other.denoise(*args, 1.0))
    assert not torch.equal(other.captured(*args, **switches), pipeline.captured(*args, **switches))


@pytest.mark.parametrize("flags", [("holiday.png", "--grid"), ("holiday.png", "--process"), ("holiday.gif", "--gif")])
def test_a_photograph_is_kept(flags, trained, tmp_path):
    path = tmp_path / flags[0]
    path.write_bytes(b"a photograph")
    with pytest.raises(UserError, match=f"{flags[0]} exists already: name another file, or replace it with --force"):
        generate(path, "none.pt", flags[1])  # early: before the weights are missed
    assert path.read_bytes() == b"a photograph"


def test_other_settings_do_not_mix(trained, tmp_path):
    generate(tmp_path / "out", trained)
    with pytest.raises(UserError, match="these settings"):
        generate(tmp_path / "out", trained, "--guidance", "3")


def test_grid_and_reverse_process(trained, tmp_path):
    (tmp_path / "grid.png").touch()
    assert generate(tmp_path / "grid.png", trained, "--grid", "--force") == 0
    assert generate(tmp_path / "process.png", trained, "--process") == 0
    with Image.open(tmp_path / "grid.png") as image:
        assert image.size == (2 * (2 * 30 + 2), 2 * (10 * 30 + 2))
    with Image.open(tmp_path / "process.png") as image:
        assert image.size == (4 * (6 * 30 + 2), 4 * 32)


@pytest.mark.parametrize("flags", [["--sampler", "ddim"], ["--guidance", "3"]])
def test_another_sampler_or_guidance_generates_other_images(generated, trained, tmp_path, flags):
    generate(tmp_path / "other", trained, "--digits", "7", *flags)
    other = contents(tmp_path / "other")
    assert sorted(other) == ["7_001.png", "7_002.png"]
    assert not set(other.values()) & set(generated.values())


def test_chosen_digits_are_the_same_images(generated, trained, tmp_path):
    generate(tmp_path / "some", trained, "--digits", "7,3")
    assert contents(tmp_path / "some") == {name: generated[name] for name in generated if name[0] in "37"}


def test_gif_goes_from_noise_to_the_grid(trained, tmp_path):
    generate(tmp_path / "denoising.gif", trained, "--gif", "--digits", "3,5")
    generate(tmp_path / "grid.png", trained, "--grid", "--digits", "3,5")
    with Image.open(tmp_path / "denoising.gif") as gif, Image.open(tmp_path / "grid.png") as end:
        assert gif.n_frames == 4
        assert gif.size == end.size == (2 * (2 * 30 + 2),) * 2
        first = np.asarray(gif.convert("RGB"), int)
        gif.seek(3)
        last, end = np.asarray(gif.convert("RGB"), int), np.asarray(end, int)
        assert np.abs(last - end).mean() < 12 < np.abs(first - end).mean()  # the palette has only 256 colours


@pytest.mark.parametrize(("more", "message"), [
    (["--digits", ""], "different digits"),
    (["--gif"], r"ends in \.gif"),
    (["--sampler", "ddpm"], "--steps: ddpm always takes 1000"),
])
def test_mistakes_write_nothing(trained, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        generate(tmp_path / "out", trained, *more)
    assert not (tmp_path / "out").exists()
