"""llama.cpp as Python objects: its model, context and batches.

llama-cpp-python's high-level class is not used: it keeps n_context x n_vocab logits, and its log-probabilities are slow
and shifted (abetlen/llama-cpp-python issue 1983).
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medlite.devices import physical_cores
from medlite.engines.engine import Logits, OpenSettings
from medlite.engines.llamacpp.memory import KV_TYPES, MAX_SEQUENCES, max_outputs, n_cells_for
from medlite.errors import EngineError
from medlite.formats.gguf import GGML_TYPES
from medlite.native import Vocabulary, failure, forget_log, library, logged_buffers

MAX_ROWS = 1024
FLASH_ATTENTION_AUTO = -1  # llama.h, enum llama_flash_attn_type: where the device has it

DECODE_OK, DECODE_ABORTED = 0, 2  # llama.h, llama_decode


class Model:
    """Weights and vocabulary of a GGUF file."""

    def __init__(self, path: Path, *, n_gpu_layers: int, on_progress: Callable[[float], None] | None = None) -> None:
        """Load the file; on_progress hears the share that is loaded. Raises EngineError with llama.cpp's reason."""
        native = library()
        parameters = native.llama_model_default_params()
        parameters.n_gpu_layers = n_gpu_layers

        def report(share: float, _data: Any) -> bool:
            if on_progress:
                on_progress(share)
            return True

        parameters.progress_callback = native.llama_progress_callback(report)
        forget_log()
        self.pointer = native.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.pointer:
            raise failure(
                f"{path}: llama.cpp cannot load it",
                "the architecture may be newer than this llama.cpp, or the file incomplete",
            )
        self.buffer_bytes = logged_buffers()
        self.vocabulary = Vocabulary(self.pointer)
        self.n_vocab = self.vocabulary.n_tokens
        # A recurrent state cannot be cut back to a prefix.
        self.can_rewind = not (
            native.llama_model_is_recurrent(self.pointer) or native.llama_model_is_hybrid(self.pointer)
        )

    def free(self) -> None:
        if self.pointer:
            library().llama_model_free(self.pointer)
            self.pointer = None


class Context:
    """A KV cache of `n_cells` and the scratch to decode with, on one model. n_outputs: rows of logits that one decode
    may return.
    """

    def __init__(self, model: Model, n_context: int, settings: OpenSettings) -> None:
        """Allocate it for sequences of `n_context` tokens. Raises EngineError with llama.cpp's reason."""
        native = library()
        self.n_vocab, self.n_batch = model.n_vocab, settings.n_batch
        self.n_cells, self.n_outputs = n_cells_for(n_context, self.n_batch), max_outputs(self.n_vocab, self.n_batch)
        self.n_threads = settings.n_threads or physical_cores()
        parameters = native.llama_context_default_params()
        parameters.n_ctx = self.n_cells
        parameters.n_batch = parameters.n_ubatch = self.n_batch
        parameters.n_outputs_max = self.n_outputs
        parameters.n_threads = parameters.n_threads_batch = self.n_threads
        parameters.type_k = parameters.type_v = GGML_TYPES[KV_TYPES[settings.kv_type]].id
        parameters.flash_attn_type = FLASH_ATTENTION_AUTO
        # A unified cache is one pool of cells for all sequences, and lets a token belong to several of them.
        parameters.kv_unified = True
        parameters.n_seq_max = MAX_SEQUENCES
        parameters.no_perf = True
        forget_log()
        self.pointer = native.llama_init_from_model(model.pointer, parameters)
        if not self.pointer:
            raise failure("llama.cpp cannot make a context", "a smaller --context or another --kv-type")
        self.buffer_bytes = logged_buffers()
        self._rows: dict[int | None, Logits] = {}
        # The library's own binding makes a typed pointer of each address, which takes longer than the call.
        self._logits_address = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)(
            ctypes.cast(native.llama_get_logits_ith, ctypes.c_void_p).value or 0
        )
        self.memory = native.llama_get_memory(self.pointer)
        self._abort: Any = None

    def decode(self, batch: "Batch") -> bool:
        """Read a batch; False if it was aborted. Raises EngineError with llama.cpp's reason if it failed."""
        code = library().llama_decode(self.pointer, batch.struct)
        if code in (DECODE_OK, DECODE_ABORTED):
            return bool(code == DECODE_OK)
        raise failure(f"llama_decode failed with code {code}", "a smaller --context leaves more memory to compute in")

    def logits_at(self, slot: int) -> Logits:
        """The row of logits of the batch's token `slot`: (n_vocab,), valid until the next decode."""
        address = self._logits_address(self.pointer, slot)
        row = self._rows.get(address)
        if row is None:  # making a view takes longer than all else between two tokens, and the buffer rarely moves
            if not address:
                raise EngineError(f"llama.cpp returned no logits for token {slot} of the batch")
            if len(self._rows) > MAX_ROWS:
                self._rows.clear()
            pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
            row = self._rows[address] = np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))
        return row

    def abort_when(self, stop: Any) -> None:
        """Ask `stop()` while a decode runs (between operations, CPU only) and abort it on True; None asks nothing."""
        native = library()
        callback = native.ggml_abort_callback(lambda _data: bool(stop())) if stop else native.ggml_abort_callback()
        native.llama_set_abort_callback(self.pointer, callback, None)
        self._abort = callback  # the native side holds only a pointer

    def clear(self) -> None:
        library().llama_memory_clear(self.memory, False)

    def remove(self, sequence: int, start: int = -1) -> bool:
        """Forget a sequence from position `start`; False if this kind of memory cannot."""
        return bool(library().llama_memory_seq_rm(self.memory, sequence, start, -1))

    def copy(self, source: int, target: int, length: int) -> None:
        """Let `target` share the first `length` positions of `source`; no data moves."""
        library().llama_memory_seq_cp(self.memory, source, target, 0, length)

    def length(self, sequence: int) -> int:
        """How many positions of a sequence are in memory."""
        return int(library().llama_memory_seq_pos_max(self.memory, sequence)) + 1

    def state_bytes(self, sequence: int) -> int:
        """Bytes that `save_sequence` writes, apart from the tokens."""
        return int(library().llama_state_seq_get_size(self.pointer, sequence))

    def save_sequence(self, path: Path, sequence: int, tokens: Sequence[int]) -> int:
        """Write the cache of a sequence and its tokens to `path`; the bytes written. Raises EngineError."""
        forget_log()
        n_bytes = library().llama_state_seq_save_file(
            self.pointer, os.fsencode(path), sequence, (ctypes.c_int32 * len(tokens))(*tokens), len(tokens)
        )
        if not n_bytes:
            raise failure(f"{path}: llama.cpp cannot write the state", "is the disk full?")
        return int(n_bytes)

    def load_sequence(self, path: Path, sequence: int, n_most: int) -> list[int]:
        """Put what `save_sequence` wrote into the cache and return its tokens, at most `n_most`. Raises EngineError.

        llama.cpp trusts parts of the file: give it only files that are known to be its own.
        """
        forget_log()
        tokens, n_tokens = (ctypes.c_int32 * n_most)(), ctypes.c_size_t()
        if not library().llama_state_seq_load_file(
            self.pointer, os.fsencode(path), sequence, tokens, n_most, ctypes.byref(n_tokens)
        ):
            raise failure(f"{path}: llama.cpp cannot restore the state", "it is read anew instead")
        return list(tokens[: n_tokens.value])

    def free(self) -> None:
        if self.pointer:
            library().llama_free(self.pointer)
            self.pointer = None


