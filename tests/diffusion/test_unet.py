"""The U-Net: its parameters, label dropout, and the fast attention."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffusion import layers, unet
from diffusion.attention import attend
from diffusion.unet import ConditionalUNet, DoubleConv, Up, time_embedding

GOLDEN = Path(__file__).parent / "golden" / "unet.txt"


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return ConditionalUNet(width=8).eval()


def test_parameters_match_the_golden_file():
    # To write the golden file again: python -c "from diffusion.unet import *; [print(n, *p.shape) for n, p in
    #   ConditionalUNet().named_parameters()]"
    model = ConditionalUNet()
    lines = [" ".join(map(str, (name, *p.shape))) for name, p in model.named_parameters()]
    assert lines == GOLDEN.read_text().splitlines()
    assert len(lines) == 183
    assert sum(p.numel() for p in model.parameters()) == 23_335_299


def test_printed_layers_match_hw2_report():
    text = str(ConditionalUNet())
    counts = {"Conv2d(": 33, "GroupNorm(1, ": 32, "MaxPool2d(kernel_size=2, stride=2": 3, "SelfAttention(": 6,
              "Upsample(scale_factor=2.0, mode='bilinear')": 3, "Upsample(scale_factor=2.5, mode='bilinear')": 3,
              "NonDynamicallyQuantizableLinear(": 6, "SiLU()": 6, "(label_emb): Embedding(10, 256)": 1}
    assert {line: text.count(line) for line in counts} == counts


def test_output_is_float32_of_the_input_shape(small):
    x = torch.randn(2, 3, 28, 28)
    with torch.autocast("cpu", torch.bfloat16):
        out = small(x, torch.tensor([0, 999]), torch.tensor([3, 4]))
    assert out.shape == x.shape
    assert out.dtype == torch.float32


def test_an_image_without_its_label_gets_the_unconditional_prediction(small):
    x, t, labels = torch.randn(3, 3, 28, 28), torch.tensor([10, 500, 900]), torch.tensor([1, 2, 3])
    mixed = small(x, t, labels, torch.tensor([True, False, True]))
    torch.testing.assert_close(mixed[[0, 2]], small(x, t, labels)[[0, 2]])
    torch.testing.assert_close(mixed[1], small(x, t, labels.flip(0), torch.tensor(3 * [False]))[1])
    assert not torch.allclose(mixed[1], small(x, t, labels)[1])


def test_a_residual_block_adds_its_input():
    block, x = DoubleConv(4, 4, residual=True), torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(block(x), F.gelu(x + block.double_conv(x)))


def test_the_skip_connection_comes_before_the_upsampled_map():
    up, inputs_of_conv = Up(8, 2), []
    up.conv.register_forward_pre_hook(lambda module, inputs: inputs_of_conv.append(inputs[0]))
    x, skip = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 7, 7)
    up(x, skip, torch.randn(2, 256))
    upsampled = F.interpolate(x, (7, 7), mode="bilinear", align_corners=True)
    assert torch.equal(inputs_of_conv[0], torch.cat([skip, upsampled], 1))


def test_time_and_label_both_matter(small):
    x, labels = torch.randn(1, 3, 28, 28), torch.tensor([3])
    out = small(x, torch.tensor([10]), labels)
    assert not torch.allclose(out, small(x, torch.tensor([600]), labels))
    assert not torch.allclose(out, small(x, torch.tensor([10]), labels + 1))


def test_time_embedding_is_that_of_the_paper():
    emb = time_embedding(torch.tensor([0, 7]))
    assert emb.shape == (2, 256)
    torch.testing.assert_close(emb[0], torch.cat([torch.zeros(128), torch.ones(128)]))
    expected = 7 / 10_000 ** (2 * 5 / 256)
    assert emb[1, 5].item() == pytest.approx(torch.tensor(expected).sin().item(), abs=1e-5)
    assert emb[1, 128 + 5].item() == pytest.approx(torch.tensor(expected).cos().item(), abs=1e-5)


def with_weights(layer, x):
    """Compute SelfAttention with the forward pass of `nn.MultiheadAttention`, which returns the attention map."""
    tokens = x.flatten(2).transpose(1, 2)
    normed = layer.ln(tokens)
    tokens = tokens + layer.mha(normed, normed, normed, need_weights=True)[0]
    tokens = tokens + layer.ff_self(tokens)
    return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


def test_attention_without_weights_equals_attention_with(small):
    x = torch.randn(2, 32, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(small.sa3(x), with_weights(small.sa3, x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [3, 14, 28])
def test_training_attention_in_bf16_agrees_with_float32_attention_with_weights(small, size):
    layer, count = small.sa4, 5
    torch.manual_seed(size)
    x, out_grad = torch.randn(2, count, 16, size, size)
    results = []
    for attention, enabled in ((with_weights, False), (type(layer).forward, True)):
        layer.zero_grad()
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = attention(layer, inputs)
        output.backward(out_grad.to(output.dtype))
        results.append([output, inputs.grad, *(p.grad for p in layer.mha.parameters())])
    for plain, fast in zip(*results, strict=True):
        assert (fast - plain).norm() < 0.02 * plain.norm()


def test_only_bf16_training_stores_the_attention_map():
    q, k, v = torch.randn(3, 2, 4, 9, 8, dtype=torch.bfloat16).requires_grad_()
    assert "StoredMapAttention" in attend(q, k, v).grad_fn.name()
    assert "StoredMapAttention" not in attend(q.float(), k.float(), v.float()).grad_fn.name()


def test_bf16_channels_last_agrees_with_float32(small):
    x, t, labels = torch.randn(4, 3, 28, 28), torch.randint(0, 1000, (4,)), torch.arange(4)
    with torch.no_grad():
        plain = small(x, t, labels)
        with torch.autocast("cpu", torch.bfloat16):
            fast = small(x.contiguous(memory_format=torch.channels_last), t, labels)
    assert (fast - plain).abs().max() < 0.05 * plain.std() + 0.02


def results(layer, x, *more):
    """Return the output of a layer, and the gradients of its input and parameters."""
    layer.zero_grad()
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    output = layer(x, *more)
    weights = torch.linspace(-1, 2, output.numel()).sin().view_as(output)
    (output * weights).sum().backward()
    grads = [x.grad, *(p.grad for p in layer.parameters())]
    x.grad = None
    return [output.detach(), *(g.clone() for g in grads if g is not None)]


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Choose the formulas of a GPU."""
    return lambda: monkeypatch.setattr(layers, "on_cpu", lambda x: False)


