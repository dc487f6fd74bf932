"""Intervals and tests for one proportion and for paired answers. Pure numpy, seeded, no table look-ups."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
N_RESAMPLES = 10_000
FEW_VALUES = 64  # up to so many distinct values, resampled counts are drawn instead of resampled items
CHUNK_ITEMS = 1 << 22  # random indices held at once: 32 MiB

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with its interval at LEVEL (95 %, two-sided), in the unit of the value."""

    value: float
    low: float
    high: float

    @property
    def percent(self) -> "Interval":
        """Of a fraction, the same in percent or percentage points."""
        return Interval(100 * self.value, 100 * self.low, 100 * self.high)


def z_of(level: float = LEVEL) -> float:
    """The two-sided normal quantile: 1.95996 at 95 %."""
    return float(NormalDist().inv_cdf(0.5 + level / 2))


def wilson(n_right: float, n: float) -> Interval:
    """Score interval of a proportion. Raises ValueError if n is 0. Source: Wilson 1927, JASA 22:209, unnumbered eq."""
    if n <= 0:
        raise ValueError("no interval without samples")
    z, p = z_of(), n_right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def mcnemar_exact(n_lost: int, n_gained: int) -> float:
    """Two-sided p-value that losses and gains are equally likely: binomial, doubled, at most 1.

    Source: McNemar 1947, Psychometrika 12:153, with exact binomial tails. 1.0 where nothing changed.
    """
    n, k = n_lost + n_gained, min(n_lost, n_gained)
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, float(2 * tail / 2**n))  # exact integers: no underflow before the division


def newcombe_paired(both: float, lost: float, gained: float, neither: float) -> Interval:
    """Interval of p(baseline right) - p(candidate right) from the four paired counts. Not degenerate without flips.

    Source: Newcombe 1998, Statistics in Medicine 17:2635, method 10 (score intervals, phi with continuity correction).
    """
    n = both + lost + gained + neither
    first, second = wilson(both + lost, n), wilson(both + gained, n)
    product = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    cross = both * neither - lost * gained
    if cross > 0:
        cross = max(cross - n / 2, 0.0)
    phi = cross / math.sqrt(product) if product > 0 else 0.0
    d1, u1 = first.value - first.low, first.high - first.value
    d2, u2 = second.value - second.low, second.high - second.value
    value = first.value - second.value
    below = math.sqrt(max(d1 * d1 - 2 * phi * d1 * u2 + u2 * u2, 0.0))
    above = math.sqrt(max(d2 * d2 - 2 * phi * d2 * u1 + u1 * u1, 0.0))
    return Interval(value, max(-1.0, value - below), min(1.0, value + above))


def cluster_means(values: Values, clusters: Sequence[str]) -> Values:
    """The mean of `values` within each cluster, clusters in order of first appearance. values: (n_samples,)."""
    index = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    which = np.fromiter((index[name] for name in clusters), dtype=np.int64, count=len(clusters))
    sums = np.bincount(which, weights=values, minlength=len(index))
    return np.asarray(sums / np.bincount(which, minlength=len(index)), dtype=np.float64)


def resampled_means(values: Values, *, seed: int, n_resamples: int = N_RESAMPLES) -> Values:
    """Means of n_resamples bootstrap samples of `values`, each as large as `values`. Shape (n_resamples,).

    Few distinct values (answers: lost, same, gained) are resampled by their counts, a multinomial draw of the same
    distribution and a thousand times fewer random numbers.
    """
    rng = np.random.default_rng(seed)
    n = values.shape[0]
    distinct, counts = np.unique(values, return_counts=True)
    if distinct.size <= FEW_VALUES:
        drawn = rng.multinomial(n, counts / n, size=n_resamples)
        return np.asarray(drawn @ distinct / n, dtype=np.float64)
    per_chunk = max(1, CHUNK_ITEMS // n)
    means = np.empty(n_resamples, dtype=np.float64)
    for start in range(0, n_resamples, per_chunk):
        stop = min(start + per_chunk, n_resamples)
        means[start:stop] = values[rng.integers(0, n, size=(stop - start, n))].mean(axis=1)
    return means


def bootstrap_mean(
    values: Values, clusters: Sequence[str], *, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> Interval:
    """Percentile interval of the mean over clusters, each cluster counted once and resampled as a whole.

    For paired differences pass the differences. Source: Efron and Tibshirani 1993, section 13.3; clusters as in
    Miller 2024 (arXiv 2411.00640), section 2.2.
    """
    per_cluster = cluster_means(values, clusters)
    means = resampled_means(per_cluster, seed=seed, n_resamples=n_resamples)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(per_cluster.mean()), float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the given order. Source: Holm 1979, Scand. J. Statist. 6:65."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted
