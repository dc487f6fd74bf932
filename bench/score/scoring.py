"""Logits -> log-probabilities of the options -> scored samples. The one log-softmax that all measurements use.

Tokens are cut into context and continuation as lm-evaluation-harness does, so that equal models give equal numbers:
lm_eval/api/model.py, TemplateLM._encode_pair, and models/huggingface.py, HFLM._loglikelihood_tokens.
Departure: the harness cuts a prompt that does not fit from the left and scores what remains; here such a sample is
`truncated` and counts as wrong.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from bench.ask.question import Prompt, Sample
from bench.score.distributions import Distribution, compact
from bench.settings import MAX_TOKENS
from medlite.engines.engine import Logits, LogitsEngine, LogitsRequest
from medlite.errors import EngineError

Tokens = tuple[int, ...]
Tokenize = Callable[[str], list[int]]

OK, TRUNCATED, FAILED, UNPARSED = "ok", "truncated", "failed", "unparsed"
NO_PREDICTION = -1


@dataclass(frozen=True)
class ScoredSample:
    """One answered question. option_log_probabilities: nats, summed over an option's tokens; empty unless status ok.

    prediction: index of the option chosen, NO_PREDICTION unless status is ok. distribution: next-token distribution
    at the answer position, where the option's first token is due. text: the reply, in the chat protocol; of a
    failed sample the reason.
    question, options: kept so that a report made elsewhere can show which questions turned.
    """

    id: str
    prompt_sha256: str
    cluster: str
    subject: str
    option_log_probabilities: tuple[float, ...]
    prediction: int
    answer: int
    status: str
    n_prompt_tokens: int
    true_options: tuple[int, ...] = ()
    distribution: Distribution | None = None
    text: str = ""
    question: str = ""
    options: tuple[str, ...] = ()

    @property
    def correct(self) -> bool:
        """Whether the predicted option is right; a sample that is not `ok` never is."""
        return self.status == OK and (self.prediction == self.answer or self.prediction in self.true_options)


@dataclass(frozen=True)
class Encoded:
    """A prompt as token ids: the context, and each continuation without it."""

    context: Tokens
    continuations: tuple[Tokens, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of the longest sequence that the model must read: the last token of a continuation is only scored."""
        return len(self.context) + max(len(c) for c in self.continuations) - 1


@dataclass(frozen=True)
class Plan:
    """Which logits a sample needs: continuation i is read from rows 0, 1, ... of requests[request_of[i]]."""

    requests: tuple[LogitsRequest, ...]
    request_of: tuple[int, ...]


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Log-probabilities in nats, float64. logits: (..., n_vocab). Raises EngineError if any is not finite."""
    wide = logits.astype(np.float64)
    if not np.isfinite(wide).all():
        raise EngineError(
            f"the model returned {int((~np.isfinite(wide)).sum())} logits that are NaN or infinite",
            hint="the file may be damaged, or its number type overflows on this device",
        )
    shifted = wide - wide.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def encode_pair(tokenize: Tokenize, context: str, continuation: str) -> tuple[Tokens, Tokens]:
    """Token ids of the context and of what the continuation adds. Source: lm_eval TemplateLM._encode_pair.

    Spaces at the end of the context move to the continuation. The whole text is tokenized at once and cut at the
    length of the tokenized context, even where the two disagree about the tokens before the cut.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    whole, head = tokenize(stripped + continuation), tokenize(stripped)
    if not head or len(whole) <= len(head):
        raise EngineError(f"the continuation {continuation!r} adds no token to the prompt's {len(head)}")
    return tuple(head), tuple(whole[len(head) :])


def encode(tokenize: Tokenize, prompt: Prompt) -> Encoded:
    """The prompt as token ids; the context is tokenized once."""
    once = cache(tokenize)
    pairs = [encode_pair(once, prompt.context, continuation) for continuation in prompt.continuations]
    return Encoded(pairs[0][0], tuple(tokens for _, tokens in pairs))


