"""KL divergence and probability changes over a text, token by token, by llama-perplexity's definitions.

Source: llama.cpp tools/perplexity/perplexity.cpp, function kl_divergence(). The baseline's distributions wait in a file
while the candidate runs, so that one model is in memory at a time and memory does not grow with the text. Kept are all
tokens as float32 (exact), where llama-perplexity rounds to 16 bits and leaves out what is below exp(-16); or, of a long
text, the most probable ones and sums over the rest (`bench.score.distributions`): KL is then a lower bound with its
gap.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bench.score.distributions import compact
from bench.text.perplexity import Chunks, Floats
from medlite.errors import RecordError

MAX_TOKENS = 1024  # kept of each distribution of a long text: 8 kB a token
WHOLE_BYTES = 4 << 30  # whole distributions are kept where they take no more on disk
LOOSE = 0.1  # a KL that may be higher by more than this share is called a bound
QUANTILES = (0.0, 0.001, 0.01, 0.05, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens with its standard error, tokens taken as independent."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class TextDistance:
    """How far a candidate is from its baseline on one text; definitions in bench/README.md.

    kl: nats a token. kl_gap: by how much its mean may be too low; 0 if exact. kl_quantiles, delta_p_quantiles: at
    QUANTILES. delta_p: candidate's minus baseline's probability of the text's token, a fraction. rms_delta_p: root of
    its mean square. same_top: share of tokens at which both rank the same token first. log_ratio: ln of the ratio of
    perplexities.
    """

    n_tokens: int
    exact: bool
    kl: Estimate
    kl_gap: float
    kl_quantiles: tuple[float, ...]
    same_top: Estimate
    delta_p: Estimate
    delta_p_quantiles: tuple[float, ...]
    rms_delta_p: Estimate
    log_ratio: Estimate

    @property
    def is_loose(self) -> bool:
        """Whether the bounds of the mean KL lie so far apart that it is no estimate."""
        return self.kl_gap > LOOSE * abs(self.kl.value)


@dataclass(frozen=True)
class Kept:
    """One distribution of the baseline. ids: None where all tokens are kept, in the order of the vocabulary.

    log_probabilities: of the kept ones, nats. tail_mass, tail_plogp: sums of p and of p ln p over the others.
    """

    ids: NDArray[np.uint32] | None
    log_probabilities: NDArray[np.float32]
    tail_mass: float = 0.0
    tail_plogp: float = 0.0

    @property
    def top_token(self) -> int:
        """The most probable token; the lowest id among equals."""
        return int(self.log_probabilities.argmax()) if self.ids is None else int(self.ids[0])


class BaselineWriter:
    """Writes a baseline's distributions block by block. To be used in a `with` block. max_tokens 0: all, exactly."""

    def __init__(self, path: Path, cut: Chunks, n_vocab: int, max_tokens: int) -> None:
        self.max_tokens = max_tokens if 0 < max_tokens < n_vocab else 0
        self._handle = path.open("wb")
        self._save(np.frombuffer(bytes.fromhex(cut.sha256), dtype=np.uint8))
        self._save(np.asarray([n_vocab, self.max_tokens, len(cut.pieces) * cut.blocks_per_chunk], dtype=np.int64))

    def add(self, log_probabilities: Floats, nats: Floats) -> None:
        """One block. log_probabilities: (n, n_vocab); nats: (n,) -ln p of the text's tokens."""
        self._save(nats)
        if not self.max_tokens:
            self._save(log_probabilities.astype(np.float32))
            return
        rows = [compact(row, self.max_tokens) for row in log_probabilities]
        self._save(np.cumsum([0, *(row.token_ids.size for row in rows)]))
        self._save(np.concatenate([row.token_ids for row in rows]))
        self._save(np.concatenate([row.log_probabilities for row in rows]))
        self._save(np.asarray([(row.tail_mass, row.tail_plogp) for row in rows]))

    def _save(self, array: NDArray[Any]) -> None:
        np.save(self._handle, array, allow_pickle=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()


def read_baseline(path: Path, cut: Chunks, n_vocab: int) -> Iterator[tuple[Floats, list[Kept]]]:
    """Block by block what `BaselineWriter` wrote: every token's -ln p, and its distribution.

    Raises RecordError if the baseline cut the text into other tokens or has another vocabulary.
    """
    with path.open("rb") as handle:
        digest = np.load(handle, allow_pickle=False).tobytes().hex()
        n_base_vocab, max_tokens, n_blocks = (int(value) for value in np.load(handle, allow_pickle=False))
        if n_base_vocab != n_vocab:
            raise RecordError(f"no KL: vocabularies of {n_base_vocab} and {n_vocab} tokens")
        if digest != cut.sha256:
            raise RecordError("no KL: the models cut the text into other tokens")
        for _ in range(n_blocks):
            nats = np.load(handle, allow_pickle=False)
            if not max_tokens:
                yield nats, [Kept(None, row) for row in np.load(handle, allow_pickle=False)]
                continue
            borders, ids, logp, sums = (np.load(handle, allow_pickle=False) for _ in range(4))
            rows = zip(borders, borders[1:], sums, strict=False)
            yield nats, [Kept(ids[a:b], logp[a:b], float(mass), float(plogp)) for a, b, (mass, plogp) in rows]


def kl_of_token(base: Kept, log_q: Floats) -> tuple[float, float]:
    """Lower and upper bound of KL(baseline || candidate) in nats; equal if all tokens are kept. log_q: (n_vocab,).

    Lower: the tokens that are not kept are lumped into one. Upper: each has the candidate's least probability.
    """
    log_p = base.log_probabilities.astype(np.float64)
    p = np.exp(log_p)
    if base.ids is None:
        value = float((p * (log_p - log_q)).sum())
        return value, value
    q_kept = log_q[base.ids]
    shared = float((p * (log_p - q_kept)).sum())
    if base.tail_mass <= 0.0:
        return shared, shared
    q_rest = max(1.0 - float(np.exp(q_kept).sum()), float(np.finfo(np.float64).tiny))
    lower = shared + base.tail_mass * math.log(base.tail_mass / q_rest)
    return lower, max(lower, shared + base.tail_plogp - base.tail_mass * float(log_q.min()))


class Differences:
    """Collects what differs at each token, and sums it up."""

    def __init__(self) -> None:
        self._rows: list[Floats] = []

    def add(self, base: Sequence[Kept], base_nats: Floats, log_q: Floats, nats: Floats) -> None:
        """One block. log_q: (n, n_vocab) of the candidate; nats: (n,)."""
        bounds = [kl_of_token(one, row) for one, row in zip(base, log_q, strict=True)]
        same = [one.top_token == int(row.argmax()) for one, row in zip(base, log_q, strict=True)]
        self._rows.append(np.column_stack([bounds, same, np.exp(-nats) - np.exp(-base_nats), nats - base_nats]))

    def distance(self) -> TextDistance:
        """The means over all tokens. exact where no upper bound lies above its lower one."""
        lower, upper, same, delta, ratio = np.concatenate(self._rows).T
        square = mean_of(delta**2)
        rms = math.sqrt(square.value)
        top = float(same.mean())
        return TextDistance(
            n_tokens=lower.size,
            exact=bool((upper == lower).all()),
            kl=mean_of(lower),
            kl_gap=float((upper - lower).mean()),
            kl_quantiles=quantiles(lower),
            same_top=Estimate(top, math.sqrt(top * (1 - top) / max(same.size - 1, 1))),
            delta_p=mean_of(delta),
            delta_p_quantiles=quantiles(delta),
            rms_delta_p=Estimate(rms, 0.5 / rms * square.standard_error if rms else 0.0),
            log_ratio=mean_of(ratio),
        )


def mean_of(values: Floats) -> Estimate:
    """Mean and standard error: sqrt(variance / (n - 1)), the variance divided by n as llama-perplexity does."""
    return Estimate(float(values.mean()), math.sqrt(float(values.var()) / max(values.size - 1, 1)))


def quantiles(values: Floats) -> tuple[float, ...]:
    """The values at QUANTILES, interpolated linearly."""
    return tuple(float(value) for value in np.quantile(values, QUANTILES))


def tokens_to_keep(cut: Chunks, n_vocab: int, max_tokens: int) -> int:
    """max_tokens, or 0 (all) where that takes at most WHOLE_BYTES on disk."""
    return 0 if baseline_bytes(cut, n_vocab, 0) <= WHOLE_BYTES else max_tokens


def baseline_bytes(cut: Chunks, n_vocab: int, max_tokens: int) -> int:
    """Most bytes that the file of a baseline takes."""
    a_token = 4 * n_vocab if not 0 < max_tokens < n_vocab else 8 * max_tokens + 24
    return len(cut.pieces) * cut.n_scored * (a_token + 8)
