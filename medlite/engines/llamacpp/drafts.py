"""Guesses of the next tokens, which the model then reads in one decode instead of one by one.

Two sources: what followed the same words earlier in the text (prompt lookup), and a smaller model of the same
vocabulary. Whether guesses pay depends on how many are right and on what a decode of several tokens costs: on a CPU
four tokens cost about 2.5 times one, so the number of guesses grows while they are right and falls when they are not.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from medlite.engines.engine import EngineInfo, OpenSettings
from medlite.engines.llamacpp.guard import load_model
from medlite.engines.llamacpp.memory import read_shape
from medlite.engines.llamacpp.native import Context, Model
from medlite.engines.llamacpp.place import place
from medlite.engines.llamacpp.sequence import ResidentSequence
from medlite.errors import EngineError
from medlite.formats.gguf import read_header

LOOKUP = "lookup"
MATCH_SIZES = (6, 4, 3)  # tokens that must repeat before what followed them is guessed; the longest match first
FEWEST, MOST = 3, 15  # guesses at once; one decode of 4 or 16 tokens fills the CPU kernels' rows of 4
SURE_ENOUGH = 0.6  # a model guesses on while its token is at least this probable


class Drafter(Protocol):
    """A source of guesses."""

    def propose(self, tokens: Sequence[int], n_most: int) -> list[int]:
        """What may follow `tokens`, at most `n_most` of them; empty where there is no idea."""
        ...

    def free(self) -> None: ...


class GuessLength:
    """How many tokens to guess: twice as many after a round that was all right, as many as were right after another."""

    def __init__(self) -> None:
        self.n = FEWEST
        self._guessed: list[int] = []
        self._at = 0

    def before(self, tokens: Sequence[int], n_most: int) -> int:
        """The number for a guess behind `tokens`, which also tell how the last guess went."""
        n_right = 0
        for guess, token in zip(self._guessed, tokens[self._at :], strict=False):
            if guess != token:
                break
            n_right += 1
        if self._guessed:
            self.n = min(MOST, 2 * self.n + 1) if n_right == len(self._guessed) else max(FEWEST, n_right)
        return min(self.n, n_most)

    def after(self, tokens: Sequence[int], guessed: list[int]) -> list[int]:
        self._guessed, self._at = guessed, len(tokens)
        return guessed


class Lookup:
    """Guesses what followed the last tokens where they stood before."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # some tokens in a row -> where they last ended
        self._length = GuessLength()

    def propose(self, tokens: Sequence[int], n_most: int) -> list[int]:
        n_known = len(self._tokens)
        if list(tokens[:n_known]) != self._tokens:
            self._tokens, self._ends, self._length = [], {}, GuessLength()
            n_known = 0
        n_most = self._length.before(tokens, n_most)
        # The last tokens themselves are entered only with the next call, so they never match themselves.
        for end in range(max(n_known, 1), len(tokens)):
            for size in MATCH_SIZES:
                if size <= end:
                    self._ends[tuple(tokens[end - size : end])] = end
        self._tokens = list(tokens[:-1])
        for size in MATCH_SIZES:
            at = self._ends.get(tuple(tokens[-size:])) if size <= len(tokens) else None
            if at is not None:
                return self._length.after(tokens, list(tokens[at : at + n_most]))
        return self._length.after(tokens, [])

    def free(self) -> None:
        pass


class SmallModel:
    """Guesses the likeliest tokens of another model, for as long as it is sure enough."""

    def __init__(self, model: Model, context: Context, n_context: int) -> None:
        self._model, self._context, self._n_context = model, context, n_context
        self._resident = ResidentSequence(model, context)
        self._length = GuessLength()

    def propose(self, tokens: Sequence[int], n_most: int) -> list[int]:
        n_most = min(self._length.before(tokens, n_most), self._n_context - len(tokens))
        guessed: list[int] = []
        if n_most > 0:
            self._resident.read_prompt(tokens, lambda _read, _total: None, lambda: False)
            slot = self._resident.last_slot
            while True:
                logits = self._context.logits_at(slot)
                token = int(logits.argmax())
                if 1 / float(np.exp(logits - logits[token]).sum()) < SURE_ENOUGH:
                    break
                guessed.append(token)
                if len(guessed) == n_most:
                    break
                self._resident.read([token])
                slot = 0
        return self._length.after(tokens, guessed)

    def free(self) -> None:
        self._context.free()
        self._model.free()


def open_drafter(draft: Path | str, model: Model, info: EngineInfo) -> Drafter:
    """The drafter that `draft` names, for `model`. Raises EngineError if it cannot serve, and as `place` does."""
    if not model.can_rewind:
        raise EngineError(
            f"{info.model_name}: its memory cannot be cut back to the guesses that were right",
            hint="leave --draft out for a recurrent model",
        )
    if draft == LOOKUP:
        return Lookup()
    path = Path(draft)
    shape = read_shape(read_header(path))
    n_context = min(info.n_context, shape.n_context_trained or info.n_context)
    settings = OpenSettings(info.device, n_context, info.n_threads)
    placement = place(shape, settings)
    small = load_model(path, n_gpu_layers=placement.n_gpu_layers)
    try:
        check_same_vocabulary(path, small, model)
        if not small.can_rewind:
            raise EngineError(f"{path}: the memory of a recurrent model cannot be cut back", hint="--draft lookup")
        context = Context(small, placement.n_context, settings)
    except BaseException:
        small.free()
        raise
    return SmallModel(small, context, placement.n_context)


def check_same_vocabulary(path: Path, small: Model, model: Model) -> None:
    """Raise EngineError naming the first difference between the vocabularies of a draft and its model."""
    hint = "a draft must be a smaller model of the same family"
    if small.n_vocab != model.n_vocab:
        raise EngineError(f"{path}: its vocabulary has {small.n_vocab} tokens, the model's {model.n_vocab}", hint=hint)
    for token in range(model.n_vocab):
        theirs, ours = small.vocabulary.text(token), model.vocabulary.text(token)
        if theirs != ours:
            raise EngineError(f"{path}: its token {token} is {theirs!r}, the model's {ours!r}", hint=hint)
