"""Validators: by hand, against independent computations, and what they have in common."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import one_hot

from dann import validators
from dann.validators import VALIDATORS, Outputs, compute_validators

SURE = one_hot(torch.arange(40) % 10, 10).float()  # equally many of each digit
SAME = one_hot(torch.full((40,), 3), 10).float()
UNIFORM = torch.full((40, 10), 0.1)


def of_target(probabilities):
    return Outputs(torch.zeros(len(probabilities), 768), probabilities)


def random_outputs(source=60, target=80):
    features = torch.randn(source + target, 768)
    probabilities = (3 * torch.randn(source + target, 10)).softmax(1)
    return Outputs(features[source:], probabilities[source:], features[:source] + 0.1, probabilities[:source],
                   torch.arange(source) % 10)


def test_source_is_the_share_of_right_digits():
    probabilities = one_hot(torch.tensor([0, 1, 2, 9]), 10).float()
    outputs = Outputs(probabilities, SAME, probabilities, probabilities, torch.tensor([0, 1, 2, 3]))
    assert VALIDATORS["source"](outputs) == 0.75


@pytest.mark.parametrize("name, sure, same, uniform", [
    ("entropy", 0, 0, -math.log(10)), ("information", math.log(10), 0, 0),
    ("bnm", 1, 10 ** -0.5, 0.1), ("snd", None, math.log(39), math.log(39))])
def test_extremes_by_hand(name, sure, same, uniform):
    if name == "snd":  # three others call the digit the same, 36 another: similarity 1 and 0
        share = 1 / (3 + 36 * math.exp(-20))
        sure = -3 * share * math.log(share) - 36 * share * math.exp(-20) * math.log(share * math.exp(-20))
    for probabilities, expected in ((SURE, sure), (SAME, same), (UNIFORM, uniform)):
        assert VALIDATORS[name](of_target(probabilities)) == pytest.approx(expected, abs=1e-5)


def test_predictions_between_the_extremes():
    p = (2 * torch.randn(50, 10)).softmax(1)
    rows, mean = p.double().numpy(), p.double().numpy().mean(0)
    entropies = -(rows * np.log(rows)).sum(1)
    assert VALIDATORS["entropy"](of_target(p)) == pytest.approx(-entropies.mean(), rel=1e-5)
    assert VALIDATORS["information"](of_target(p)) == pytest.approx(-(mean * np.log(mean)).sum() - entropies.mean(),
                                                                    rel=1e-4)
    eigenvalues = np.linalg.eigvalsh(rows.T @ rows)
    assert VALIDATORS["bnm"](of_target(p)) == pytest.approx(np.sqrt(eigenvalues).sum() / np.sqrt(500), rel=1e-5)
    densities = []
    for i, row in enumerate(rows):
        others = np.delete(rows, i, 0)
        weights = np.exp(others @ row / np.linalg.norm(others, axis=1) / np.linalg.norm(row) / 0.05)
        weights /= weights.sum()
        densities.append(-(weights * np.log(weights)).sum())
    assert VALIDATORS["snd"](of_target(p)) == pytest.approx(np.mean(densities), rel=1e-5)


def test_dev_is_the_authors_estimate():
    outputs = random_outputs()
    features = torch.cat([outputs.source_features[:30], outputs.target_features]).double().numpy()
    centre, scale = features.mean(0), features.std(0)
    classifier = LogisticRegression(C=1e-3, max_iter=1000).fit((features - centre) / scale, [0] * 30 + [1] * 80)
    p = classifier.predict_proba((outputs.source_features[30:].numpy() - centre) / scale)
    weights = p[:, 1] / p[:, 0] * 30 / 80
    losses = -np.log(outputs.source_probabilities[30:].double().numpy())[range(30), outputs.source_labels[30:]]
    eta = -np.cov(weights * losses, weights)[0, 1] / np.var(weights, ddof=1)
    risk = np.mean(weights * losses) + eta * np.mean(weights) - eta
    assert VALIDATORS["dev"](outputs) == pytest.approx(-risk, rel=1e-4)


def test_dev_finds_the_loss_on_the_target(monkeypatch):
    """Where the domains overlap and differ in one feature, the density ratio is known to be logistic."""
    monkeypatch.setattr(validators, "PENALTY", 1e-3)
    x, target_x = torch.randn(2000), torch.randn(1000) + 1
    right = (x - 1).sigmoid(), (target_x - 1).sigmoid()  # probability of the right digit, 0

    def features(x):
        return torch.nn.functional.pad(x[:, None], (0, 767))

    def probabilities(p):
        return torch.cat([p[:, None], (1 - p)[:, None], torch.zeros(len(p), 8)], 1)

    outputs = Outputs(features(target_x), probabilities(right[1]), features(x), probabilities(right[0]),
                      torch.zeros(2000, dtype=torch.long))
    of_source, of_target = (p.log().mean().item() for p in right)
    assert of_target - of_source > 0.5
    assert VALIDATORS["dev"](outputs) == pytest.approx(of_target, abs=0.05)


def test_dev_where_nothing_tells_the_domains_apart_is_the_loss_of_the_second_half():
    outputs = random_outputs()
    flat = Outputs(torch.ones(80, 768), outputs.target_probabilities, torch.ones(60, 768),
                   outputs.source_probabilities, outputs.source_labels)
    losses = -outputs.source_probabilities.log()[range(60), outputs.source_labels]
    assert VALIDATORS["dev"](flat) == pytest.approx(-losses[30:].mean().item(), rel=1e-4)


def test_class_ami_compares_clusters_with_predictions():
    digits = torch.arange(200) % 10
    features = 50 * torch.randn(10, 768)[digits] + torch.randn(200, 768)
    renamed = one_hot((digits + 1) % 10, 10).float()
    assert VALIDATORS["class-ami"](Outputs(features, renamed)) == pytest.approx(1)
    assert VALIDATORS["class-ami"](Outputs(features, renamed[torch.randperm(200)])) == pytest.approx(0, abs=0.1)


def test_a_good_network_is_better_than_a_poor_one():
    digits = torch.arange(80) % 10
    places = 10 * torch.randn(10, 768)
    sure = (8 * one_hot(digits, 10).float()).softmax(1)
    good = Outputs(places[digits] + torch.randn(80, 768), sure, places[digits] + torch.randn(80, 768), sure, digits)
    poor = Outputs(torch.randn(80, 768), torch.randn(80, 10).softmax(1), torch.randn(80, 768),
                   torch.randn(80, 10).softmax(1), digits)
    scores, worse = compute_validators(good), compute_validators(poor)
    assert all(scores[name] > worse[name] for name in VALIDATORS if name != "snd")
    dense, sparse = (3 * one_hot(digits % 2, 10) + torch.randn(80, 10) * width for width in (0.1, 3))
    assert VALIDATORS["snd"](of_target(dense.softmax(1))) > VALIDATORS["snd"](of_target(sparse.softmax(1)))


def test_values_are_rounded_always_the_same_and_draw_nothing():
    outputs = random_outputs()
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = compute_validators(outputs)
    assert list(first) == ["source", "entropy", "information", "bnm", "snd", "dev", "class-ami"]
    assert compute_validators(outputs) == first == {name: round(value, 5) for name, value in first.items()}
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()


def test_without_a_source_those_that_need_it_are_left_out():
    outputs = random_outputs()
    everything = compute_validators(outputs)
    assert compute_validators(Outputs(outputs.target_features, outputs.target_probabilities)) == {
        name: everything[name] for name in ("entropy", "information", "bnm", "snd", "class-ami")}


@pytest.mark.parametrize("source, target", [(1, 1), (2, 3)])
def test_few_images_have_finite_values(source, target):
    assert all(math.isfinite(value) for value in compute_validators(random_outputs(source, target)).values())
