"""llama.cpp's own grammar sampler: the oracle of ours."""

import ctypes

import numpy as np

from medlite.engines.llamacpp.native import Model
from medlite.native import library

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama.h, llama_token_data


class LlamaGrammar:
    """A GBNF grammar after the tokens that were accepted. llama.cpp takes bytes that are no UTF-8: they are refused."""

    def __init__(self, model: Model, text: str) -> None:
        self._words, self._pending = model.vocabulary, b""
        self._pointer = library().llama_sampler_init_grammar(model.vocabulary.pointer, text.encode(), b"root")
        assert self._pointer
        self._array = library().llama_token_data_array()

    def allows(self, token: int) -> bool:
        piece = self._words.piece(token)
        if not (self._words.is_end(token) and not self._pending) and (not piece or self._unfinished(piece) is None):
            return False
        candidate = np.zeros(1, dtype=CANDIDATE)
        candidate["id"] = token
        self._array.data = ctypes.cast(candidate.ctypes.data, library().llama_token_data_p)
        self._array.size, self._array.selected, self._array.sorted = 1, -1, False
        library().llama_sampler_apply(self._pointer, ctypes.byref(self._array))
        return bool(candidate["logit"][0] == 0)

    def accept(self, token: int) -> None:
        library().llama_sampler_accept(self._pointer, token)
        self._pending = self._unfinished(self._words.piece(token)) or b""

    def free(self) -> None:
        library().llama_sampler_free(self._pointer)

    def _unfinished(self, piece: bytes) -> bytes | None:
        """The bytes at the end that begin a character; None if they can never become UTF-8."""
        raw = self._pending + piece
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            return raw[error.start :] if error.reason == "unexpected end of data" else None
        return b""
