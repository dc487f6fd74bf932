"""Scoring on a model behind a server, which tells log-probabilities instead of logits.

Invariant: a probability that the server does not tell makes the sample `failed`, with the reason in its text. Requests
of several samples are under way at once; samples come in their order.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from bench.ask.question import Prompt, Sample
from bench.score.chat import score_chat
from bench.score.scoring import FAILED, TRUNCATED, ScoredSample, answered, encode, predict, score_samples, unanswered
from bench.settings import RunSettings
from medlite.engines.engine import AnswersEngine, LogitsEngine
from medlite.errors import ContextError, RefusedError

Item = tuple[Sample, Prompt]


def score_on_server(engine: AnswersEngine, items: Sequence[Item], settings: RunSettings) -> Iterator[ScoredSample]:
    """One scored sample an item, in order, settings.server.n_parallel at once."""
    with ThreadPoolExecutor(max_workers=settings.server.n_parallel) as pool:
        try:
            yield from pool.map(lambda item: score_one(engine, item, settings), items)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def score_one(engine: AnswersEngine, item: Item, settings: RunSettings) -> ScoredSample:
    """One scored sample: failed where the server refuses or does not tell, truncated where the prompt is too long."""
    sample, prompt = item
    try:
        if settings.prompting.protocol == "chat":
            return next(score_chat(engine, [item], reply_tokens=settings.reply_tokens))
        if isinstance(engine, LogitsEngine):
            return next(score_samples(engine, [item], max_tokens=settings.max_tokens))
        if not engine.has_tokenizer:
            sums, n_tokens = engine.text_log_probabilities(prompt.context, prompt.continuations)
        else:
            encoded = encode(engine.tokenize, prompt)
            n_tokens = len(encoded.context)
            if encoded.n_tokens > engine.info.n_context:
                return unanswered(sample, prompt, TRUNCATED, n_tokens)
            sums = engine.log_probabilities(encoded.context, encoded.continuations)
    except ContextError as error:
        return unanswered(sample, prompt, TRUNCATED, 0, str(error))
    except RefusedError as error:
        return unanswered(sample, prompt, FAILED, 0, str(error))
    return answered(sample, prompt, n_tokens, predict(sums, prompt.lengths), sums)
