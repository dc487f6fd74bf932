"""Which tokens one decode must read when many sequences share prefixes: each shared token once.

Sequences sorted by their tokens form a trie. A token belongs to every sequence below it, and llama.cpp takes tokens
that belong to several sequences under a unified KV cache, so a whole trie fits one decode call.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medlite.engines.engine import LogitsRequest

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Branch:
    """One distinct sequence. wanted: sorted positions whose logits some request asked for."""

    tokens: Ids
    wanted: Ids


@dataclass(frozen=True)
class Wave:
    """Sequences 0..n-1 that are decoded together, on top of `kept` tokens that are in the cache already.

    n_kept: per sequence, how many of the kept tokens it shares; they are not read again.
    tokens, positions: (n_tokens,), in an order that puts every token after the ones it attends to.
    members: per token, the first and one-past-last sequence that it belongs to; always a run, since they are sorted.
    wanted: (n_tokens,) whether its logits are needed. slots: per sequence, the index of the token at each of its
    wanted positions.
    """

    n_kept: tuple[int, ...]
    tokens: Ids
    positions: Ids
    members: NDArray[np.int32]
    wanted: NDArray[np.bool_]
    slots: tuple[Ids, ...]


def shared_length(a: Ids, b: Ids) -> int:
    """How many leading tokens two sequences have in common."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def distinct_sequences(requests: Sequence[LogitsRequest]) -> tuple[list[Branch], list[int]]:
    """The distinct sequences of `requests`, sorted by tokens, and for each request the index of its own."""
    wanted: dict[tuple[int, ...], set[int]] = {}
    for request in requests:
        wanted.setdefault(request.tokens, set()).update(request.positions)
    ordered = sorted(wanted)
    index = {tokens: i for i, tokens in enumerate(ordered)}
    sequences = [
        Branch(np.asarray(tokens, dtype=np.int32), np.asarray(sorted(wanted[tokens]), dtype=np.int32))
        for tokens in ordered
    ]
    return sequences, [index[request.tokens] for request in requests]


def keepable(sequence: Branch, resident: Ids) -> int:
    """How many tokens of `resident` can stay for `sequence`: up to the first whose logits are wanted again."""
    first_wanted = int(sequence.wanted[0]) if len(sequence.wanted) else len(sequence.tokens)
    return min(shared_length(sequence.tokens, resident), first_wanted)


def plan_wave(sequences: Sequence[Branch], kept: Ids, *, max_sequences: int, max_tokens: int) -> Wave:
    """The wave of as many leading `sequences` as fit; at least one, however long it is.

    sequences: sorted, distinct. kept: a prefix of the first one, shorter than its first wanted position.
    """
    n_kept: list[int] = []
    shared: list[int] = []  # with the sequence before
    n_new = 0
    for i, sequence in enumerate(sequences[:max_sequences]):
        in_kept = shared_length(sequence.tokens, kept)
        with_previous = shared_length(sequence.tokens, sequences[i - 1].tokens) if i else 0
        added = len(sequence.tokens) - max(in_kept, with_previous)
        if i and (n_new + added > max_tokens or keepable(sequence, kept) < in_kept):
            break
        n_kept.append(in_kept)
        shared.append(with_previous)
        n_new += added
    return _build(sequences[: len(n_kept)], n_kept, shared)


def _build(sequences: Sequence[Branch], n_kept: list[int], shared: list[int]) -> Wave:
    n = len(sequences)
    tokens: list[Ids] = []
    positions: list[Ids] = []
    members: list[NDArray[np.int32]] = []
    slot_of = np.zeros(max(len(s.tokens) for s in sequences), dtype=np.int32)  # of the current sequence, by position
    slots: list[Ids] = []
    n_tokens = 0
    for i, sequence in enumerate(sequences):
        start, end = max(n_kept[i], shared[i]), len(sequence.tokens)
        last = np.full(end - start, i + 1, dtype=np.int32)
        run = end
        for j in range(i + 1, n):
            run = min(run, shared[j])
            if run <= start:
                break
            last[: run - start] = j + 1
        tokens.append(sequence.tokens[start:])
        positions.append(np.arange(start, end, dtype=np.int32))
        members.append(np.stack([np.full(end - start, i, dtype=np.int32), last], axis=1))
        slot_of[start:end] = np.arange(n_tokens, n_tokens + end - start, dtype=np.int32)
        n_tokens += end - start
        slots.append(slot_of[sequence.wanted])
    wanted = np.zeros(n_tokens, dtype=np.bool_)
    wanted[np.concatenate(slots)] = True
    return Wave(
        tuple(n_kept), np.concatenate(tokens), np.concatenate(positions), np.concatenate(members), wanted, tuple(slots)
    )
