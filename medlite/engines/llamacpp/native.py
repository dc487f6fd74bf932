"""llama.cpp as Python objects: its model, context, vocabulary and batches. Only files named llama_ call it.

llama-cpp-python 0.3.36 is pinned, since its ctypes layer mirrors C structs that change between versions. Its
high-level class is not used: it keeps n_context x n_vocab logits, and its log-probabilities are slow and shifted
(abetlen/llama-cpp-python issue 1983).
"""

import ctypes
import os
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medlite.engines.engine import Logits
from medlite.engines.llamacpp import abort as llama_abort
from medlite.engines.llamacpp.memory import MAX_SEQUENCES
from medlite.errors import EngineError, MissingExtraError

SUPPORTED_VERSION = "0.3.36"
N_LOG_LINES = 40
MAX_ROWS = 1024
GGML_TYPE_IDS = {"f16": 1, "q8_0": 8, "q4_0": 2}  # ggml.h, enum ggml_type
FLASH_ATTENTION_AUTO = -1  # llama.h, enum llama_flash_attn_type: where the device has it
LOG_INFO, LOG_ERROR = 2, 4  # ggml.h, enum ggml_log_level

DECODE_OK, DECODE_ABORTED = 0, 2  # llama.h, llama_decode

# libgomp's threads spin for about 10 ms at a barrier before they sleep, and a token passes hundreds of barriers. Beside
# other programs a spinning thread keeps the core from the one it waits for: on 2 busy cores a 1B model decoded 0.5 to
# 1.2 tokens/s. With a short spin it decodes 10 to 15 there. Read once, when libgomp is loaded (libgomp manual,
# GOMP_SPINCOUNT); a user's own OMP_WAIT_POLICY or GOMP_SPINCOUNT wins.
SPIN_COUNT = "1000"

# "llama_kv_cache:        CPU KV buffer size =    32.00 MiB"
BUFFER_LINE = re.compile(r":\s*(\S+)\s+(model|KV|RS|output|compute) buffer size =\s*([\d.]+) MiB")

_log_lines: deque[str] = deque(maxlen=N_LOG_LINES)
_buffers: dict[str, int] = {}
_log_callback: Any = None
_library: Any = None


@dataclass(frozen=True)
class ContextSettings:
    """What a context is made with. n_cells: of the KV cache. n_outputs: rows of logits that one decode may return."""

    n_cells: int
    n_batch: int
    n_outputs: int
    n_threads: int
    kv_type: str


def library() -> Any:
    """The ctypes layer of llama-cpp-python, loaded once, its errors kept to explain a failure instead of printed."""
    global _library, _log_callback
    if _library is not None:
        return _library
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    try:
        import llama_cpp
        import llama_cpp.llama_cpp as native
    except ImportError as error:
        raise MissingExtraError("llama-cpp-python", "llamacpp") from error
    except (OSError, RuntimeError) as error:
        raise EngineError(
            f"llama-cpp-python does not load: {error}",
            hint=f"pip install --force-reinstall llama-cpp-python=={SUPPORTED_VERSION}",
        ) from error
    if llama_cpp.__version__ != SUPPORTED_VERSION:
        raise EngineError(
            f"llama-cpp-python is {llama_cpp.__version__}, medlite needs {SUPPORTED_VERSION}",
            hint=f"pip install llama-cpp-python=={SUPPORTED_VERSION}",
        )
    llama_abort.install(Path(str(native.__file__)).parent / "lib")
    _log_callback = native.llama_log_callback(_keep_log)
    native.llama_log_set(_log_callback, ctypes.c_void_p(0))
    native.llama_backend_init()
    _library = native
    return native


def native_folder() -> Path:
    """The folder of llama.cpp's shared libraries."""
    return Path(str(library().__file__)).parent / "lib"


def _keep_log(level: int, text: bytes, _user_data: Any) -> None:
    if level == LOG_ERROR:
        _log_lines.append(text.decode("utf-8", errors="replace").strip())
    elif level == LOG_INFO and b"buffer size" in text:
        found = BUFFER_LINE.search(text.decode("utf-8", errors="replace"))
        if found:
            name = f"{found[1]} {found[2]}"
            _buffers[name] = _buffers.get(name, 0) + int(float(found[3]) * (1 << 20))


def gpu_build() -> bool:
    """Whether this llama-cpp-python can place layers on a GPU."""
    return bool(library().llama_supports_gpu_offload())


