"""The U-Net: its parameters, label dropout, and the fast attention."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

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
    torch.testing.assert_close(mixed[1], small(x, t)[1])
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
    emb = time_embedding(torch.tensor([0, 7]), 256)
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
