"""Questions in several orders of their options: the key moves along, and what hangs on the letter shows."""

from collections import Counter

import pytest

from bench.ask.orders import in_orders, rotate
from bench.run.measure import prepare
from bench.settings import Prompting
from bench.tasks import find_task
from medlite.errors import TaskError
from tests.helpers.bench_toys import make_sample

SAMPLES = [make_sample(i) for i in range(8)]


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


def test_prompts_that_do_not_show_the_options_are_refused() -> None:
    for protocol, task in (("cloze", "medqa"), ("letters", "truthfulqa_mc1")):
        with pytest.raises(TaskError, match="do not show the options"):
            prepare(
                find_task(task).__class__(**{**vars(find_task(task)), "n_samples": 0}),
                SAMPLES,
                [],
                Prompting(protocol, n_orders=2),
            )