def failure(what: str, hint: str) -> EngineError:
    """An EngineError with the native library's own reason: the first error it logged, without its function's name."""
    reasons = [line.split(": ", 1)[-1] for line in _log_lines if line]
    _log_lines.clear()
    return EngineError(f"{what}: {reasons[0]}" if reasons else what, hint=hint)


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
        _log_lines.clear()
        _buffers.clear()
        self.pointer = native.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.pointer:
            raise failure(
                f"{path}: llama.cpp cannot load it",
                "the architecture may be newer than this llama.cpp, or the file incomplete",
            )
        self.buffer_bytes = dict(_buffers)
        self.vocabulary = native.llama_model_get_vocab(self.pointer)
        self.n_vocab = int(native.llama_vocab_n_tokens(self.vocabulary))
        self._pieces: dict[int, bytes] = {}  # asked for again and again, and slow to ask for
        self._ends: dict[int, bool] = {}
        self.text_tokens: NDArray[np.bool_] | None = None  # of llama_grammar, once it needs them
        # A recurrent state cannot be cut back to a prefix.
        self.can_rewind = not (
            native.llama_model_is_recurrent(self.pointer) or native.llama_model_is_hybrid(self.pointer)
        )

    def token_text(self, token: int) -> str:
        """The vocabulary's entry of a token, as a template names it; empty for no token (-1)."""
        return library().llama_vocab_get_text(self.vocabulary, token).decode("utf-8", "replace") if token >= 0 else ""

    @property
    def bos(self) -> int:
        return int(library().llama_vocab_bos(self.vocabulary))

    @property
    def eos(self) -> int:
        return int(library().llama_vocab_eos(self.vocabulary))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`."""
        native, raw = library(), text.encode("utf-8", errors="replace")
        size = len(raw) + 8
        buffer = (ctypes.c_int32 * size)()
        n = native.llama_tokenize(self.vocabulary, raw, len(raw), buffer, size, add_special, parse_special)
        if n < 0:
            size = -n
            buffer = (ctypes.c_int32 * size)()
            n = native.llama_tokenize(self.vocabulary, raw, len(raw), buffer, size, add_special, parse_special)
        if n < 0:
            raise EngineError(f"text of {len(raw)} bytes cannot be tokenized")
        return list(buffer[:n])

    def piece(self, token: int) -> bytes:
        """The bytes of one token; a control token has none."""
        found = self._pieces.get(token)
        if found is None:
            found = self._pieces[token] = self._read_piece(token)
        return found

    def _read_piece(self, token: int) -> bytes:
        native = library()
        buffer = ctypes.create_string_buffer(64)
        n = native.llama_token_to_piece(self.vocabulary, token, buffer, 64, 0, False)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = native.llama_token_to_piece(self.vocabulary, token, buffer, -n, 0, False)
        return buffer.raw[:n]

    def is_end(self, token: int) -> bool:
        """Whether a token ends a turn or a text; a vocabulary may have several."""
        found = self._ends.get(token)
        if found is None:
            found = self._ends[token] = bool(library().llama_vocab_is_eog(self.vocabulary, token))
        return found

    def free(self) -> None:
        if self.pointer:
            library().llama_model_free(self.pointer)
            self.pointer = None


class Context:
    """A KV cache and the scratch to decode with, on one model."""

    def __init__(self, model: Model, settings: ContextSettings) -> None:
        """Allocate it. Raises EngineError with llama.cpp's reason."""
        native = library()
        parameters = native.llama_context_default_params()
        parameters.n_ctx = settings.n_cells
        parameters.n_batch = parameters.n_ubatch = settings.n_batch
        parameters.n_outputs_max = settings.n_outputs
        parameters.n_threads = parameters.n_threads_batch = settings.n_threads
        parameters.type_k = parameters.type_v = GGML_TYPE_IDS[settings.kv_type]
        parameters.flash_attn_type = FLASH_ATTENTION_AUTO
        # A unified cache is one pool of cells for all sequences, and lets a token belong to several of them.
        parameters.kv_unified = True
        parameters.n_seq_max = MAX_SEQUENCES
        parameters.no_perf = True
        _log_lines.clear()
        _buffers.clear()
        self.pointer = native.llama_init_from_model(model.pointer, parameters)
        if not self.pointer:
            raise failure("llama.cpp cannot make a context", "a smaller --context or another --kv-type")
        self.buffer_bytes = dict(_buffers)
        self.n_vocab, self.settings = model.n_vocab, settings
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
        _log_lines.clear()
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
        _log_lines.clear()
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
        self._ids = np.arange(MAX_SEQUENCES, dtype=np.int32)  # a run first..last is a slice of 0..255
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
