"""Perplexity over a text file, as llama-perplexity defines it, and the paired difference between two models.

Source: llama.cpp tools/perplexity/perplexity.cpp, function perplexity(): the text is tokenized once with its first
token, cut into chunks of n_context tokens (what remains is left out), each chunk's first token is replaced by the one
that begins a text, and the second half of each chunk is scored.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.intervals import Interval, bootstrap_mean
from bench.record import ArtifactFacts
from bench.scoring import log_softmax
from medlite.engines.engine import Engine, LogitsRequest
from medlite.errors import RecordError, TaskError

N_CONTEXT = 512  # llama-perplexity's default, and that of published tables


@dataclass(frozen=True)
class TextScore:
    """One model on one text. chunk_nats: mean -ln p of the scored tokens of each chunk; n_scored tokens a chunk."""

    artifact: ArtifactFacts
    n_context: int
    n_scored: int
    text_sha256: str
    chunk_nats: tuple[float, ...]
    token_variance: float

    @property
    def perplexity(self) -> float:
        """exp of the mean -ln p over all scored tokens; lower is better."""
        return math.exp(sum(self.chunk_nats) / len(self.chunk_nats))

    @property
    def standard_error(self) -> float:
        """As llama-perplexity prints it after "+/-": tokens taken as independent, which they are not."""
        n = len(self.chunk_nats) * self.n_scored
        return self.perplexity * math.sqrt(self.token_variance / max(n - 1, 1))


def chunks(engine: Engine, text: str, n_context: int) -> list[tuple[int, ...]]:
    """The text's tokens in chunks of n_context. Raises TaskError if there are fewer than two."""
    tokens = engine.tokenize(text)
    first = engine.tokenize("")[:1]  # the token that begins a text, where the model has one
    found = [tuple(first + tokens[i + len(first) : i + n_context])
             for i in range(0, len(tokens) - n_context + 1, n_context)]
    if len(found) < 2:
        raise TaskError(f"the text has {len(tokens)} tokens, {2 * n_context} are needed", hint="--context with less")
    return found


def token_nats(engine: Engine, text: str, n_context: int) -> Iterator[NDArray[np.float64]]:
    """-ln p of each token in the second half of each chunk, one array (n_context - n_context // 2 - 1,) a chunk."""
    pieces = chunks(engine, text, n_context)
    start = n_context // 2
    requests = [LogitsRequest(piece, tuple(range(start, n_context - 1))) for piece in pieces]
    for piece, logits in zip(pieces, engine.logits(requests), strict=True):
        rows = log_softmax(logits)
        yield -rows[np.arange(rows.shape[0]), np.asarray(piece[start + 1 :])]


def paired_difference(baseline: TextScore, candidate: TextScore, *, seed: int = 0) -> Interval:
    """Mean of candidate's minus baseline's -ln p, in nats a token; chunks are resampled. Positive: candidate is worse.

    Raises RecordError if the two did not score the same chunks of the same text.
    """
    for what in ("text_sha256", "n_context", "n_scored"):
        if getattr(baseline, what) != getattr(candidate, what):
            raise RecordError(f"the scores cannot be compared: {what} {getattr(baseline, what)} against "
                              f"{getattr(candidate, what)}")
    if len(baseline.chunk_nats) != len(candidate.chunk_nats):
        raise RecordError(f"the scores cannot be compared: {len(baseline.chunk_nats)} chunks against "
                          f"{len(candidate.chunk_nats)}: the models cut the text into other tokens")
    differences = np.asarray(candidate.chunk_nats) - np.asarray(baseline.chunk_nats)
    return bootstrap_mean(differences, [str(i) for i in range(differences.size)], seed=seed)
