"""Scores of generated images: comparisons of sets of features, and nearest neighbours in the training set.

Features are (N, D) arrays of any number type, with N >= 2. Other shapes are a ValueError.
"""

import numpy as np

NEIGHBOURS = 50  # as in Carlini et al. 2023
SHOWN = 7  # neighbours per row of a picture
K = 5  # as in Naeem et al. 2020
NEAR = 0.5  # of the usual distance: near-duplicates
ENOUGH = 100  # images


def small_sample_note(count: int) -> list[str]:
    """Return a note if scores of so many images say little, otherwise nothing."""
    return [f"note: scores of {count} images say little: compare at least {ENOUGH}"] if count < ENOUGH else []


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features: got {a.shape} and {b.shape}, expected (N, D) and (M, D) with N, M >= 2")


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the squared Frechet distance of Gaussians fitted to features (Dowson & Landau 1982), as FID uses it.

    Fewer samples than D bias the distance upwards: always quote beside it the distance between two sets of real images
    of the same size.
    """
    _check(a, b)
    mean_a, mean_b = a.mean(0, dtype=np.float64), b.mean(0, dtype=np.float64)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False, dtype=np.float64)) for x in (a, b))
    # trace(sqrtm(A B)) = trace(sqrtm(B^1/2 A B^1/2)), which is symmetric: its eigenvalues are real.
    values, vectors = np.linalg.eigh(cov_b)
    root_b = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root_b @ cov_a @ root_b).clip(min=0)).sum()
    return float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the squared maximum mean discrepancy of two sets of features, with the kernel (x.y / D + 1)^3.

    This is the kernel distance of Binkowski et al. 2018 (arXiv:1801.01401, sec. 4). It is unbiased at any number of
    vectors, so two sets of real images are at 0 on average, and may be below.
    """
    _check(a, b)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x.astype(np.float64) @ y.T.astype(np.float64) / x.shape[1] + 1) ** 3

    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (kernel(a, a), kernel(b, b))]
    return float(sum(within) - 2 * kernel(a, b).mean())


def mean_pairwise_distance(features: np.ndarray) -> float:
    """Return the root mean squared Euclidean distance between two different rows of features."""
    _check(features, features)
    # sum over i, j of |a_i - a_j|^2 = 2 N sum |a_i - mean|^2, over N (N - 1) ordered pairs
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    return float(np.sqrt(2 * np.square(centred).sum() / (len(features) - 1)))


