"""From logits to answers: the numbers, the cut between prompt and option, and what happens to samples that fail."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from bench.ask.prompts import cloze, question_letters_answer
from bench.ask.question import Prompt
from bench.score.scoring import TRUNCATED, encode, encode_pair, log_softmax, plan_requests, predict, score_samples
from medlite.engines.engine import Logits, LogitsRequest
from medlite.errors import EngineError
from tests.helpers.bench_toys import make_items, make_sample
from tests.helpers.toy_engine import ToyEngine


def test_log_softmax_survives_logits_that_float32_exponentials_do_not() -> None:
    result = log_softmax(np.array([[1000.0, 0.0, -1000.0]], dtype=np.float32))
    assert result.dtype == np.float64
    assert result[0].tolist() == pytest.approx([0.0, -1000.0, -2000.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_an_error(bad: float) -> None:
    with pytest.raises(EngineError, match="1 logits that are NaN or infinite"):
        log_softmax(np.array([[0.0, bad]], dtype=np.float32))


def merging_tokenizer(*merges: str) -> Callable[[str], list[int]]:
    """Characters, after which each of `merges` becomes one token, in order."""

    def tokenize(text: str) -> list[int]:
        tokens = [ord(c) for c in text]
        for number, merge in enumerate(merges):
            wanted, i = [ord(c) for c in merge], 0
            while i <= len(tokens) - len(wanted):
                if tokens[i : i + len(wanted)] == wanted:
                    tokens[i : i + len(wanted)] = [1000 + number]
                i += 1
        return tokens

    return tokenize


def test_spaces_at_the_end_of_the_context_move_to_the_continuation() -> None:
    assert encode_pair(merging_tokenizer(" A"), "Q: ", "A") == ((ord("Q"), ord(":")), (1000,))


def test_the_whole_is_cut_at_the_length_of_the_context_even_where_tokens_merge_across() -> None:
    # ": A" is one token of the whole, so the whole has 2 tokens and the context alone has 2: nothing is left to score.
    with pytest.raises(EngineError, match="adds no token"):
        encode_pair(merging_tokenizer(": A"), "Q:", " A")
    # lm-evaluation-harness keeps the context's own tokens and takes what the whole has beyond their number.
    head, rest = encode_pair(merging_tokenizer(": A"), "Q:", " A B")
    assert (head, rest) == ((ord("Q"), ord(":")), (ord(" "), ord("B")))


def test_options_of_one_token_share_one_sequence() -> None:
    encoded = encode(merging_tokenizer(" A", " B"), Prompt("Q:", (" A", " B")))
    plan = plan_requests(encoded)
    assert plan.requests == (LogitsRequest((ord("Q"), ord(":")), (1,)),)
    assert plan.request_of == (0, 0)


def test_an_option_that_begins_another_is_read_from_the_longer_ones_sequence() -> None:
    encoded = encode(merging_tokenizer(" m"), Prompt("Q:", (" m", " may", " n")))
    plan = plan_requests(encoded)
    head = (ord("Q"), ord(":"))
    longer, other = LogitsRequest((*head, 1000, ord("a")), (1, 2, 3)), LogitsRequest((*head, ord(" ")), (1, 2))
    assert plan.requests == (longer, other)
    assert plan.request_of == (0, 0, 1)


def test_log_probabilities_equal_a_direct_sum_over_the_tokens() -> None:
    engine = ToyEngine(noise=0.5)
    items = make_items(3)
    for (_, prompt), result in zip(items, list(score_samples(engine, items)), strict=True):
        for continuation, found in zip(prompt.continuations, result.option_log_probabilities, strict=True):
            head = engine.tokenize(prompt.context)
            whole = engine.tokenize(prompt.context + continuation)
            expected = 0.0
            for i in range(len(head), len(whole)):
                (logits,) = engine.logits([LogitsRequest(tuple(whole[:i]), (i - 1,))])
                expected += log_softmax(logits)[0, whole[i]]
            assert found == pytest.approx(expected, abs=1e-12)


def test_a_known_answer_is_predicted() -> None:
    sample = make_sample(3)
    engine = ToyEngine({question_letters_answer(sample).context: " D"})
    (result,) = score_samples(engine, [(sample, question_letters_answer(sample))])
    assert (result.prediction, result.correct) == (3, True)
    assert result.distribution is not None
    assert result.distribution.top_token == ord(" ")


def test_equal_scores_give_the_lowest_index() -> None:
    assert predict([-1.0, -0.5, -0.5], ()) == 1


def test_cloze_divides_by_characters() -> None:
    assert predict([-4.0, -6.0], ()) == 0
    assert predict([-4.0, -6.0], (4, 12)) == 1
    sample = make_sample(0)
    (result,) = score_samples(ToyEngine(), [(sample, cloze(sample))])
    per_character = [lp / len(o) for lp, o in zip(result.option_log_probabilities, sample.options, strict=True)]
    assert result.prediction == per_character.index(max(per_character))


def test_a_prompt_that_does_not_fit_is_kept_and_counted_wrong() -> None:
    items = [(s, question_letters_answer(s)) for s in (make_sample(0), make_sample(1, question="long " * 50))]
    results = list(score_samples(ToyEngine(n_context=150), items))
    assert [r.id for r in results] == ["q0", "q1"]
    assert (results[1].status, results[1].correct, results[1].option_log_probabilities) == (TRUNCATED, False, ())


def test_a_prompt_that_fits_exactly_is_scored() -> None:
    items = make_items(1)
    n_needed = len(ToyEngine().tokenize(items[0][1].context)) + 1  # " A" is two tokens of a byte tokenizer
    assert next(score_samples(ToyEngine(n_context=n_needed), items)).status == "ok"
    assert next(score_samples(ToyEngine(n_context=n_needed - 1), items)).status == TRUNCATED


def test_nan_from_an_engine_names_the_sample() -> None:
    class Poisoned(ToyEngine):
        def _row(self, tokens: Sequence[int]) -> Logits:
            return super()._row(tokens) * np.float32("nan")

    with pytest.raises(EngineError, match="sample q0: the model returned"):
        list(score_samples(Poisoned(), make_items(1)))


def test_all_questions_go_to_the_engine_in_one_call() -> None:
    class Counting(ToyEngine):
        n_calls = 0

        def logits(self, requests: Sequence[LogitsRequest]) -> Iterator[Logits]:
            Counting.n_calls += 1
            return super().logits(requests)

    list(score_samples(Counting(), make_items(5)))
    assert Counting.n_calls == 1
