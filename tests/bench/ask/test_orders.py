"""Questions in several orders of their options: the key moves along, and what hangs on the letter shows."""

from collections import Counter

import pytest

from bench.ask.orders import in_orders, rotate
from bench.ask.prompts import question_letters_answer
from bench.ask.question import Sample
from bench.compare.compare import accuracy, compare
from bench.compare.orders import order_report
from bench.run.measure import prepare
from bench.run.record import TaskFacts
from bench.score.scoring import TRUNCATED, ScoredSample, score_samples
from bench.settings import Prompting
from bench.tasks import find_task
from medlite.errors import RecordError, TaskError
from tests.helpers.bench_toys import make_sample
from tests.helpers.toy_engine import ToyEngine

SAMPLES = [make_sample(i) for i in range(8)]


def answered(samples: list[Sample], pick: str) -> list[ScoredSample]:
    """Answers of an engine that names the key ("key"), or always one letter."""
    prompts = [(s, question_letters_answer(s)) for s in samples]
    knows = {p.context: f" {'ABCD'[s.answer] if pick == 'key' else pick}" for s, p in prompts}
    return list(score_samples(ToyEngine(knows), prompts))


@pytest.mark.parametrize("step", range(4))
def test_the_key_moves_with_its_option(step: int) -> None:
    sample = make_sample(1, true_options=(1, 3))
    turned = rotate(sample, step)
    assert turned.options[turned.answer] == sample.options[sample.answer]
    assert {turned.options[i] for i in turned.true_options} == {sample.options[i] for i in (1, 3)}
    assert turned.cluster == sample.cluster


def test_with_as_many_orders_as_options_the_key_stands_once_behind_every_letter() -> None:
    found = in_orders(SAMPLES, 4, seed=0)
    assert found[::4] == SAMPLES
    assert Counter(s.answer for s in found) == {0: 8, 1: 8, 2: 8, 3: 8}
    assert len({s.id for s in found}) == 32
    assert found == in_orders(SAMPLES, 9, seed=0)


def test_orders_are_seeded_for_each_question_by_itself() -> None:
    assert in_orders(SAMPLES, 2, seed=0) != in_orders(SAMPLES, 2, seed=1)
    assert in_orders(SAMPLES, 2, seed=0)[6:8] == in_orders(SAMPLES[3:], 2, seed=0)[:2]


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
    from tests.helpers.bench_toys import record_of

    record = record_of(answered(in_orders(SAMPLES, 4, seed=0), "A"), n_orders=4)
    assert accuracy(record).value == 0.25


def test_prompts_that_do_not_show_the_options_are_refused() -> None:
    for protocol, task in (("cloze", "medqa"), ("letters", "truthfulqa_mc1")):
        with pytest.raises(TaskError, match="do not show the options"):
            prepare(
                find_task(task).__class__(**{**vars(find_task(task)), "n_samples": 0}),
                SAMPLES,
                [],
                Prompting(protocol, n_orders=2),
            )


def test_runs_of_other_orders_are_not_compared() -> None:
    from dataclasses import replace

    from tests.helpers.bench_toys import record_of

    def run(n_orders: int, seed: int = 0) -> object:
        samples = answered(in_orders(SAMPLES, n_orders, seed), "key")
        task = TaskFacts("demo", "toy", "", "Apache-2.0", "accuracy", 8, len(samples), "cd" * 32)
        return replace(record_of(samples, n_orders=n_orders), task=task)

    for other in (run(2), run(1), run(4, seed=5)):
        with pytest.raises(RecordError, match="cannot be compared"):
            compare(run(4), other)  # type: ignore[arg-type]
    assert compare(run(4), run(4)).n_distinct == 8  # type: ignore[arg-type]
