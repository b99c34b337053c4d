"""Distances between sets of feature vectors."""

import numpy as np


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Frechet distance of two Gaussians fitted to features (Dowson & Landau 1982; as FID uses it).

    Args:
        a, b: (N, D) and (M, D) floating point. Fewer samples than D bias it upwards: always quote the distance
            between two sets of real images of the same size beside it.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features: got {a.shape} and {b.shape}, expected (N, D) and (M, D) with N, M >= 2")
    mean_a, mean_b = a.mean(0, dtype=np.float64), b.mean(0, dtype=np.float64)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False, dtype=np.float64)) for x in (a, b))
    # trace(sqrtm(A B)) = trace(sqrtm(B^1/2 A B^1/2)), which is symmetric: its eigenvalues are real.
    values, vectors = np.linalg.eigh(cov_b)
    root_b = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root_b @ cov_a @ root_b).clip(min=0)).sum()
    return float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def mean_pairwise_distance(features: np.ndarray) -> float:
    """Return the root mean squared Euclidean distance between different rows of (N, D) features."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features: got {features.shape}, expected (N, D) with N >= 2")
    # sum over i, j of |a_i - a_j|^2 = 2 N sum |a_i - mean|^2, over N (N - 1) ordered pairs
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    return float(np.sqrt(2 * np.square(centred).sum() / (len(features) - 1)))
