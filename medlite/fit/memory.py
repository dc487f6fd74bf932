"""Will it fit, and how fast: memory and decode speed of a model, from the header of its file or of the file to come.

Pure arithmetic on what `medlite.engines.llamacpp.memory` estimates before a load and on measured reading speeds.
`python -m medlite.fit.check` compares it with a loaded model, and the differences on this machine are kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from medlite.engines.llamacpp.memory import (
    CELL_PADDING,
    KV_TYPES,
    RESERVE_BYTES,
    MemoryEstimate,
    ModelShape,
    estimate,
    kv_bytes_per_token,
    n_cells_for,
)
from medlite.fit.speed import MEMORY_KEY, attention_key
from medlite.formats.gguf import GGML_TYPES, Header, TensorInfo
from medlite.memo import Memo

N_BATCH = 512  # as medlite.engines.llamacpp.engine
STANDARD_CONTEXTS = (2048, 4096, 8192, 16384, 32768, 131072)
USED_TOKENS = 1024  # in the cache while a decode speed is predicted

# What a decode takes beside reading: per layer some twenty small operations, per token the graph and the choice of the
# token, per vocabulary entry the softmax of its log-probability. Threads sleep while Python chooses, so several must be
# woken for each token. Measured: medlite.fit.check on the demo model.
LAYER_SECONDS = 10e-6
TOKEN_SECONDS = 20e-6
WAKE_SECONDS = 130e-6
VOCABULARY_SECONDS = 0.7e-9
# Of the speed that one large matrix is read at, what a chain of matrices reaches, small ones among them. Measured on 1B
# and 3B shapes, where it was 0.81 to 0.93.
READING_SHARE = 0.9

# What a process holds beside the model: Python, numpy, and llama.cpp's libraries. Measured: medlite.fit.check. The
# screen of a chat takes some 20 MB more.
RUNTIME_BYTES = 40 << 20

GEMMA3_PATTERN = 6  # every sixth layer sees all tokens (llama.cpp src/models/gemma3.cpp, set_swa_pattern)


# --- memory ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """What chat and generate take with the context full, on the CPU, in bytes."""

    model: MemoryEstimate
    runtime: int = RUNTIME_BYTES

    @property
    def needed(self) -> int:
        """What must be free: pages of the file whose weights were copied may be dropped, and the system drops them."""
        return self.model.needed + self.runtime

    @property
    def peak_resident(self) -> int:
        """The most that the process holds at once, as the system counts it."""
        return self.model.total + self.runtime


def predict_memory(shape: ModelShape, n_context: int, kv_type: str) -> Prediction:
    """The memory of a model of `shape`. A question set's logits come on top."""
    return Prediction(estimate(shape, n_context, kv_type, N_BATCH))


def fits(prediction: Prediction, memory_bytes: int) -> bool:
    """Whether it can be loaded with `memory_bytes` to use; the engine leaves the same reserve to the system."""
    return prediction.needed <= memory_bytes - RESERVE_BYTES


def windowed_kv_bytes(header: Header, shape: ModelShape, n_context: int, kv_type: str) -> int | None:
    """What the KV cache would take if sliding-window layers kept only their window and a batch; None without windows.

    llama.cpp can do so; medlite keeps everything, since a cut cache cannot continue from an earlier turn.
    """
    window = header.get("gemma3.attention.sliding_window")
    if not isinstance(window, int) or window < 1:
        return None
    full = n_cells_for(n_context, N_BATCH)
    short = min(full, -(-(window + N_BATCH) // CELL_PADDING) * CELL_PADDING)
    n_full = shape.n_layer // GEMMA3_PATTERN
    per_layer = kv_bytes_per_token(shape, kv_type) // shape.n_layer
    return per_layer * (n_full * full + (shape.n_layer - n_full) * short)


# --- speed -----------------------------------------------------------------------------------------------------------


def decode_tokens_per_second(
    header: Header,
    shape: ModelShape,
    kv_type: str,
    bytes_per_second: Mapping[str, float],
    n_used: int = USED_TOKENS,
    n_threads: int = 1,
) -> float | None:
    """Tokens per second on the CPU with `n_used` tokens in the cache, from the speeds of `reading_names` that
    `n_threads` threads reach.

    Every matrix is read once a token; of an embedding that is no output head, one row; the cache from memory once, and
    from the processor's own caches once for every query head. None if a type's speed is not known.
    """
    seconds = TOKEN_SECONDS + (WAKE_SECONDS if n_threads > 1 else 0.0)
    seconds += shape.n_layer * LAYER_SECONDS + shape.n_vocab * VOCABULARY_SECONDS
    for tensor in matrices_read(header):
        if tensor.type.name not in bytes_per_second:
            return None
        seconds += tensor.n_bytes / (READING_SHARE * bytes_per_second[tensor.type.name])
    attention = kv_attention_key(header, shape, kv_type)
    if attention not in bytes_per_second or MEMORY_KEY not in bytes_per_second:
        return None
    n_used = min(n_used, shape.n_context_trained or n_used)
    per_head = 2 * GGML_TYPES[KV_TYPES[kv_type]].row_bytes(head_size(header, shape))
    seconds += n_used * shape.n_layer * shape.n_head * per_head / bytes_per_second[attention]
    seconds += n_used * kv_bytes_per_token(shape, kv_type) / bytes_per_second[MEMORY_KEY]
    return 1 / seconds


def reading_names(header: Header, shape: ModelShape, kv_type: str) -> list[str]:
    """What a decode reads, as `medlite.fit.speed.bytes_per_second` names it."""
    types = dict.fromkeys(tensor.type.name for tensor in matrices_read(header))
    return [kv_attention_key(header, shape, kv_type), *types]


def matrices_read(header: Header) -> list[TensorInfo]:
    """The matrices that every token is multiplied with."""
    tied = all(tensor.name != "output.weight" for tensor in header.tensors)
    return [
        tensor for tensor in header.tensors if len(tensor.shape) > 1 and (tied or tensor.name != "token_embd.weight")
    ]


def kv_attention_key(header: Header, shape: ModelShape, kv_type: str) -> str:
    return attention_key(KV_TYPES[kv_type], head_size(header, shape))


def head_size(header: Header, shape: ModelShape) -> int:
    """Elements of one attention head's key."""
    stated = header.get(f"{header.get('general.architecture')}.attention.key_length")
    return stated if isinstance(stated, int) else shape.n_embd // max(shape.n_head, 1)


# --- past error ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One comparison on this machine. Ratios are measured / predicted."""

    model: str
    n_bytes: int
    n_context: int
    n_threads: int
    predicted_peak_bytes: int
    measured_peak_bytes: int
    predicted_tokens_per_second: float
    measured_tokens_per_second: float

    @property
    def memory_error(self) -> float:
        return self.measured_peak_bytes / self.predicted_peak_bytes - 1

    @property
    def speed_error(self) -> float:
        return self.measured_tokens_per_second / self.predicted_tokens_per_second - 1


HISTORY = Memo("fit", Measured)  # the comparisons of this machine, by what was measured


def read_history() -> list[Measured]:
    """The kept comparisons, oldest first."""
    return list(HISTORY.read().values())


def remember(measured: Measured) -> None:
    """Keep a comparison in place of an earlier one of the same file, context and threads."""
    key = f"{measured.model}; {measured.n_bytes} bytes; {measured.n_context} tokens; {measured.n_threads} threads"
    HISTORY.put({key: measured})
