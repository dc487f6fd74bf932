"""Intervals against published values and against simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.compare.compare import paired_loss
from bench.compare.verdict import INFERIOR, NON_INFERIOR, judge
from bench.intervals import (
    Interval,
    bootstrap_mean,
    cluster_means,
    holm,
    mcnemar_exact,
    newcombe_paired,
    resampled_means,
    wilson,
)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_the_published_table(right: int, n: int, low: float, high: float) -> None:
    found = wilson(right, n)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_wilson_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="without samples"):
        wilson(0, 0)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((20, 12, 2, 16), 0.0562, 0.3292),
        ((18, 14, 0, 18), 0.1441, 0.3963),
        ((1, 97, 1, 1), 0.8736, 0.9850),
        ((0, 30, 0, 0), 0.8395, 1.0),
        ((54, 0, 0, 0), -0.0664, 0.0664),
    ],
)
def test_newcombe_equals_the_published_table(counts: tuple[int, ...], low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17:2635, table III, method 10."""
    found = newcombe_paired(*counts)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_newcombe_without_a_flip_still_has_a_length() -> None:
    found = newcombe_paired(50, 0, 0, 50)
    assert found.low < 0 < found.high


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_symmetric_and_a_probability(lost: int, gained: int) -> None:
    p = mcnemar_exact(lost, gained)
    assert 0 < p <= 1
    assert p == mcnemar_exact(gained, lost)


def test_mcnemar_equals_the_binomial_by_hand() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(5, 0) == pytest.approx(2 / 32)
    assert mcnemar_exact(10, 2) == pytest.approx(2 * (1 + 12 + 66) / 4096)
    assert mcnemar_exact(1200, 800) < 1e-18


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_a_cluster_counts_once() -> None:
    values = np.array([1.0, 0.0, 1.0])
    assert cluster_means(values, ["a", "b", "a"]).tolist() == [1.0, 0.0]
    assert bootstrap_mean(values, ["a", "b", "a"]).value == 0.5


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).normal(size=200)
    names = [str(i) for i in range(200)]
    assert bootstrap_mean(values, names, seed=3) == bootstrap_mean(values, names, seed=3)
    assert bootstrap_mean(values, names, seed=3) != bootstrap_mean(values, names, seed=4)


def test_resampling_counts_and_resampling_items_agree() -> None:
    values = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], p=[0.1, 0.7, 0.2], size=400)
    by_counts = resampled_means(values, seed=0)
    by_items = resampled_means(values + 1e-9 * np.arange(400), seed=0)  # all distinct: the other path
    assert by_counts.mean() == pytest.approx(by_items.mean(), abs=1e-3)
    assert by_counts.std() == pytest.approx(by_items.std(), rel=0.03)


@pytest.mark.parametrize(("p_lost", "p_gained", "n"), [(0.05, 0.03, 300), (0.02, 0.0, 300), (0.15, 0.05, 1000)])
def test_the_loss_interval_covers_the_true_loss(p_lost: float, p_gained: float, n: int) -> None:
    """95 % intervals over 400 simulated pairs must hold the truth in at least 93 % of them."""
    rng, held, n_runs = np.random.default_rng(0), 0, 400
    names = [str(i) for i in range(n)]
    for run in range(n_runs):
        kind = rng.choice(4, p=[p_lost, p_gained, 0.6, 0.4 - p_lost - p_gained], size=n)
        before, after = np.isin(kind, [0, 2]).astype(float), np.isin(kind, [1, 2]).astype(float)
        found = paired_loss(before, after, names, seed=run, n_resamples=1000, binary=True)
        held += found.low <= p_lost - p_gained <= found.high
    assert held / n_runs >= 0.93


def test_the_loss_interval_covers_the_true_loss_where_questions_stand_twice() -> None:
    """A fifth of the rows repeat another's question and answer: as rows they would look like more evidence."""
    rng, held, n_runs, n = np.random.default_rng(1), 0, 400, 400
    names = [str(i if i < 320 else i - 320) for i in range(n)]
    for run in range(n_runs):
        kind = rng.choice(4, p=[0.08, 0.03, 0.6, 0.29], size=320)
        kind = np.concatenate([kind, kind[: n - 320]])
        before, after = np.isin(kind, [0, 2]).astype(float), np.isin(kind, [1, 2]).astype(float)
        found = paired_loss(before, after, names, seed=run, n_resamples=1000, binary=True)
        held += found.low <= 0.05 <= found.high
    assert held / n_runs >= 0.93


def simulated_verdicts(p_lost: float, p_gained: float, n: int, margin_points: float, n_runs: int = 400) -> list[str]:
    """Verdicts over simulated pairs with these probabilities of losing and of gaining a right answer."""
    rng, names, kinds = np.random.default_rng(7), [str(i) for i in range(n)], []
    for run in range(n_runs):
        kind = rng.choice(4, p=[p_lost, p_gained, 0.6, 0.4 - p_lost - p_gained], size=n)
        before, after = np.isin(kind, [0, 2]).astype(float), np.isin(kind, [1, 2]).astype(float)
        loss = paired_loss(before, after, names, seed=run, n_resamples=1000, binary=True)
        points = Interval(100 * loss.value, 100 * loss.low, 100 * loss.high)
        kinds.append(judge(points, 100 * float((before - after).std(ddof=1)), margin_points, n).kind)
    return kinds


def test_a_loss_on_the_margin_is_called_neither_more_often_than_promised() -> None:
    """A true loss of 2 points at a margin of 2: each claim may be wrong in 2.5 %, give or take the simulation."""
    kinds = simulated_verdicts(0.05, 0.03, 1500, 2.0)
    assert kinds.count(NON_INFERIOR) / len(kinds) <= 0.045
    assert kinds.count(INFERIOR) / len(kinds) <= 0.045


def test_the_named_n_decides_four_times_in_five() -> None:
    """No true loss, 4 % of answers flip, margin 1 point: 7.849 * 0.04 / 0.01^2 questions have a power of 80 %."""
    kinds = simulated_verdicts(0.02, 0.02, 3140, 1.0)
    assert 0.74 <= kinds.count(NON_INFERIOR) / len(kinds) <= 0.88
    assert kinds.count(INFERIOR) == 0


def test_a_large_loss_is_found() -> None:
    kinds = simulated_verdicts(0.08, 0.02, 1500, 1.0)
    assert kinds.count(INFERIOR) / len(kinds) >= 0.95
