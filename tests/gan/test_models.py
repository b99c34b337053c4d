"""The four networks: names, shapes and order as in the golden files, totals, behaviour."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from gan import dcgan, sagan
from gan.models import build_discriminator, build_generator

GOLDEN = Path(__file__).parent / "golden"
BUILD = {"generator": build_generator, "discriminator": build_discriminator}
TOTALS = {("dcgan", "generator"): (3_576_704, 13), ("dcgan", "discriminator"): (2_765_568, 11),
          ("sagan", "generator"): (3_832_885, 32), ("sagan", "discriminator"): (3_175_299, 24)}
CASES = [pytest.param(*case, id="-".join(case)) for case in TOTALS]


def parameter_lines(network: nn.Module) -> str:
    return "".join(f"{name} {tuple(value.shape)}\n" for name, value in network.named_parameters())


@pytest.mark.parametrize("model, network", CASES)
def test_architecture_is_the_golden_one(model, network):
    built = BUILD[network]({"model": model, "width": 64})
    assert parameter_lines(built) == (GOLDEN / f"{model}_{network}.txt").read_text()
    parameters = list(built.parameters())
    assert (sum(p.numel() for p in parameters), len(parameters)) == TOTALS[model, network]


def layer_kinds(network: nn.Module) -> list[str]:
    kinds = (type(m).__name__.removeprefix("Parametrized") for m in network.modules())
    short = {"ConvTranspose2d": "T", "Conv2d": "C", "BatchNorm2d": "B", "ReLU": "r", "LeakyReLU": "l",
             "Tanh": "tanh", "Sigmoid": "sigmoid", "SelfAttention": "A"}
    return " ".join(short[kind] for kind in kinds if kind in short)


def test_order_of_layers():
    assert layer_kinds(dcgan.Generator()) == "T B r T B r T B r T B r T tanh"
    assert layer_kinds(dcgan.Discriminator()) == "C l C B l C B l C B l C sigmoid"
    attention = "A C C C"
    assert layer_kinds(sagan.Generator()) == f"T B r T B r T B r {attention} T B r {attention} T tanh"
    assert layer_kinds(sagan.Discriminator()) == f"C l C l C l {attention} C l {attention} C"


@pytest.mark.parametrize("module, leak", [(dcgan, 0.2), (sagan, 0.1)])
def test_leaks(module, leak):
    leaks = {m.negative_slope for m in module.Discriminator(width=8).modules() if isinstance(m, nn.LeakyReLU)}
    assert leaks == {leak}


@pytest.mark.parametrize("network", [sagan.Generator(width=8), sagan.Discriminator(width=8)])
def test_spectral_norm_is_on_l1_to_l4_and_nowhere_else(network):
    normed = {name for name, module in network.named_modules() if is_parametrized(module)}
    assert normed == {f"l{i}.0" for i in range(1, 5)}


@pytest.mark.parametrize("network", BUILD)
def test_without_attention_all_other_layers_stay(network):
    golden = (GOLDEN / f"sagan_{network}.txt").read_text().splitlines(keepends=True)
    bare = BUILD[network]({"model": "sagan", "width": 64, "attention": False})
    assert parameter_lines(bare) == "".join(line for line in golden if not line.startswith("attn"))


def test_attention_runs_after_l3_and_l4():
    torch.manual_seed(0)
    order = []
    for network, x in ((sagan.Generator(width=8), torch.randn(2, 128)),
                       (sagan.Discriminator(width=8), torch.randn(2, 3, 64, 64))):
        for name, child in network.named_children():
            child.register_forward_hook(lambda *_, name=name: order.append(name))
        network(x)
    assert order == ["l1", "l2", "l3", "attn1", "l4", "attn2", "last"] * 2


def test_dcgan_starts_as_the_paper_says():
    torch.manual_seed(0)
    for network in (dcgan.Generator(), dcgan.Discriminator()):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            elif isinstance(module, nn.BatchNorm2d):
                assert module.weight.mean().item() == pytest.approx(1, abs=0.01)
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.4)
                assert module.bias.count_nonzero() == 0


@pytest.mark.parametrize("model, more", [("dcgan", {}), ("sagan", {}), ("sagan", {"attention": False})])
def test_shapes_and_ranges(model, more):
    torch.manual_seed(0)
    model_args = {"model": model, "width": 8, **more}
    generator, discriminator = build_generator(model_args), build_discriminator(model_args)
    x = generator(torch.randn(3, generator.z_dim))
    assert x.shape == (3, 3, 64, 64) and x.dtype == torch.float32 and x.abs().max() <= 1
    logits = discriminator(x)
    assert logits.shape == (3,) and logits.dtype == torch.float32


def test_dcgan_probability_is_the_whole_of_main():
    torch.manual_seed(0)
    discriminator, x = dcgan.Discriminator(width=8).eval(), torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(discriminator.probability(x), discriminator.main(x).flatten())
    torch.testing.assert_close(discriminator.probability(x), discriminator(x).sigmoid())


def test_attention_is_the_papers_formula():
    torch.manual_seed(0)
    layer, x = sagan.SelfAttention(16), torch.randn(2, 16, 5, 4)
    assert torch.equal(layer(x), x)  # gamma starts at 0
    nn.init.constant_(layer.gamma, 0.7)
    query, key, value = (conv(x).flatten(2) for conv in (layer.query_conv, layer.key_conv, layer.value_conv))
    scores = torch.einsum("bci,bcj->bij", query, key)  # of position i for position j
    weights = scores.exp() / scores.exp().sum(dim=2, keepdim=True)
    expected = x + 0.7 * torch.einsum("bij,bcj->bci", weights, value).view_as(x)
    torch.testing.assert_close(layer(x), expected)