class Batch:
    """Input of one decode, kept in numpy arrays that the C struct points into."""

    def __init__(self, n_tokens: int) -> None:
        native = library()
        self.tokens = np.zeros(n_tokens, dtype=np.int32)
        self.positions = np.zeros(n_tokens, dtype=np.int32)
        self.n_sequences = np.ones(n_tokens, dtype=np.int32)
        self.wanted = np.zeros(n_tokens, dtype=np.int8)
        self.sequences = np.zeros(n_tokens, dtype=np.uintp)  # per token a pointer into `_ids`
        self._ids = np.arange(MAX_SEQUENCES, dtype=np.int32)  # a run first..last is a slice of it
        self._first_id = self._ids.ctypes.data
        self.sequences[:] = self._first_id
        self.struct = native.llama_batch()
        self.struct.token = self.tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        self.struct.pos = self.positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        self.struct.n_seq_id = self.n_sequences.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        self.struct.seq_id = self.sequences.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))
        self.struct.logits = self.wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        self.struct.n_tokens = 0

    def fill(
        self,
        tokens: Sequence[int] | NDArray[np.int32],
        positions: NDArray[np.int32],
        wanted: NDArray[np.bool_],
        members: NDArray[np.int32] | None = None,
    ) -> None:
        """Set the input. members: (n, 2) first and one-past-last sequence id of each token; None is sequence 0."""
        n = len(positions)
        self.tokens[:n], self.positions[:n], self.wanted[:n] = tokens, positions, wanted
        if members is None:
            self.n_sequences[:n], self.sequences[:n] = 1, self._first_id
        else:
            self.n_sequences[:n] = members[:, 1] - members[:, 0]
            self.sequences[:n] = self._first_id + members[:, 0].astype(np.uintp) * self._ids.itemsize
        self.struct.n_tokens = n

    def fill_one(self, token: int, position: int) -> None:
        """One token of sequence 0, its logits wanted: what `fill` does, in a microsecond."""
        self.tokens[0], self.positions[0], self.wanted[0] = token, position, True
        self.n_sequences[0], self.sequences[0] = 1, self._first_id
        self.struct.n_tokens = 1
