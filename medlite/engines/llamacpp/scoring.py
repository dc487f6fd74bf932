"""Logits of many sequences through llama.cpp's batch API, each shared token read once.

Requests are taken in windows, sorted into a trie, and each wave of it is decoded with every shared token read once
(`prefix.py`). Nothing of an earlier call stays in the cache, so the same requests give the same bits.

On a CPU flash attention sums in half precision where a decode has fewer than EXACT_ROWS tokens. A short decode is
filled up with tokens of a sequence of their own, so that every log-probability comes from sums in single precision.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from medlite.engines import prefix
from medlite.engines.engine import EngineInfo, Logits, LogitsRequest
from medlite.engines.llamacpp.memory import EXACT_ROWS, MAX_SEQUENCES
from medlite.engines.llamacpp.sequence import ResidentSequence
from medlite.engines.requests import windows

FILLING = MAX_SEQUENCES - 1  # the sequence of the tokens that fill up a decode


class Scorer:
    """Reads requests in waves. It uses every sequence of the context, and leaves it as the last wave left it."""

    def __init__(self, resident: ResidentSequence, info: EngineInfo) -> None:
        self._resident, self._info = resident, info
        context = resident.context
        self._n_cells, self._n_batch, self._n_outputs = context.n_cells, context.n_batch, context.n_outputs

    def logits(self, requests: Sequence[LogitsRequest]) -> Iterator[Logits]:
        """One array (len(positions), n_vocab) per request. The context must be empty."""
        resident: list[prefix.Ids] = []  # by sequence id, what the previous wave left in the cache
        for window in windows(requests, self._info.n_vocab):
            branches, index = prefix.distinct_sequences(window)
            rows: list[Logits] = []
            while len(rows) < len(branches):
                new_rows, resident = self._decode_wave(branches[len(rows) :], resident)
                rows += new_rows
            for request, i in zip(window, index, strict=True):
                yield rows[i][np.searchsorted(branches[i].wanted, request.positions)]

    def _decode_wave(
        self, branches: list[prefix.Branch], resident: list[prefix.Ids]
    ) -> tuple[list[Logits], list[prefix.Ids]]:
        """Logits of as many leading `branches` as one wave takes, and the tokens now in the cache by sequence."""
        kept = self._keep_best(branches[0], resident)
        n_most = FILLING - 1 if self._resident.model.can_rewind else 1
        wave = prefix.plan_wave(
            branches, kept, max_sequences=n_most, max_tokens=min(self._n_batch, self._n_cells - len(kept) - EXACT_ROWS)
        )
        n = len(wave.n_kept)
        for i, n_shared in enumerate(wave.n_kept):
            if n_shared:
                self._resident.context.copy(0, i + 1, n_shared)
        values = np.empty((int(wave.wanted.sum()), self._info.n_vocab), dtype=np.float32)
        row_of = np.cumsum(wave.wanted) - 1
        for start, end in self._chunks(wave):
            self._decode(wave, start, end)
            for slot in np.flatnonzero(wave.wanted[start:end]):
                values[row_of[start + slot]] = self._resident.context.logits_at(int(slot))
        rows = [values[row_of[slots]] for slots in wave.slots]
        return rows, [kept, *(branch.tokens for branch in branches[:n])]

    def _decode(self, wave: prefix.Wave, start: int, end: int) -> None:
        """Read one slice of the wave, filled up to EXACT_ROWS tokens."""
        part = slice(start, end)
        members = wave.members[part] + 1
        n_fill = max(EXACT_ROWS - (end - start), 0) if self._resident.model.can_rewind else 0
        if not n_fill:
            self._resident.batch.fill(wave.tokens[part], wave.positions[part], wave.wanted[part], members)
            self._resident.decode()
            return
        self._resident.batch.fill(
            np.append(wave.tokens[part], np.repeat(wave.tokens[start], n_fill)),
            np.append(wave.positions[part], np.arange(n_fill, dtype=np.int32)),
            np.append(wave.wanted[part], np.zeros(n_fill, dtype=np.bool_)),
            np.append(members, np.tile([[FILLING, FILLING + 1]], (n_fill, 1)), axis=0),
        )
        self._resident.decode()
        self._resident.context.remove(FILLING)

    def _keep_best(self, first: prefix.Branch, resident: list[prefix.Ids]) -> prefix.Ids:
        """Cut the cache down to the longest prefix of `first` in it, as sequence 0, and return that prefix."""
        if not resident or not self._resident.model.can_rewind:
            self._resident.context.clear()
            return np.zeros(0, dtype=np.int32)
        lengths = [prefix.keepable(first, tokens) for tokens in resident]
        best = int(np.argmax(lengths))
        if best != 0:
            self._resident.context.remove(0)
            self._resident.context.copy(best, 0, lengths[best])
        else:
            self._resident.context.remove(0, lengths[0])
        for sequence in range(1, len(resident)):
            self._resident.context.remove(sequence)
        return first.tokens[: lengths[best]]

    def _chunks(self, wave: prefix.Wave) -> Iterator[tuple[int, int]]:
        """Slices of the wave's tokens that one decode takes: at most n_batch tokens and n_outputs wanted rows."""
        counts = np.concatenate([[0], np.cumsum(wave.wanted)])
        start, n = 0, len(wave.tokens)
        while start < n:
            # counts ascends, so this is the last end with at most n_outputs wanted rows
            end = int(np.searchsorted(counts, counts[start] + self._n_outputs, side="right")) - 1
            end = min(end, start + self._n_batch, n)
            yield start, end
            start = end
