"""Does the model know when it is wrong? Confidence, calibration and what deferring the unsure answers would buy.

Confidence is the probability of the chosen option, options scaled to sum to 1. Samples that were not answered have
none; they are left out here, n says how many remain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.compare.compare import option_probabilities
from bench.intervals import CHUNK_ITEMS, Interval, Values, bootstrap_mean
from bench.score.scoring import OK, ScoredSample

N_BINS = 10
ECE_RESAMPLES = 2000
TINY = 1e-12  # a probability of 0 would make one sample's NLL infinite


@dataclass(frozen=True)
class Bin:
    """One bin of the reliability diagram: n samples, their mean confidence and their accuracy."""

    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """ece, brier and nll_nats: less is better. risk_coverage: error among the most confident share, for each share.

    risks: (n,), risks[i] is the error rate of the i + 1 most confident answers. aurc: their mean.
    """

    n: int
    ece: Interval
    brier: Interval
    nll_nats: Interval
    bins: tuple[Bin, ...]
    risks: Values
    aurc: float


def calibrate(samples: Sequence[ScoredSample], *, seed: int = 0) -> Calibration | None:
    """The calibration of a run; None if no sample has option probabilities.

    Brier: sum over options of (p - right)^2, 0 to 2 (Brier 1950). NLL: -ln p of the key. ECE: Naeini et al. 2015.
    """
    scored = [s for s in samples if s.status == OK and len(s.option_log_probabilities) > 1]
    if not scored:
        return None
    probabilities = [option_probabilities(s) for s in scored]
    confidence = np.array([p.max() for p in probabilities])
    correct = np.array([float(s.correct) for s in scored])
    brier = np.array(
        [float(((p - np.eye(p.size)[s.answer]) ** 2).sum()) for p, s in zip(probabilities, scored, strict=True)]
    )
    nll = np.array([-np.log(max(float(p[s.answer]), TINY)) for p, s in zip(probabilities, scored, strict=True)])
    clusters = [s.cluster for s in scored]
    risks = risk_by_coverage(confidence, correct)
    return Calibration(
        n=len(scored),
        ece=_ece_interval(confidence, correct, seed),
        brier=bootstrap_mean(brier, clusters, seed=seed),
        nll_nats=bootstrap_mean(nll, clusters, seed=seed),
        bins=reliability_bins(confidence, correct),
        risks=risks,
        aurc=float(risks.mean()),
    )


def reliability_bins(confidence: Values, correct: Values) -> tuple[Bin, ...]:
    """N_BINS bins of equal mass, by confidence; fewer if there are fewer samples."""
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, N_BINS) if part.size]
    return tuple(Bin(part.size, float(confidence[part].mean()), float(correct[part].mean())) for part in parts)


def expected_calibration_error(confidence: Values, correct: Values) -> float:
    """Mean over bins, weighted by n, of |accuracy - confidence|."""
    bins = reliability_bins(confidence, correct)
    return sum(b.n * abs(b.accuracy - b.confidence) for b in bins) / sum(b.n for b in bins)


def risk_by_coverage(confidence: Values, correct: Values) -> Values:
    """Error rate among the 1, 2, ... n most confident answers. Source: El-Yaniv and Wiener 2010, JMLR 11:1605."""
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum(1.0 - correct[order])
    return np.asarray(wrong / np.arange(1, order.size + 1), dtype=np.float64)


def coverage_at_risk(risks: Values, risk: float) -> float:
    """The greatest share of questions that can be answered, most confident first, with an error rate within `risk`."""
    within = np.flatnonzero(risks <= risk + 1e-12)
    return float((within[-1] + 1) / risks.size) if within.size else 0.0


def _ece_interval(confidence: Values, correct: Values, seed: int) -> Interval:
    """Percentile bootstrap; at small n both the value and its interval lie too high, since noise adds to |gap|."""
    rng = np.random.default_rng(seed)
    order = np.argsort(confidence, kind="stable")
    gap = (correct - confidence)[order]
    n = gap.size
    starts = np.cumsum([0, *(part.size for part in np.array_split(order, min(N_BINS, n)))])[:-1]
    per_chunk = max(1, CHUNK_ITEMS // n)
    values = np.empty(ECE_RESAMPLES)
    for start in range(0, ECE_RESAMPLES, per_chunk):
        drawn = rng.integers(0, n, (min(per_chunk, ECE_RESAMPLES - start), n))
        drawn.sort(axis=1)  # by place in `order`, so by confidence
        values[start : start + len(drawn)] = np.abs(np.add.reduceat(gap[drawn], starts, axis=1)).sum(axis=1) / n
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(expected_calibration_error(confidence, correct), float(low), float(high))
