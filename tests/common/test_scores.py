"""Distances against closed forms, another implementation, and brute force."""

import numpy as np
import pytest
import scipy.linalg

from common.scores import (
    SHOWN,
    closeness,
    fidelity_and_diversity,
    frechet_distance,
    kernel_distance,
    mean_pairwise_distance,
    memorisation,
    near_duplicates,
    nearest,
    small_sample_note,
)

RNG = np.random.default_rng(0)


def with_moments(mean, cov, count=500):
    """Draw samples whose mean and covariance are exactly these."""
    x = RNG.standard_normal((count, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(cov).T + mean


def random_cov(size):
    a = RNG.standard_normal((size, size))
    return a @ a.T + 0.1 * np.eye(size)


def test_equal_sets_have_distance_zero():
    x = RNG.standard_normal((100, 8))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(x, x[::-1].copy()) == pytest.approx(0, abs=1e-10)


def test_diagonal_gaussians_have_a_closed_form():
    # |m - n|^2 + sum (s - t)^2 for standard deviations s and t
    mean_a, mean_b = np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0])
    std_a, std_b = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 0.5])
    a, b = with_moments(mean_a, np.diag(std_a**2)), with_moments(mean_b, np.diag(std_b**2))
    assert frechet_distance(a, b) == pytest.approx(5 + 1 + 0 + 6.25)


def test_full_covariances_agree_with_scipy():
    cov_a, cov_b = random_cov(6), random_cov(6)
    a, b = with_moments(np.zeros(6), cov_a), with_moments(np.ones(6), cov_b)
    expected = 6 + np.trace(cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)


def test_fewer_samples_than_dimensions_and_constant_features():
    a, b = RNG.standard_normal((5, 20)), RNG.standard_normal((7, 20)) + 1
    a[:, 3] = b[:, 3] = 2
    expected = (np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T))
                - 2 * np.linalg.svd(root(np.cov(a.T)) @ root(np.cov(b.T)), compute_uv=False).sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)


def root(cov):
    values, vectors = np.linalg.eigh(cov)
    return vectors @ np.diag(np.sqrt(values.clip(min=0))) @ vectors.T


def test_one_dimension():
    a, b = np.array([[-2.0], [0.0], [2.0]]), np.array([[2.0], [3.0], [4.0]])  # standard deviations 2 and 1
    assert frechet_distance(a, b) == pytest.approx(9 + 1)


def test_moving_turning_and_growing():
    a, b = RNG.standard_normal((60, 4)), 2 * RNG.standard_normal((50, 4)) + 1
    distance = frechet_distance(a, b)
    turn, _ = np.linalg.qr(RNG.standard_normal((4, 4)))
    assert frechet_distance(a @ turn + 5, b @ turn + 5) == pytest.approx(distance)
    assert frechet_distance(3 * a, 3 * b) == pytest.approx(9 * distance)
    assert frechet_distance(a.astype(np.float32), b.astype(np.float32)) == pytest.approx(distance, rel=1e-5)


def test_mean_pairwise_distance_is_the_brute_force_one():
    for dtype in (np.float64, np.float32, np.uint8):
        x = (RNG.random((9, 5)) * 100 + 50).astype(dtype)
        wide = x.astype(float)
        squares = [np.square(wide[i] - wide[j]).sum() for i in range(9) for j in range(9) if i != j]
        assert mean_pairwise_distance(x) == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-6)


def test_scores_of_few_images_have_a_note():
    assert small_sample_note(99) == ["note: scores of 99 images say little: compare at least 100"] and (
        small_sample_note(100) == [])


def test_kernel_distance_is_the_mean_over_pairs_of_different_vectors():
    a, b = RNG.standard_normal((4, 3)), RNG.standard_normal((5, 3)) + 1

    def mean(x, y):
        return np.mean([(p @ q / 3 + 1) ** 3 for i, p in enumerate(x) for j, q in enumerate(y) if x is not y or i != j])

    assert kernel_distance(a, b) == pytest.approx(mean(a, a) + mean(b, b) - 2 * mean(a, b))
    assert kernel_distance(a, b) == pytest.approx(kernel_distance(b, a))


def test_kernel_distance_is_unbiased():
    draws = RNG.standard_normal((400, 2, 5, 3))
    distances = [kernel_distance(a, b) for a, b in draws]
    assert abs(np.mean(distances)) < 3 * np.std(distances) / 20 and min(distances) < 0
    assert np.mean([kernel_distance(a, b + 1) for a, b in draws]) > 1


@pytest.mark.parametrize("shape", [(1, 3), (4,), (2, 2, 2)])
def test_mean_pairwise_shapes_are_checked(shape):
    with pytest.raises(ValueError, match="expected"):
        mean_pairwise_distance(np.zeros(shape))


def slow_fidelity_and_diversity(fake, real, k):
    """Compute the definitions literally, vector by vector."""
    def radius(x, own):  # own[0] is at distance 0: x itself
        return sorted(np.linalg.norm(x - other) for other in own)[k]

    def inside(x, centre, own):
        return np.linalg.norm(x - centre) <= radius(centre, own)

    around = [sum(inside(f, r, real) for r in real) for f in fake]
    return {"precision": np.mean([n > 0 for n in around]), "density": np.mean(around) / k,
            "recall": np.mean([any(inside(r, f, fake) for f in fake) for r in real]),
            "coverage": np.mean([any(inside(f, r, real) for f in fake) for r in real])}


