"""What asking each question in several orders of its options showed (`bench.ask.orders`)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.ask.orders import MARK
from bench.ask.question import LETTERS
from bench.intervals import Interval, wilson
from bench.score.scoring import OK, ScoredSample


@dataclass(frozen=True)
class OrderReport:
    """What the orders did. n: questions. same: share that chose the same option in every order; always_right: share
    that chose the key in every order; both Wilson. picks: letter -> share of all answers.
    """

    n: int
    n_orders: int
    same: Interval
    always_right: Interval
    picks: dict[str, float]


def order_report(samples: Sequence[ScoredSample], n_orders: int) -> OrderReport:
    """The orders of each question together. A question with an unanswered order is neither same nor right."""
    of: dict[str, list[ScoredSample]] = {}
    for sample in samples:
        of.setdefault(sample.id.partition(MARK)[0], []).append(sample)
    same = sum(
        all(s.status == OK for s in group) and len({s.options[s.prediction] for s in group}) == 1
        for group in of.values()
    )
    right = sum(all(s.correct for s in group) for group in of.values())
    answered = Counter(LETTERS[s.prediction] for s in samples if s.status == OK)
    return OrderReport(
        len(of),
        n_orders,
        wilson(same, len(of)),
        wilson(right, len(of)),
        {letter: n / len(samples) for letter, n in sorted(answered.items())},
    )
