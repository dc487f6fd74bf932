"""A reply held to a GBNF grammar by llama.cpp's own grammar sampler, and to valid UTF-8.

A token that the model likes is checked alone, which takes microseconds; only when the grammar rejects it are others
looked at: the likeliest first, and the whole vocabulary (some milliseconds at 128k tokens) where those do not suffice.
llama.cpp takes the name of a control token for text, and bytes that are no character for one: both are refused here.
"""

import ctypes

import numpy as np
from numpy.typing import NDArray

from medlite.engines.gbnf import ROOT, check_gbnf
from medlite.engines.llamacpp.native import Model
from medlite.native import failure, library

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama.h, llama_token_data
FEW_TOKENS = 1024  # more are looked up in a table, which takes 0.3 s to make at 128k tokens


class Grammar:
    """A `sampler.Constraint`: the state of a grammar after the tokens that were accepted. Free it after use."""

    def __init__(self, model: Model, text: str) -> None:
        """Raises EngineError, with the line, for a grammar that is wrong."""
        check_gbnf(text)
        native = library()
        self._model, self._pending = model, b""  # the first bytes of a character that is not whole yet
        self.pointer = native.llama_sampler_init_grammar(model.vocabulary.pointer, text.encode(), ROOT.encode())
        if not self.pointer:
            raise failure("llama.cpp does not take the grammar", "a simpler one, with fewer repetitions, may do")
        self._array = native.llama_token_data_array()

    def allows(self, token: int) -> bool:
        return bool(self.allowed(np.array([token]))[0])

    def allowed(self, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each token whether it may come next. Raises nothing; the state stays."""
        native = library()
        candidates = np.zeros(len(tokens), dtype=CANDIDATE)
        candidates["id"] = tokens
        self._array.data = ctypes.cast(candidates.ctypes.data, native.llama_token_data_p)
        self._array.size, self._array.selected, self._array.sorted = len(tokens), -1, False
        native.llama_sampler_apply(self.pointer, ctypes.byref(self._array))
        allowed: NDArray[np.bool_] = candidates["logit"] == 0
        if not self._pending and len(tokens) > FEW_TOKENS:
            return allowed & text_tokens(self._model)[tokens]
        for slot in np.flatnonzero(allowed):
            allowed[slot] = self._writes_text(int(tokens[slot]))
        return allowed

    def _writes_text(self, token: int) -> bool:
        if self._model.vocabulary.is_end(token):
            return not self._pending
        piece = self._model.vocabulary.piece(token)
        return bool(piece) and unfinished(self._pending + piece) is not None

    def accept(self, token: int) -> None:
        """Move on by a token that is allowed; llama.cpp would end the process for another."""
        library().llama_sampler_accept(self.pointer, token)
        self._pending = unfinished(self._pending + self._model.vocabulary.piece(token)) or b""

    def free(self) -> None:
        if self.pointer:
            library().llama_sampler_free(self.pointer)
            self.pointer = None


def text_tokens(model: Model) -> NDArray[np.bool_]:
    """Which tokens may begin a text or end it; made once for each model."""
    if model.text_tokens is None:
        words = model.vocabulary
        pieces = ((token, words.piece(token)) for token in range(words.n_tokens))
        model.text_tokens = np.fromiter(
            ((bool(piece) and unfinished(piece) is not None) or words.is_end(token) for token, piece in pieces),
            dtype=np.bool_,
            count=words.n_tokens,
        )
    return model.text_tokens


def unfinished(raw: bytes) -> bytes | None:
    """The bytes at the end of `raw` that begin a character; None if `raw` can never become UTF-8."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        rest = raw[error.start :]
        # "unexpected end of data" is the only reason that more bytes can mend
        return rest if error.reason == "unexpected end of data" else None
    return b""
