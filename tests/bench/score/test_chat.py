"""What happens to replies of the chat protocol that name an option, none, or have no room."""

from bench.compare.compare import UNKNOWN, compare
from bench.score.chat import score_chat
from bench.score.scoring import TRUNCATED, UNPARSED
from tests.bench.ask.test_chat_protocol import rendered
from tests.helpers.bench_toys import make_sample, record_of
from tests.helpers.toy_engine import ToyEngine


def test_replies_are_parsed_and_unparsed_ones_stay_wrong() -> None:
    items = [(make_sample(i), rendered(i)) for i in range(3)]
    engine = ToyEngine({items[0][1].context: "A", items[1][1].context: "The answer is D.", items[2][1].context: "Well"})
    found = list(score_chat(engine, items, reply_tokens=32))
    assert [(s.prediction, s.correct, s.status) for s in found] == [
        (0, True, "ok"),
        (3, False, "ok"),
        (-1, False, UNPARSED),
    ]
    assert found[2].text == "Well"


def test_a_prompt_that_leaves_no_room_for_the_reply_is_truncated() -> None:
    items = [(make_sample(0), rendered(0))]
    (found,) = score_chat(ToyEngine(n_context=150), items, reply_tokens=64)
    assert found.status == TRUNCATED


def test_flips_of_chat_replies_have_no_margin() -> None:
    items = [(make_sample(i), rendered(i)) for i in range(2)]
    old = list(score_chat(ToyEngine({i[1].context: "A" for i in items}), items, reply_tokens=8))
    new = list(score_chat(ToyEngine({i[1].context: "B" for i in items}), items, reply_tokens=8))
    found = compare(record_of(old), record_of(new))
    assert [f.baseline_margin_nats for f in found.flips] == [UNKNOWN] * 2
    assert not any(f.near_tie or f.confident for f in found.flips)
    assert found.option_kl is None
