"""What the harness gets from our engines: sums over tokens, greedy or not, cut from the left, replies that stop."""

import pytest
from bench_toys import make_items
from toy_engine import ToyEngine

from bench.harness_guest import cut, generate_text, score_pairs
from bench.scoring import encode, score_samples


def test_pairs_score_as_samples_do() -> None:
    engine, items = ToyEngine(noise=0.3), make_items(2)
    expected = [lp for s in score_samples(engine, items) for lp in s.option_log_probabilities]
    pairs = [(e.context, c) for _, prompt in items for e in [encode(engine.tokenize, prompt)] for c in e.continuations]
    found = list(score_pairs(engine, pairs))
    assert [value for value, _ in found] == pytest.approx(expected, abs=1e-12)


def test_a_continuation_is_greedy_if_every_token_is_the_likeliest() -> None:
    engine = ToyEngine({"What?": " yes"})
    context = tuple(engine.tokenize("What?"))
    found = [greedy for _, greedy in score_pairs(engine, [(context, tuple(b" yes")), (context, tuple(b" no"))])]
    assert found == [True, False]


def test_what_does_not_fit_is_cut_from_the_left() -> None:
    assert cut(((1, 2, 3, 4), (5, 6)), 5) == ((1, 2, 3, 4), (5, 6))
    assert cut(((1, 2, 3, 4), (5, 6)), 3) == ((3, 4), (5, 6))
    assert cut(((1, 2), (5, 6, 7)), 1) == ((2,), (5, 6, 7))


def test_replies_stop_at_the_harness_s_words() -> None:
    engine = ToyEngine({"Q:": "metformin\n\nQ: next"})
    assert generate_text(engine, "Q:", {"until": ["\n\n"], "max_gen_toks": 40}) == "metformin"
    assert generate_text(engine, "Q:", {"until": "\n", "max_gen_toks": 4}) == "metf"


def test_without_the_harness_the_error_names_the_extra() -> None:
    from bench.harness_guest import model_class
    from medlite.errors import MissingExtraError

    try:
        import lm_eval  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match="lm_eval is not installed"):
            model_class()
    else:
        pytest.skip("lm_eval is installed here")
