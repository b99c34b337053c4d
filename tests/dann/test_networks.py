"""The architecture against a golden text; gradient reversal, losses, diagnosis, and the teacher."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dann.grl import grad_reverse, grl_coeff
from dann.losses import called_source, class_loss, diagnose, domain_accuracy, domain_loss, pseudo_label_loss
from dann.networks import DANN
from dann.teacher import Alignment, alignment_strength, pseudo_labels
from tests.trainers import same

GOLDEN = Path(__file__).parent / "golden" / "dann.txt"
OFF, ON = torch.zeros(()), torch.ones(())  # strengths of the alignment
LATE = torch.ones(())  # a progress at which the teacher labels


def test_architecture():
    parameters = dict(DANN().named_parameters())
    lines = [f"{name} {'x'.join(map(str, p.shape))}" for name, p in parameters.items()]
    assert lines == GOLDEN.read_text().splitlines()
    assert len(parameters) == 24
    assert sum(p.numel() for p in parameters.values()) == 710_172


def test_layers_in_order():
    model = DANN()
    kinds = {name: [type(layer).__name__ for layer in part] for name, part in model.named_children()}
    dense = ["Linear", "BatchNorm1d", "ReLU"]
    assert kinds == {
        "feature": ["Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU",
                    "Conv2d", "BatchNorm2d", "Dropout2d", "MaxPool2d", "ReLU"],
        "classifier": [*dense, *dense, "Linear"],
        "discriminator": [*dense, "Linear"],
    }
    assert model.feature[6].p == 0.5
    features = model.eval().features(torch.zeros(2, 3, 28, 28))
    class_logits, domain_logits = model(torch.zeros(2, 3, 28, 28), 1.0)
    assert (features.shape, class_logits.shape, domain_logits.shape) == ((2, 768), (2, 10), (2, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_relu_after_pooling_equals_relu_before_it(dtype):
    model = DANN().to(dtype)
    layers = list(model.feature)
    usual = nn.Sequential(*(layers[i] for i in (0, 1, 3, 2, 4, 5, 6, 8, 7)))
    assert [type(layer) for layer in usual[-2:]] == [nn.ReLU, nn.MaxPool2d]
    images, found = torch.randn(8, 3, 28, 28, dtype=dtype), []
    for feature in (model.feature, usual):
        torch.manual_seed(0)  # of the dropout
        features = feature(images)
        found.append([features, *torch.autograd.grad(features.square().sum(), list(feature.parameters()))])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("coeff", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_reversal_is_minus_coeff_times_the_plain_gradient(coeff, dtype):
    x = torch.randn(4, 5).to(dtype).requires_grad_()
    weight = torch.randn(5, 3).to(dtype)
    (plain,) = torch.autograd.grad((x @ weight).square().sum(), x)
    y = grad_reverse(x, coeff)
    assert torch.equal(y, x) and y.dtype == dtype
    (reversed_,) = torch.autograd.grad((y @ weight).square().sum(), x)
    assert torch.equal(reversed_, -coeff * plain)
    y = grad_reverse(x, torch.tensor(coeff))
    (by_tensor,) = torch.autograd.grad((y @ weight).square().sum(), x)
    torch.testing.assert_close(by_tensor, reversed_)


def test_reversal_reaches_the_features_alone():
    model = DANN().eval()
    x = torch.randn(4, 3, 28, 28)
    wanted = [model.feature[0].weight, model.discriminator[0].weight]
    plain = torch.autograd.grad(domain_loss(*model.discriminator(model.features(x)).chunk(2)), wanted)
    got = torch.autograd.grad(domain_loss(*model(x, 0.5)[1].chunk(2)), wanted)
    torch.testing.assert_close(got[0], -0.5 * plain[0])
    torch.testing.assert_close(got[1], plain[1])


def test_coefficient():
    assert grl_coeff(0) == 0
    assert grl_coeff(0.5) == pytest.approx(math.tanh(2.5), abs=1e-12)
    assert grl_coeff(1) == pytest.approx(0.9999092, abs=1e-7)


def test_losses_by_hand():
    source, target = torch.tensor([[9.0, -9.0]]), torch.tensor([[-9.0, 9.0]])
    assert domain_loss(source, target).item() == pytest.approx(0, abs=1e-6)
    assert domain_loss(target, source).item() == pytest.approx(18)
    assert domain_loss(source, source).item() == pytest.approx(9)
    pairs = (source, target), (target, source), (source, source)
    assert [domain_accuracy(*pair).item() for pair in pairs] == [1, 0, 0.5]
    labels = torch.tensor([0, 5, 9])
    assert class_loss(torch.zeros(3, 10), labels).item() == pytest.approx(math.log(10))
    assert class_loss(torch.zeros(3, 10, dtype=torch.bfloat16), labels).dtype == torch.float32
    assert called_source(source, source).item() == 1
    assert called_source(source, target).item() == 0.5
    assert called_source(target, target).item() == 0


@pytest.mark.parametrize("row, expected", [
    ({"domain_accuracy": 0.6, "called_source": 0.5}, None),
    ({"class_loss": 1.0}, None),
    ({"domain_accuracy": 0.5, "called_source": 0.0}, "collapsed"),
    ({"domain_accuracy": 0.5, "called_source": 1.0}, "collapsed"),
    ({"domain_accuracy": 0.99, "called_source": 0.5}, "not aligned"),
])
def test_diagnosis(row, expected):
    assert expected in diagnose(row) if expected else diagnose(row) is None


def test_only_confident_pseudo_labels_count():
    logits, digits = torch.randn(4, 10), torch.tensor([1, 2, 3, 4])
    confident = torch.tensor([True, False, False, True])
    expected = F.cross_entropy(logits[confident], digits[confident], reduction="sum") / 4
    assert pseudo_label_loss(logits, digits, confident).item() == pytest.approx(expected.item())
    assert pseudo_label_loss(logits, digits, torch.zeros(4, dtype=torch.bool)) == 0


def test_the_teacher_uses_statistics_of_the_batch_and_no_dropout():
    torch.manual_seed(0)
    teacher = DANN()
    images = torch.randn(16, 3, 28, 28) * 3 + 1
    digits, confident = pseudo_labels(teacher, images, None, LATE)
    assert (digits.dtype, confident.dtype) == (torch.int64, torch.bool) and digits.shape == confident.shape == (16,)
    assert same(pseudo_labels(teacher, images, None, LATE), (digits, confident))
    torch.testing.assert_close(teacher.feature[1].running_mean,
                               0.19 * teacher.feature[0](images).mean((0, 2, 3)))  # two steps of momentum 0.1
    teacher.classifier[-1].bias.data[7] += 100
    digits, confident = pseudo_labels(teacher, images, None, LATE)
    assert (digits == 7).all() and confident.all()
    digits, confident = pseudo_labels(teacher, images, None, torch.tensor(0.04))
    assert (digits == 7).all() and not confident.any()  # too early
    teacher.classifier[-1].weight.data.zero_()
    teacher.classifier[-1].bias.data.zero_()
    assert not pseudo_labels(teacher, images, Alignment(), LATE)[1].any()


def test_alignment_fades():
    assert alignment_strength(torch.tensor([0, 0.05, 0.2, 1])).tolist() == [0.5, 0.375, 0, 0]


def test_alignment_raises_the_share_of_a_rare_digit():
    probabilities = torch.full((4, 10), 0.01)
    probabilities[:3, 5], probabilities[3, 5], probabilities[3, 6] = 0.91, 0.50, 0.42
    alignment, shares = Alignment(), torch.full((10,), 0.1)
    for strength in (0.0, 0.5, 1.0):  # equal shares are wanted at first, so here 0 is like 1
        shares = 0.95 * shares + 0.05 * probabilities.mean(0)
        expected = F.normalize(probabilities / shares ** (strength or 1), p=1)
        torch.testing.assert_close(alignment(probabilities, torch.tensor(strength)), expected)
    assert [alignment(probabilities, ON) for _ in range(100)][-1].argmax(1).tolist() == [5, 5, 5, 6]


def test_the_shares_at_the_end_of_the_fade_are_kept():
    probabilities = torch.eye(10)[[1, 1, 1, 2]] * 0.9 + 0.01
    alignment = Alignment()
    for strength in (0.01, 0.0, 0.0):
        for _ in range(200):
            aligned = alignment(probabilities, torch.tensor(strength))
        torch.testing.assert_close(alignment.wanted, probabilities.mean(0), atol=0.05, rtol=0)
        torch.testing.assert_close(aligned, probabilities, atol=0.05, rtol=0)
        torch.testing.assert_close(alignment.wanted.sum(), torch.tensor(1.0))
    drifted = torch.eye(10)[[1, 1, 1, 1]] * 0.9 + 0.01  # the digit that was a 2
    drifted[3, 2] = 0.4
    for _ in range(200):
        aligned = alignment(drifted, OFF)
    assert aligned.argmax(1).tolist() == [1, 1, 1, 2] and drifted.argmax(1).tolist() == [1, 1, 1, 1]


def test_alignment_leaves_equal_shares_and_hopeless_digits_alone():
    even = torch.eye(10) * 0.9 + 0.01
    torch.testing.assert_close(Alignment()(even, ON), even)
    alignment = Alignment()
    alignment.shares.fill_(1e-9)  # a digit that is never predicted
    alignment.shares[:3] = 1 / 3
    probabilities = torch.eye(10)[:3]
    probabilities[:, 9] = 1e-6
    assert alignment(probabilities, ON).argmax(1).tolist() == [0, 1, 2]
