"""Perplexity over a text file, as llama-perplexity defines it, and the paired difference between two models.

Source: llama.cpp tools/perplexity/perplexity.cpp, function perplexity(): the text is tokenized once with its first
token, cut into chunks of n_context tokens (what remains is left out), each chunk's first token is replaced by the one
that begins a text, and the second half of each chunk is scored. KL between two models: `bench.text.distance`.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.intervals import Interval, bootstrap_mean
from bench.run.record import ArtifactFacts
from bench.score.scoring import log_softmax
from medlite.engines.engine import LogitsEngine, LogitsRequest
from medlite.errors import RecordError, TaskError

N_CONTEXT = 512  # llama-perplexity's default, and that of published tables
BLOCK_ROWS = 32  # distributions held as float64 at once: 33 MB each array at 128,256 tokens

Floats = NDArray[np.float64]


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


@dataclass(frozen=True)
class Chunks:
    """A text in tokens. pieces: n_context tokens each, the first of which begins a text where the model has one."""

    n_context: int
    pieces: tuple[tuple[int, ...], ...]

    @property
    def first_scored(self) -> int:
        """The position whose logits predict the first scored token."""
        return self.n_context // 2

    @property
    def n_scored(self) -> int:
        """Scored tokens of a chunk."""
        return self.n_context - 1 - self.first_scored

    @property
    def blocks_per_chunk(self) -> int:
        """Blocks of BLOCK_ROWS tokens that a chunk's scored tokens make."""
        return -(-self.n_scored // BLOCK_ROWS)

    @property
    def sha256(self) -> str:
        """Digest of the tokens: equal for two models only if they cut the text alike."""
        return hashlib.sha256(np.asarray(self.pieces, dtype="<i4").tobytes()).hexdigest()

    def targets(self, index: int) -> NDArray[np.int64]:
        """The scored tokens of one chunk, (n_scored,)."""
        return np.asarray(self.pieces[index][self.first_scored + 1 :], dtype=np.int64)


def read_text(path: Path) -> tuple[str, str]:
    """The text without the newline at its end, as llama-perplexity -f takes it, and the file's SHA-256.

    Raises TaskError if it cannot be read as UTF-8.
    """
    try:
        raw = path.read_bytes()
        return raw.decode("utf-8").removesuffix("\n"), hashlib.sha256(raw).hexdigest()
    except OSError as error:
        raise TaskError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def chunks(engine: LogitsEngine, text: str, n_context: int) -> Chunks:
    """The text's tokens in chunks of n_context. Raises TaskError if there are fewer than two."""
    tokens = engine.tokenize(text)
    first = engine.tokenize("")[:1]  # the token that begins a text, where the model has one
    found = tuple(
        tuple(first + tokens[i + len(first) : i + n_context]) for i in range(0, len(tokens) - n_context + 1, n_context)
    )
    if len(found) < 2:
        raise TaskError(f"the text has {len(tokens)} tokens, {2 * n_context} are needed", hint="--context with less")
    return Chunks(n_context, found)


def scored_blocks(engine: LogitsEngine, cut: Chunks) -> Iterator[tuple[Floats, NDArray[np.int64]]]:
    """Log-probabilities at the scored tokens, (n, n_vocab) nats, and these tokens (n,), at most BLOCK_ROWS at once.

    cut.blocks_per_chunk of them make up a chunk.
    """
    positions = tuple(range(cut.first_scored, cut.n_context - 1))
    for index, logits in enumerate(engine.logits([LogitsRequest(piece, positions) for piece in cut.pieces])):
        targets = cut.targets(index)
        for start in range(0, cut.n_scored, BLOCK_ROWS):
            yield log_softmax(logits[start : start + BLOCK_ROWS]), targets[start : start + BLOCK_ROWS]


def nats_of(log_probabilities: Floats, targets: NDArray[np.int64]) -> Floats:
    """-ln p of the targets. log_probabilities: (n, n_vocab); targets: (n,)."""
    found: Floats = -log_probabilities[np.arange(targets.size), targets]
    return found


def text_score(facts: ArtifactFacts, cut: Chunks, text_sha256: str, nats: Floats) -> TextScore:
    """The score from every scored token's -ln p, chunk after chunk. nats: (n_chunks * n_scored,)."""
    nats = nats.reshape(len(cut.pieces), cut.n_scored)
    return TextScore(
        artifact=facts,
        n_context=cut.n_context,
        n_scored=cut.n_scored,
        text_sha256=text_sha256,
        chunk_nats=tuple(float(mean) for mean in nats.mean(axis=1)),
        token_variance=float(nats.var()),
    )


def paired_difference(baseline: TextScore, candidate: TextScore, *, seed: int = 0) -> Interval:
    """Mean of candidate's minus baseline's -ln p, in nats a token; chunks are resampled. Positive: candidate is worse.

    Raises RecordError if the two did not score the same chunks of the same text.
    """
    for what in ("text_sha256", "n_context", "n_scored"):
        if getattr(baseline, what) != getattr(candidate, what):
            raise RecordError(
                f"the scores cannot be compared: {what} {getattr(baseline, what)} against {getattr(candidate, what)}"
            )
    if len(baseline.chunk_nats) != len(candidate.chunk_nats):
        raise RecordError(
            f"the scores cannot be compared: {len(baseline.chunk_nats)} chunks against "
            f"{len(candidate.chunk_nats)}: the models cut the text into other tokens"
        )
    differences = np.asarray(candidate.chunk_nats) - np.asarray(baseline.chunk_nats)
    return bootstrap_mean(differences, [str(i) for i in range(differences.size)], seed=seed)
