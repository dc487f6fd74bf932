"""Compact distributions: what is kept, and that the KL bounds hold around the true value."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.score.distributions import TAIL_MASS, compact, from_json, kl_bounds, to_json
from bench.score.scoring import log_softmax
from medlite.errors import RecordError


def random_log_probabilities(seed: int, scale: float, n_vocab: int = 500) -> np.ndarray:
    return log_softmax((scale * np.random.default_rng(seed).standard_normal(n_vocab)).astype(np.float32))


@given(st.integers(0, 10_000), st.floats(0.1, 8.0), st.floats(0.0, 2.0), st.integers(1, 64))
def test_the_bounds_hold_the_true_divergence(seed: int, scale: float, noise: float, max_tokens: int) -> None:
    p = random_log_probabilities(seed, scale)
    q = log_softmax((p + noise * np.random.default_rng(seed + 1).standard_normal(p.size)).astype(np.float32))
    true = float(np.exp(p) @ (p - q))
    low, high = kl_bounds(compact(p, max_tokens), compact(q, max_tokens))
    assert low - 1e-6 <= true <= high + 1e-6


@given(st.integers(0, 10_000), st.floats(0.1, 8.0))
def test_with_every_token_kept_the_divergence_is_exact(seed: int, scale: float) -> None:
    p, q = random_log_probabilities(seed, scale), random_log_probabilities(seed + 1, scale)
    low, high = kl_bounds(compact(p, 0), compact(q, 0))
    assert low == high == pytest.approx(float(np.exp(p) @ (p - q)), rel=1e-5, abs=1e-6)


def test_a_distribution_does_not_diverge_from_itself() -> None:
    one = compact(random_log_probabilities(1, 3.0))
    assert kl_bounds(one, one)[0] == pytest.approx(0.0, abs=1e-12)


def test_a_peaked_distribution_keeps_few_tokens_and_a_light_tail() -> None:
    logits = np.zeros(50_000, dtype=np.float32)
    logits[[7, 9]] = 30.0, 29.0
    kept = compact(log_softmax(logits))
    assert kept.token_ids[:2].tolist() == [7, 9]
    assert len(kept.token_ids) == 16
    assert kept.tail_mass < TAIL_MASS


def test_kept_and_tail_sum_to_one() -> None:
    kept = compact(random_log_probabilities(3, 1.0), 32)
    assert float(np.exp(kept.log_probabilities.astype(np.float64)).sum()) + kept.tail_mass == pytest.approx(1.0)


def test_json_gives_the_same_distribution_back() -> None:
    one = compact(random_log_probabilities(5, 2.0))
    two = from_json(to_json(one), "here")
    assert np.array_equal(one.token_ids, two.token_ids)
    assert np.array_equal(one.log_probabilities, two.log_probabilities)
    assert to_json(one) == to_json(two)


GOOD = to_json(compact(random_log_probabilities(5, 2.0), 16))


@pytest.mark.parametrize(
    "bad",
    [
        None,
        {},
        {**GOOD, "ids": "!!"},
        {**GOOD, "ids": GOOD["ids"][:8]},
        {**GOOD, "n_vocab": 3},
        {**GOOD, "tail": "x"},
        {**GOOD, "tail": float("nan")},
        {**GOOD, "ids": "AAAA" * 16 + "AA==" * 0, "logp": GOOD["logp"]},
    ],
)
def test_a_malformed_distribution_is_an_error_that_says_where(bad: object) -> None:
    with pytest.raises(RecordError, match="line 7"):
        from_json(bad, "line 7")


def test_distributions_over_different_vocabularies_are_refused() -> None:
    with pytest.raises(RecordError, match="500 and 400 tokens"):
        kl_bounds(compact(random_log_probabilities(1, 1.0)), compact(random_log_probabilities(1, 1.0, 400)))
