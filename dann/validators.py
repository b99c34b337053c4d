"""Validators: criteria that judge a network for the target without the target's labels. Higher is better for all.

None is always right (Musgrave et al. 2022, "Three new validators and a large-scale benchmark ranking for unsupervised
domain adaptation", arXiv:2208.07360). What each assumes, and when it misleads:

- `source`: accuracy on held-out source digits. What helps there should help on the target, but a network that never saw
  the target may score best.
- `entropy`: minus the mean entropy of the target predictions, in nats. Confident predictions should be right; it is
  highest for a network that calls every image the same digit.
- `information`: the entropy of the mean prediction minus the mean entropy (Shi & Sha 2012, arXiv:1206.6438; Liang et
  al. 2020, SHOT, arXiv:2002.08546). It also asks for equally many of each digit, which the target may not have, and
  cannot see that two digits are exchanged.
- `bnm`: the nuclear norm of the prediction matrix, as a share of its bound (Cui et al. 2020, batch nuclear-norm
  maximisation, arXiv:2003.12237). Like `information`, but a rare digit weighs more.
- `snd`: soft neighbourhood density (Saito et al. 2021, "Tune it the right way", arXiv:2108.10860): the entropy of each
  image's similarities to all others. Images of one digit should have equal predictions; it is highest if all have.
- `dev`: minus the risk of deep embedded validation (You et al. 2019, ICML): the loss on source digits, of which those
  that look like target ones weigh more. Where the domains do not overlap, few digits have all the weight: it is noise.
- `class-ami`: the adjusted mutual information between clusters of the target's features and the predicted digits
  (Musgrave et al. 2022). Digits should form clusters; what a cluster is called does not count, and if all features are
  equal it is 1 too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.05  # of snd; Saito et al. 2021
PENALTY = 1e3  # of dev's domain classifier, L2: 768 features would separate any two sets of this size


@dataclass(frozen=True)
class Outputs:
    """What validators see of a network, on the CPU: N images of the target and, perhaps, M of the source.

    `*_features` are (N or M, 768) float32, `*_probabilities` (N or M, 10) float32, and `source_labels` (M,) int64.
    """

    target_features: Tensor
    target_probabilities: Tensor
    source_features: Tensor | None = None
    source_probabilities: Tensor | None = None
    source_labels: Tensor | None = None


def source(outputs: Outputs) -> float:
    """Return the accuracy on held-out source digits, in 0..1."""
    return (outputs.source_probabilities.argmax(1) == outputs.source_labels).float().mean().item()


def entropy(outputs: Outputs) -> float:
    """Return minus the mean entropy of the target predictions, in -log 10..0."""
    return -_entropy(outputs.target_probabilities).mean().item()


def information(outputs: Outputs) -> float:
    """Return the mutual information of target images and predicted digits, in 0..log 10."""
    mean = outputs.target_probabilities.mean(0)
    return (_entropy(mean) - _entropy(outputs.target_probabilities).mean()).item()


def bnm(outputs: Outputs) -> float:
    """Return the nuclear norm of the target predictions over its bound, which equally many sure digits reach; 0..1."""
    probabilities = outputs.target_probabilities
    bound = (min(probabilities.shape) * len(probabilities)) ** 0.5  # of any rows that sum to 1
    return torch.linalg.matrix_norm(probabilities, "nuc").item() / bound


def snd(outputs: Outputs) -> float:
    """Return the soft neighbourhood density of the target predictions, in 0..log(N - 1)."""
    predictions = F.normalize(outputs.target_probabilities, dim=1)
    similarities = predictions @ predictions.T
    similarities.fill_diagonal_(-1)  # as in the authors' code: an image is not its own neighbour
    return _entropy((similarities / TEMPERATURE).softmax(1)).mean().item()


def dev(outputs: Outputs) -> float:
    """Return minus the risk on the target, estimated from source digits. It has no lower bound, and may exceed 0.

    A classifier of domains, fitted on the target and one half of the source digits, weighs the other half.
    """
    from sklearn.linear_model import LogisticRegression  # which takes a second to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    count = len(outputs.source_labels)
    fitted, weighed = slice(0, max(1, count // 2)), slice(count // 2, None)
    features = torch.cat([outputs.source_features[fitted], outputs.target_features]).double().numpy()
    of_target = torch.arange(len(features)).numpy() >= fitted.stop
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1 / PENALTY, max_iter=1000))
    classifier.fit(features, of_target)
    odds = classifier.decision_function(outputs.source_features[weighed].double().numpy())
    weights = torch.from_numpy(odds).exp() * fitted.stop / (len(features) - fitted.stop)  # p_target / p_source
    probabilities = outputs.source_probabilities[weighed].double().clamp(min=torch.finfo(torch.float32).tiny)
    losses = weights * F.nll_loss(probabilities.log(), outputs.source_labels[weighed], reduction="none")
    # The weights should average 1; the control variate takes the effect of any excess out of the mean loss.
    (_, covariance), (_, variance) = torch.cov(torch.stack([losses, weights]), correction=0)
    eta = -covariance / variance.clamp(min=1e-12)  # 0 for equal weights
    return -(losses.mean() + eta * (weights.mean() - 1)).item()


def class_ami(outputs: Outputs) -> float:
    """Return the adjusted mutual information of clusters and predicted digits: 1 if they agree, near 0 by chance."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_mutual_info_score

    # In float64, because the order in which threads add up the centres must not move an image to another cluster.
    features = outputs.target_features.double()
    digits, distinct = outputs.target_probabilities.argmax(1), len(features.unique(dim=0))
    clusters = KMeans(min(10, distinct), n_init=10, random_state=0).fit_predict(features.numpy())
    return float(adjusted_mutual_info_score(digits.numpy(), clusters))


VALIDATORS = {"source": source, "entropy": entropy, "information": information, "bnm": bnm, "snd": snd, "dev": dev,
              "class-ami": class_ami}
OF_SOURCE = ("source", "dev")  # those that need source digits


def compute_validators(outputs: Outputs) -> dict[str, float]:
    """Return the value of every validator that can be computed, by name; no random number of a training is drawn."""
    return {name: round(validator(outputs), 5) for name, validator in VALIDATORS.items()
            if outputs.source_labels is not None or name not in OF_SOURCE}


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(-1)