def plan_requests(encoded: Encoded) -> Plan:
    """The fewest sequences that serve all continuations: one, when each is a single token.

    A continuation whose tokens, all but the last, begin another's is read from the other's sequence.
    """
    requests: list[LogitsRequest] = []
    request_of = [0] * len(encoded.continuations)
    by_length = sorted(range(len(request_of)), key=lambda i: -len(encoded.continuations[i]))
    first = len(encoded.context) - 1
    for i in by_length:
        tokens = encoded.context + encoded.continuations[i][:-1]
        for index, request in enumerate(requests):
            if request.tokens[: len(tokens)] == tokens:
                request_of[i] = index
                break
        else:
            request_of[i] = len(requests)
            requests.append(LogitsRequest(tokens, tuple(range(first, len(tokens)))))
    return Plan(tuple(requests), tuple(request_of))


def predict(log_probabilities: Sequence[float], lengths: Sequence[int]) -> int:
    """Index of the greatest log-probability, divided by `lengths` where given; the lowest index among equals."""
    scores = np.asarray(log_probabilities, dtype=np.float64)
    if lengths:
        scores = scores / np.asarray(lengths, dtype=np.float64)
    return int(np.argmax(scores))


def score_samples(
    engine: LogitsEngine, items: Sequence[tuple[Sample, Prompt]], *, max_tokens: int = MAX_TOKENS
) -> Iterator[ScoredSample]:
    """One scored sample for each item, in order. max_tokens: see `distributions.compact`.

    All requests go to the engine in one call, so that it shares prefixes across questions (few-shot examples).
    Raises EngineError naming the sample if its logits are not finite.
    """
    encoded = [encode(engine.tokenize, prompt) for _, prompt in items]
    fits = [e.n_tokens <= engine.info.n_context for e in encoded]
    plans = [plan_requests(e) if ok else Plan((), ()) for e, ok in zip(encoded, fits, strict=True)]
    logits = engine.logits([request for plan in plans for request in plan.requests])
    for (sample, prompt), tokens, plan in zip(items, encoded, plans, strict=True):
        if not plan.requests:
            yield unanswered(sample, prompt, TRUNCATED, len(tokens.context))
            continue
        try:
            rows = [log_softmax(next(logits)) for _ in plan.requests]
        except EngineError as error:
            raise type(error)(f"sample {sample.id}: {error}", hint=error.hint) from error
        sums = tuple(
            float(sum(rows[plan.request_of[i]][row, token] for row, token in enumerate(continuation)))
            for i, continuation in enumerate(tokens.continuations)
        )
        yield replace(
            answered(sample, prompt, len(tokens.context), predict(sums, prompt.lengths), sums),
            distribution=compact(rows[0][0], max_tokens),
        )


def answered(
    sample: Sample, prompt: Prompt, n_prompt_tokens: int, prediction: int, log_probabilities: Sequence[float] = ()
) -> ScoredSample:
    """A sample whose option `prediction` was chosen. log_probabilities: nats of each option, where they are known."""
    return replace(
        unanswered(sample, prompt, OK, n_prompt_tokens),
        prediction=prediction,
        option_log_probabilities=tuple(log_probabilities),
    )


def unanswered(sample: Sample, prompt: Prompt, status: str, n_prompt_tokens: int, text: str = "") -> ScoredSample:
    """A sample without a prediction: it counts as wrong and stays in the record."""
    return ScoredSample(
        id=sample.id,
        prompt_sha256=prompt.sha256,
        cluster=sample.cluster,
        subject=sample.subject,
        option_log_probabilities=(),
        prediction=NO_PREDICTION,
        answer=sample.answer,
        status=status,
        n_prompt_tokens=n_prompt_tokens,
        true_options=sample.true_options,
        text=text,
        question=sample.question,
        options=sample.options,
    )