def fidelity_and_diversity(fake: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Compare two sets of features by balls: one around each vector, up to its k-th nearest neighbour in its own set.

    k is 5, or one less than there are vectors. All four scores depend on the numbers of vectors: compare sets of equal
    size, and quote beside them two sets of real images.

    Returns:
        precision: share of fake vectors in the ball of a real one, 0..1; bad images lower it.
        recall: share of real vectors in the ball of a fake one, 0..1; missing kinds of images lower it (both by
            Kynkaanniemi et al. 2019, arXiv:1904.06991, sec. 2).
        density: number of real balls around a fake vector, over k, on average: 0..M/k, near 1 for equal distributions.
            Like precision, but the wide ball of an odd real image counts for little.
        coverage: share of real balls with a fake vector in them, 0..1. Like recall, but odd fake images do not raise it
            (both by Naeem et al. 2020, arXiv:2002.09797, sec. 3).
    """
    from scipy.spatial.distance import cdist  # copies are at distance 0 exactly, where `nearest` rounds

    _check(fake, real)
    k = min(K, len(fake) - 1, len(real) - 1)
    fake_radii, real_radii = (np.partition(cdist(x, x), k)[:, k] for x in (fake, real))  # [:, 0]: to the vector itself
    distances = cdist(real, fake)
    in_real, in_fake = distances <= real_radii[:, None], distances <= fake_radii
    return {"precision": float(in_real.any(0).mean()), "recall": float(in_fake.any(1).mean()),
            "density": float(in_real.sum(0).mean() / k), "coverage": float(in_real.any(1).mean())}


def nearest(queries: np.ndarray, references: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Euclidean distances (N, k) float32 and indices (N, k) int64 of the nearest references, nearest first.

    scikit-learn's brute-force search would first convert all references to floating point: 16 times the memory here.

    Args:
        queries, references: (N, ...) and (M, ...) arrays of any number type, equal in shape but for the first axis.
        k: 1..M.

    Raises:
        ValueError: the shapes differ, or k is out of range.
    """
    if queries.shape[1:] != references.shape[1:] or not 1 <= k <= len(references):
        raise ValueError(f"got {queries.shape}, {references.shape} and k = {k}, expected one shape and k <= M")
    a = queries.reshape(len(queries), -1).astype(np.float32)
    squares, indices = np.empty((len(a), 0), np.float32), np.empty((len(a), 0), np.int64)
    for start in range(0, len(references), 4096):  # all pairs at once would not fit in memory
        b = references[start:start + 4096].reshape(-1, a.shape[1]).astype(np.float32)
        new = np.square(a).sum(1)[:, None] - 2 * a @ b.T + np.square(b).sum(1)
        squares = np.concatenate([squares, new], axis=1)
        here = np.broadcast_to(np.arange(start, start + len(b)), new.shape)
        indices = np.concatenate([indices, here], axis=1)
        order = np.argsort(squares, axis=1, kind="stable")[:, :k]
        squares, indices = np.take_along_axis(squares, order, 1), np.take_along_axis(indices, order, 1)
    return np.sqrt(squares.clip(min=0)), indices


def closeness(distances: np.ndarray) -> np.ndarray:
    """Return how suspiciously close the nearest reference is: near 0 for a copy, near 1 for one neighbour of many.

    This is the distance to the nearest reference divided by the mean distance to the others (Carlini et al. 2023,
    arXiv:2301.13188, sec. 5.1): a plain image is near to everything without being a copy. `distances` are those of
    `nearest`, (N, k) with k >= 2; the result is (N,) float32 in [0, 1].
    """
    return distances[:, 0] / distances[:, 1:].mean(1).clip(min=1e-6)


def near_duplicates(images: np.ndarray, real: np.ndarray) -> float:
    """Return the share of images whose nearest neighbour is at less than half the median distance of real neighbours.

    Args:
        images, real: (N, 3, H, W) uint8, about equally many, at least 2.
    """
    def to_nearest(images: np.ndarray) -> np.ndarray:
        return nearest(images, images, 2)[0][:, 1]  # the nearest of all is the image itself

    return float((to_nearest(images) < NEAR * np.median(to_nearest(real))).mean())


def memorisation(fake: np.ndarray, real: np.ndarray, train: np.ndarray) -> tuple[dict, np.ndarray]:
    """Compare how close generated images and unseen real images come to a training image, in pixel distance.

    Args:
        fake: (N, 3, H, W) uint8.
        real: (M, 3, H, W) uint8, not in the training set; the first N are used.
        train: (K, 3, H, W) uint8, K >= 2.

    Returns:
        scores: `closest` and `closest_real`, the smallest `closeness` of a generated and of a real image;
            `suspicious`, the share of generated images that are closer than 99 % of the real ones (0.01 by chance).
        rows of a picture: at most (10, 1 + SHOWN) int64, the index of each of the ten closest generated images, then
            those of its nearest training images.
    """
    k = min(NEIGHBOURS, len(train))
    distances, indices = nearest(fake, train, k)
    fake_closeness, real_closeness = closeness(distances), closeness(nearest(real[:len(fake)], train, k)[0])
    worst = fake_closeness.argsort(kind="stable")[:10]
    scores = {"closest": float(fake_closeness.min()), "closest_real": float(real_closeness.min()),
              "suspicious": float((fake_closeness < np.quantile(real_closeness, 0.01)).mean())}
    return scores, np.concatenate([worst[:, None], indices[worst, :SHOWN]], axis=1)
