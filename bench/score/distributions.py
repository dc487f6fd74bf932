"""Next-token distributions kept compactly, and KL divergence between two of them with its error bound.

A full distribution of a 128,256-token vocabulary is 513 kB a question. Kept are the most probable tokens, until what is
left out (the tail) weighs at most TAIL_MASS or `max_tokens` are kept, and three sums over what is left out. From two
such summaries KL(P || Q) follows within a stated interval; with nothing left out, exactly.
"""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.settings import MAX_TOKENS
from medlite.engines.sampler import top_tokens
from medlite.errors import RecordError

TAIL_MASS = 1e-5
MIN_TOKENS = 16


@dataclass(frozen=True)
class Distribution:
    """A distribution over n_vocab tokens: the most probable ones, and sums over the tail.

    token_ids, log_probabilities (nats): (n_kept,), most probable first. tail_mass: probability of the tokens left out.
    tail_plogp: sum of p ln p over them, in nats. min_log_probability: the least ln p of the whole vocabulary.
    """

    token_ids: NDArray[np.uint32]
    log_probabilities: NDArray[np.float32]
    tail_mass: float
    tail_plogp: float
    min_log_probability: float
    n_vocab: int

    @property
    def top_token(self) -> int:
        """The most probable token; the lowest id among equals."""
        return int(self.token_ids[0])


def compact(log_probabilities: NDArray[np.float64], max_tokens: int = MAX_TOKENS) -> Distribution:
    """The summary of one distribution. log_probabilities: (n_vocab,), nats. max_tokens 0 keeps every token (exact)."""
    n_vocab = log_probabilities.shape[0]
    n_kept = n_vocab if max_tokens == 0 else min(max_tokens, n_vocab)
    top = top_tokens(log_probabilities.astype(np.float32), n_kept)
    if max_tokens:
        left_out = 1.0 - np.cumsum(np.exp(log_probabilities[top]))
        enough = int(np.searchsorted(-left_out, -TAIL_MASS)) + 1
        top = top[: max(enough, min(MIN_TOKENS, n_kept))]
    rest = np.delete(log_probabilities, top)
    p_rest = np.exp(rest)
    return Distribution(
        token_ids=top.astype(np.uint32),
        log_probabilities=log_probabilities[top].astype(np.float32),
        tail_mass=float(p_rest.sum()),
        tail_plogp=float((p_rest * rest).sum()),  # not a dot product: BLAS threads stall where cores are shared
        min_log_probability=float(log_probabilities.min()),
        n_vocab=n_vocab,
    )


def kl_bounds(p: Distribution, q: Distribution) -> tuple[float, float]:
    """Lower and upper bound of KL(p || q) in nats; equal when both keep every token.

    Lower: all tokens that are not kept by both are lumped into one, which can only decrease KL (data processing
    inequality, Cover and Thomas 2006, theorem 2.8.1). Upper: each of them is given q's least probability.
    """
    if p.n_vocab != q.n_vocab:
        raise RecordError(f"vocabularies of {p.n_vocab} and {q.n_vocab} tokens: their distributions cannot be compared")
    _, in_p, in_q = np.intersect1d(p.token_ids, q.token_ids, assume_unique=True, return_indices=True)
    log_p, log_q = p.log_probabilities.astype(np.float64), q.log_probabilities.astype(np.float64)
    shared = float((np.exp(log_p[in_p]) * (log_p[in_p] - log_q[in_q])).sum())
    only_p, only_q = np.delete(log_p, in_p), np.delete(log_q, in_q)
    p_rest = p.tail_mass + float(np.exp(only_p).sum())
    q_rest = q.tail_mass + float(np.exp(only_q).sum())
    if p_rest == 0.0:
        return max(shared, 0.0), max(shared, 0.0)
    floor = q.min_log_probability
    upper = shared + float((np.exp(only_p) * (only_p - floor)).sum()) + p.tail_plogp - p.tail_mass * floor
    lower = shared + p_rest * float(np.log(p_rest / max(q_rest, np.finfo(np.float64).tiny)))
    return max(lower, 0.0), max(upper, lower, 0.0)


def to_json(distribution: Distribution) -> dict[str, Any]:
    """A JSON object; arrays as base64 of little-endian uint32 and float32."""
    return {
        "ids": base64.b64encode(distribution.token_ids.astype("<u4").tobytes()).decode(),
        "logp": base64.b64encode(distribution.log_probabilities.astype("<f4").tobytes()).decode(),
        "tail": distribution.tail_mass,
        "tail_plogp": distribution.tail_plogp,
        "min_logp": distribution.min_log_probability,
        "n_vocab": distribution.n_vocab,
    }


def from_json(value: Any, where: str) -> Distribution:
    """The reverse of `to_json`. Raises RecordError naming `where` if the object is not one of ours."""
    try:
        ids = np.frombuffer(base64.b64decode(value["ids"], validate=True), dtype="<u4").astype(np.uint32)
        logp = np.frombuffer(base64.b64decode(value["logp"], validate=True), dtype="<f4").astype(np.float32)
        sums = [float(value[key]) for key in ("tail", "tail_plogp", "min_logp")]
        n_vocab = int(value["n_vocab"])
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{where}: malformed distribution: {error}") from error
    whole = ids.size == logp.size > 0 and np.isfinite(logp).all() and np.isfinite(sums).all()
    if not whole or int(ids.max()) >= n_vocab or np.unique(ids).size != ids.size:
        raise RecordError(f"{where}: distribution with {ids.size} ids, {logp.size} probabilities of {n_vocab} tokens")
    return Distribution(ids, logp, sums[0], sums[1], sums[2], n_vocab)