def norms(size):
    torch.manual_seed(size)
    both = [layers.GroupNorm(1, 24), layers.LayerNorm([size])]
    for layer in both:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return both, 3 * torch.randn(5, 24, size, size) + 1


@pytest.mark.parametrize("size", [28, 14, 7, 3])
def test_norms_of_a_gpu_equal_the_stock_ones(size, on_a_gpu):
    both, x = norms(size)
    expected = [results(layer, x) for layer in both]
    on_a_gpu()
    for layer, stock in zip(both, expected, strict=True):
        for got, wanted in zip(results(layer, x), stock, strict=True):
            assert (got - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize(("size", "factor"), [(3, 2.5), (7, 2.0), (14, 2.0)])
def test_upsampling_of_a_gpu_equals_the_stock_one(size, factor, on_a_gpu):
    layer = layers.Upsample(scale_factor=factor, mode="bilinear", align_corners=True)
    x = torch.randn(5, 24, size, size)
    expected = results(layer, x)
    on_a_gpu()
    for got, wanted in zip(results(layer, x), expected, strict=True):
        assert (got - wanted).norm() < 1e-5 * wanted.norm()


def test_the_network_of_a_gpu_equals_the_stock_one(small, on_a_gpu):
    more = torch.tensor([0, 500, 999]), torch.tensor([3, 4, 5]), torch.tensor([True, False, True])
    x, names = torch.randn(3, 3, 28, 28), list(small.state_dict())
    expected = results(small, x, *more)
    on_a_gpu()
    for got, wanted in zip(results(small, x, *more), expected, strict=True):
        assert (got - wanted).norm() < 1e-5 * wanted.norm() + 1e-7
    assert list(small.state_dict()) == names


def test_on_a_gpu_all_maps_stay_in_bf16_and_channels_last(small, on_a_gpu):
    x, t, labels = torch.randn(3, 3, 28, 28), torch.tensor([0, 500, 999]), torch.tensor([3, 4, 5])
    expected, maps = results(small, x, t, labels), []
    kinds = (nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.Upsample, DoubleConv, unet.Down, Up, unet.SelfAttention)
    hooks = [module.register_forward_hook(lambda module, inputs, output: maps.append(output))
             for module in small.modules() if isinstance(module, kinds)]
    on_a_gpu()
    with torch.autocast("cpu", torch.bfloat16):
        fast = results(small, x, t, labels)
    for hook in hooks:
        hook.remove()
    assert len(maps) == 33 + 32 + 12 + 3 + 28
    for x in maps:
        assert x.dtype == torch.bfloat16 and (x.movedim(1, -1) if x.ndim == 4 else x).is_contiguous()
    assert (fast[0] - expected[0]).norm() < 0.03 * expected[0].norm()


@pytest.mark.parametrize("size", [28, 3])
def test_norms_of_a_gpu_have_float32_statistics(size, on_a_gpu, monkeypatch):
    """The mean of many pixels far from 0 is lost in bf16."""
    def plain(*args, **values):
        assert not torch.is_autocast_enabled("cpu")  # that of a GPU would compute in float32
        return layer_norm(*args, **values)

    both, x = norms(size)
    layer_norm = F.layer_norm
    monkeypatch.setattr(F, "layer_norm", plain)
    on_a_gpu()
    for layer in both:
        x_bf16 = (x + 20).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(x_bf16)
        wanted = layer(x_bf16.float())
        assert output.dtype == torch.bfloat16
        assert (output.float() - wanted).abs().max() < 0.02 * wanted.abs().max()
