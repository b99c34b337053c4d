"""One training step, by hand."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from dann.networks import DANN
from dann.step import train_step


@pytest.mark.parametrize("teacher", [False, True])
def test_one_step_by_hand(teacher):
    """The step equals plain torch, where reversal is a second backward pass with the opposite sign."""
    torch.manual_seed(0)
    model = DANN()
    twin = copy.deepcopy(model)
    x, target_x, labels = torch.randn(8, 3, 28, 28), torch.randn(8, 3, 28, 28), torch.arange(8)
    lr = 1e-3

    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    pseudo = torch.arange(8).flip(0), torch.tensor([True, False] * 4)
    coeff = torch.tensor(math.tanh(1.25))
    metrics = train_step(model, optimizer, (x, labels), target_x, pseudo if teacher else None, coeff, torch.float32)

    torch.manual_seed(1)
    features = twin.feature(x).flatten(1)
    class_loss = F.cross_entropy(twin.classifier(features), labels)
    source_logits = twin.discriminator(features)
    features = twin.feature(target_x).flatten(1)
    target_logits = twin.classifier(features)  # without a teacher too, for its running statistics
    if teacher:
        class_loss = class_loss + F.cross_entropy(target_logits[::2], pseudo[0][::2]) / 2
    domain_logits = torch.cat([source_logits, twin.discriminator(features)])
    domain_loss = F.cross_entropy(domain_logits, torch.tensor([0] * 8 + [1] * 8))
    extractor, classifier = list(twin.feature.parameters()), list(twin.classifier.parameters())
    discriminator = list(twin.discriminator.parameters())
    grads = torch.autograd.grad(class_loss - coeff * domain_loss, extractor, retain_graph=True)
    grads += torch.autograd.grad(class_loss, classifier, retain_graph=True)
    grads += torch.autograd.grad(domain_loss, discriminator)
    with torch.no_grad():
        for p, grad in zip(extractor + classifier + discriminator, grads, strict=True):
            p -= lr * grad

    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-7, msg=name)
    assert (metrics["class_loss"] + metrics.get("pseudo_loss", 0)).item() == pytest.approx(class_loss.item(), rel=1e-5)
    assert metrics["domain_loss"].item() == pytest.approx(domain_loss.item(), rel=1e-5)
    assert metrics["grl_coeff"] == coeff


def test_a_step_without_target_leaves_the_discriminator_alone():
    model = DANN()
    before = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters())
    x, labels = torch.randn(4, 3, 28, 28), torch.arange(4)
    metrics = train_step(model, optimizer, (x, labels), None, None, None, torch.float32)
    assert list(metrics) == ["class_loss"]
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before.get_parameter(name))}
    assert {name.partition(".")[0] for name in changed} == {"feature", "classifier"}


def test_a_step_on_the_target_alone_by_hand():
    """The gradient is that of the confident pseudo-labels, and batch norm sees the target alone."""
    torch.manual_seed(0)
    model = DANN(dropout=0)
    twin = copy.deepcopy(model)
    target_x, digits, confident = torch.randn(8, 3, 28, 28), torch.arange(8), torch.tensor([True, False] * 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    metrics = train_step(model, optimizer, None, target_x, (digits, confident), None, torch.float32)
    loss = F.cross_entropy(twin(target_x, None)[0][::2], digits[::2]) / 2
    loss.backward()
    assert set(metrics) == {"pseudo_loss", "confident"}
    assert metrics["pseudo_loss"].item() == pytest.approx(loss.item(), rel=1e-5) and metrics["confident"] == 0.5
    for name, value in twin.named_parameters():
        expected = value if value.grad is None else value - 1e-3 * value.grad
        torch.testing.assert_close(model.get_parameter(name), expected, rtol=1e-5, atol=1e-7, msg=name)
    torch.testing.assert_close(dict(model.named_buffers()), dict(twin.named_buffers()))
