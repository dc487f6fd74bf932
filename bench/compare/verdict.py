"""Is the loss small enough? Three answers, against a margin that was declared before the run."""

import math
from dataclasses import dataclass
from statistics import NormalDist

from bench.intervals import LEVEL, Interval, z_of

POWER = 0.8
NON_INFERIOR, INFERIOR, INCONCLUSIVE = "non-inferior", "inferior", "inconclusive"
MOST_N = 10**7  # beyond this many questions the loss sits on the margin, and no test will decide


@dataclass(frozen=True)
class Verdict:
    """kind at margin_points (percentage points). n_needed: distinct questions that would decide, or 0."""

    kind: str
    margin_points: float
    n_needed: int = 0


def judge(loss_points: Interval, sd_points: float, margin_points: float, n: int) -> Verdict:
    """Non-inferior if the whole interval lies below the margin, inferior if above it, else inconclusive.

    loss_points: 95 % two-sided over n distinct questions, so each claim alone is wrong at most 2.5 % of the time.
    sd_points: standard deviation of one question's loss. n_needed keeps the observed loss and asks for a power of
    80 %: ((z_0.975 + z_0.8) * sd / (margin - loss))^2. Source: Miller 2024 (arXiv 2411.00640), section 5.
    Where no answer changed there is no sd: then the interval is taken to shrink with the root of n.
    """
    if loss_points.high < margin_points:
        return Verdict(NON_INFERIOR, margin_points)
    if loss_points.low > margin_points:
        return Verdict(INFERIOR, margin_points)
    distance = abs(margin_points - loss_points.value)
    if not distance:
        return Verdict(INCONCLUSIVE, margin_points)
    z = z_of(LEVEL) + NormalDist().inv_cdf(POWER)
    by_sd = (z * sd_points / distance) ** 2
    needed = by_sd or n * ((loss_points.high - loss_points.value) / distance) ** 2
    return Verdict(INCONCLUSIVE, margin_points, math.ceil(needed) if needed <= MOST_N else 0)
