"""What the answers in several orders of the options say: how much hangs on the letter."""

from dataclasses import replace

import pytest

from bench.ask.orders import in_orders
from bench.ask.prompts import question_letters_answer
from bench.ask.question import Sample
from bench.compare.compare import accuracy, compare
from bench.compare.orders import order_report
from bench.run.record import TaskFacts
from bench.score.scoring import TRUNCATED, ScoredSample, score_samples
from medlite.errors import RecordError
from tests.helpers.bench_toys import make_sample, record_of
from tests.helpers.toy_engine import ToyEngine

SAMPLES = [make_sample(i) for i in range(8)]


def answered(samples: list[Sample], pick: str) -> list[ScoredSample]:
    """Answers of an engine that names the key ("key"), or always one letter."""
    prompts = [(s, question_letters_answer(s)) for s in samples]
    knows = {p.context: f" {'ABCD'[s.answer] if pick == 'key' else pick}" for s, p in prompts}
    return list(score_samples(ToyEngine(knows), prompts))


def test_a_model_that_knows_the_answer_is_consistent_and_one_that_likes_a_letter_is_not() -> None:
    samples = in_orders(SAMPLES, 4, seed=0)
    knowing, liking = order_report(answered(samples, "key"), 4), order_report(answered(samples, "B"), 4)
    assert (knowing.n, knowing.same.value, knowing.always_right.value) == (8, 1.0, 1.0)
    assert (liking.same.value, liking.always_right.value, liking.picks) == (0.0, 0.0, {"B": 1.0})


def test_an_unanswered_order_is_neither_same_nor_right() -> None:
    samples = answered(in_orders(SAMPLES[:1], 2, seed=0), "key")
    broken = [
        samples[0],
        ScoredSample(**{**vars(samples[1]), "status": TRUNCATED, "prediction": -1, "option_log_probabilities": ()}),
    ]
    assert order_report(broken, 2).same.value == 0.0


def test_a_question_in_four_orders_counts_once() -> None:
    record = record_of(answered(in_orders(SAMPLES, 4, seed=0), "A"), n_orders=4)
    assert accuracy(record).value == 0.25


def test_runs_of_other_orders_are_not_compared() -> None:
    def run(n_orders: int, seed: int = 0) -> object:
        samples = answered(in_orders(SAMPLES, n_orders, seed), "key")
        task = TaskFacts("demo", "toy", "", "Apache-2.0", "accuracy", 8, len(samples), "cd" * 32)
        return replace(record_of(samples, n_orders=n_orders), task=task)

    for other in (run(2), run(1), run(4, seed=5)):
        with pytest.raises(RecordError, match="cannot be compared"):
            compare(run(4), other)  # type: ignore[arg-type]
    assert compare(run(4), run(4)).n_distinct == 8  # type: ignore[arg-type]