@pytest.mark.parametrize(("sizes", "k"), [((30, 30), 5), ((25, 40), 5), ((12, 4), 3), ((2, 9), 1)])
def test_fidelity_and_diversity_are_the_slow_ones(sizes, k):
    rng = np.random.default_rng(k)
    fake, real = (rng.standard_normal((size, 3)).astype(np.float32) + (size == 40) for size in sizes)
    scores = fidelity_and_diversity(fake, real)
    assert scores == pytest.approx(slow_fidelity_and_diversity(fake, real, k))
    assert any(0 < score < 1 for score in scores.values())


def fidelity(fake, real):
    scores = fidelity_and_diversity(np.array(fake, float)[:, None], np.array(real, float)[:, None])
    return [scores[name] for name in ("precision", "recall", "density", "coverage")]


LINE = RNG.random(100)
FRESH = RNG.random(100)


def test_equal_sets_share_every_ball_and_far_ones_none():
    assert fidelity(LINE, LINE[::-1]) == [1, 1, pytest.approx(6 / 5), 1]  # a ball holds 5 neighbours and its centre
    assert fidelity(LINE + 9, LINE) == [0, 0, 0, 0]
    assert fidelity([3] * 9, [3] * 9) == [1, 1, pytest.approx(9 / 5), 1]  # a ball without extent


def test_a_fresh_sample_has_a_density_near_1():
    precision, recall, density, coverage = fidelity(FRESH, LINE)
    assert min(precision, recall, coverage) > 0.9 and density == pytest.approx(1, abs=0.1)


def test_a_missing_mode_lowers_recall_and_coverage_alone():
    whole, half = fidelity(FRESH, LINE), fidelity(FRESH, [*LINE, *LINE + 9])
    assert half == pytest.approx([whole[0], whole[1] / 2, whole[2], whole[3] / 2])


def test_bad_images_lower_precision_and_density_alone():
    whole, half = fidelity(FRESH, LINE), fidelity([*FRESH, *FRESH + 9], LINE)
    assert half == pytest.approx([whole[0] / 2, whole[1], whole[2] / 2, whole[3]])


def test_an_outlier_deceives_precision_or_recall_but_neither_density_nor_coverage():
    assert fidelity(FRESH + 9, [*LINE, 20])[::2] == [1, pytest.approx(0.2)]  # the outlier's ball is all around, k = 5
    assert fidelity([*LINE, 20], FRESH + 9)[1::2] == [1, 0]


@pytest.mark.parametrize("shapes", [((5, 3), (5, 4)), ((5,), (5,)), ((1, 3), (5, 3)), ((5, 3), (1, 3))])
@pytest.mark.parametrize("score", [frechet_distance, kernel_distance, fidelity_and_diversity])
def test_shapes_of_features_are_checked(score, shapes):
    with pytest.raises(ValueError, match=r"got .*, expected \(N, D\) and \(M, D\)"):
        score(*map(np.zeros, shapes))


def test_nearest_finds_what_a_full_table_of_distances_finds():
    rng = np.random.default_rng(0)
    references = rng.integers(0, 256, (5000, 3, 2, 2), dtype=np.uint8)  # more than one block
    queries = np.concatenate([references[[4999, 17]], rng.integers(0, 256, (5, 3, 2, 2), dtype=np.uint8)])
    distances, indices = nearest(queries, references, 4)
    table = np.linalg.norm(queries.reshape(7, 1, 12).astype(float) - references.reshape(1, 5000, 12), axis=2)
    np.testing.assert_allclose(distances, np.sort(table, axis=1)[:, :4], rtol=1e-4, atol=0.5)
    assert indices[:2, 0].tolist() == [4999, 17]
    np.testing.assert_allclose(np.take_along_axis(table, indices, 1), distances, rtol=1e-4, atol=0.5)


@pytest.mark.parametrize(("queries", "k"), [(np.zeros((2, 3)), 1), (np.zeros((2, 4)), 0), (np.zeros((2, 4)), 6)])
def test_nearest_refuses_other_shapes_and_too_many_neighbours(queries, k):
    with pytest.raises(ValueError, match="expected one shape"):
        nearest(queries, np.zeros((5, 4)), k)


def test_closeness_is_0_for_a_copy_and_1_in_a_crowd():
    assert closeness(np.array([[0.0, 5, 5], [5, 5, 5], [2, 4, 4]])).tolist() == [0, 1, 0.5]
    assert closeness(np.zeros((1, 3))).tolist() == [0]


def test_copies_of_training_images_are_found():
    def noise_images(count):
        return RNG.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)

    train, fake = noise_images(200), noise_images(40)
    real = (train[:40] // 2) + (noise_images(40) // 2)  # each resembles one training image somewhat
    honest, _ = memorisation(fake, real, train)
    assert honest["closest"] > 0.8 > honest["closest_real"] > 0.3
    assert honest["suspicious"] == 0
    fake[7], fake[21] = train[150], train[3]
    scores, rows = memorisation(fake, real, train)
    assert scores["closest"] == pytest.approx(0, abs=1e-3)
    assert scores["suspicious"] == 2 / 40
    assert sorted(map(tuple, rows[:2, :2].tolist())) == [(7, 150), (21, 3)]
    assert rows.shape == (10, 1 + SHOWN)


def test_near_duplicates_are_counted():
    noise = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8)).astype(np.uint8)
    images, real = noise[:10].copy(), noise[10:]
    assert near_duplicates(images, real) == 0
    images[3], images[7] = images[0], (images[1] * 0.99).astype(np.uint8)
    assert near_duplicates(images, real) == pytest.approx(0.4)  # 0 with 3, 1 with 7
