"""How fast tokens are written: the decode speed of a model, from the header of its file or of the file to come.

Pure arithmetic on the speeds that `medlite.fit.speed` measures on this machine. `medlite.fit.check` compares it with a
loaded model.
"""

from collections.abc import Mapping

from medlite.engines.llamacpp.memory import KV_TYPES, ModelShape, kv_bytes_per_token
from medlite.fit.speed import MEMORY_KEY, attention_key
from medlite.formats.gguf import GGML_TYPES, Header, TensorInfo

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
