"""How much memory a GGUF model will take in llama.cpp, from its header alone, and the context that fits.

Three parts: the weights (file-mapped, or copied where the CPU kernels repack them), the KV cache, and the compute
buffers. The estimate is made before the load, so that a load that cannot succeed is refused.
"""

from dataclasses import dataclass
from typing import Any

from medlite.devices import cpu_features
from medlite.engines.context import RESERVE_BYTES, ContextNeeds
from medlite.errors import EngineError
from medlite.formats.gguf import GGML_TYPES, Header, TensorInfo
from medlite.native import kernel_features

# KV cache types that users choose, by ggml name. f16 is exact enough to be the default of every runtime.
KV_TYPES = {"f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}

# Types whose matrices the CPU kernels repack into a copy, by the processor feature that allows it; a matrix needs rows
# in multiples of REPACK_ROWS. Source: ggml-cpu/repack.cpp, ggml_repack_get_optimal_repack_type.
REPACKED_TYPES: dict[str, frozenset[str]] = {
    "avx2": frozenset(("Q4_0", "Q4_K", "IQ4_NL", "MXFP4")),
    "avx512f": frozenset(("Q2_K",)),
    "asimddp": frozenset(("Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4")),
}
REPACK_ROWS = 8

CELL_PADDING = 256  # llama-context.cpp pads n_ctx to this
MAX_SEQUENCES = 64  # llama.cpp allows 256, but keeps n_vocab floats for each: 33 MB at 64 and 128k tokens
EXACT_ROWS = 64  # tokens of a decode from which on flash attention sums in single precision on a CPU
# (ggml-cpu/common.h, GGML_FA_TILE_Q); fewer are summed in half precision
LOGITS_BUFFER_BYTES = 64 << 20  # bounds the rows of logits that one decode may return


@dataclass(frozen=True)
class ModelShape:
    """What the memory of a transformer depends on. kv_weights: K and V elements that one token stores, per layer."""

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_vocab: int
    n_context_trained: int
    kv_weights: tuple[tuple[int, int], ...]
    n_weight_bytes: int
    n_output_bytes: int  # of the tensors that belong to no layer
    n_repacked_bytes: int  # of the matrices that the CPU kernels would copy


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes. weights: the file, mapped. repacked: weights copied into the CPU kernels' own layout. kv_cache: at the
    chosen context and type. compute: scratch and logits. runtime: the process itself, where it counts.
    """

    weights: int
    repacked: int
    kv_cache: int
    compute: int
    runtime: int = 0

    @property
    def total(self) -> int:
        """Most that can be resident at once."""
        return self.weights + self.repacked + self.kv_cache + self.compute + self.runtime

    @property
    def needed(self) -> int:
        """What must fit: the system drops the mapped pages of weights that were copied."""
        return self.total - self.repacked


def read_shape(header: Header) -> ModelShape:
    """The shape that `header` describes. Raises EngineError naming the key that is missing."""
    architecture = header.get("general.architecture")
    n_layer = _integer(header, f"{architecture}.block_count")
    n_embd = _integer(header, f"{architecture}.embedding_length")
    n_head = _per_layer(header.get(f"{architecture}.attention.head_count"), n_layer, 1)
    n_head_kv = _per_layer(header.get(f"{architecture}.attention.head_count_kv"), n_layer, n_head)
    head_k = _per_layer(header.get(f"{architecture}.attention.key_length"), n_layer, n_embd // max(n_head[0], 1))
    head_v = _per_layer(header.get(f"{architecture}.attention.value_length"), n_layer, n_embd // max(n_head[0], 1))
    tokens = header.get("tokenizer.ggml.tokens", [])
    try:
        features = kernel_features()
    except EngineError:  # no runtime loads here; a prediction needs none
        features = cpu_features()
    return ModelShape(
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=n_head[0],
        n_ff=max(_per_layer(header.get(f"{architecture}.feed_forward_length"), n_layer, 4 * n_embd)),
        n_vocab=int(header.get(f"{architecture}.vocab_size") or len(tokens)),
        n_context_trained=int(header.get(f"{architecture}.context_length", 0)),
        kv_weights=tuple((h * k, h * v) for h, k, v in zip(n_head_kv, head_k, head_v, strict=True)),
        n_weight_bytes=sum(tensor.n_bytes for tensor in header.tensors),
        n_output_bytes=sum(t.n_bytes for t in header.tensors if not t.name.startswith("blk.")),
        n_repacked_bytes=sum(t.n_bytes for t in header.tensors if is_repacked(t, features)),
    )


def is_repacked(tensor: TensorInfo, features: frozenset[str]) -> bool:
    """Whether llama.cpp copies a tensor into the CPU kernels' own layout. The token embedding is only looked up."""
    return (
        len(tensor.shape) > 1
        and tensor.shape[-2] % REPACK_ROWS == 0
        and tensor.name != "token_embd.weight"
        and any(tensor.type.name in REPACKED_TYPES[f] for f in REPACKED_TYPES if f in features)
    )


def _integer(header: Header, key: str) -> int:
    value = header.get(key)
    if not isinstance(value, int) or value < 1:
        raise EngineError(
            f"metadata key {key} is {value!r}, a positive integer was needed",
            hint="the file is incomplete; make or download it again",
        )
    return value


def _per_layer(value: Any, n_layer: int, default: int | list[int]) -> list[int]:
    """A value that a file gives once or per layer, as one integer per layer."""
    if value is None:
        value = default
    return [int(v) for v in value] if isinstance(value, list) else [int(value)] * n_layer


def kv_bytes_per_token(shape: ModelShape, kv_type: str) -> int:
    """Bytes of KV cache that one token takes over all layers."""
    ggml_type = GGML_TYPES[KV_TYPES[kv_type]]
    return sum(ggml_type.row_bytes(k) + ggml_type.row_bytes(v) for k, v in shape.kv_weights)


def max_outputs(n_vocab: int, n_batch: int) -> int:
    """Rows of logits per decode: as many as LOGITS_BUFFER_BYTES holds, at least one per sequence."""
    return max(MAX_SEQUENCES, min(n_batch, LOGITS_BUFFER_BYTES // (4 * n_vocab)))


def compute_bytes(shape: ModelShape, n_batch: int, n_cells: int) -> int:
    """Scratch of one batch, and the rows of logits that it returns.

    Buffers that are not needed at once share their place, so the wider of the feed-forward pair and the logits
    counts; beside it a few rows of the hidden size and the attention mask in half precision. Flash attention spares
    the attention scores. Measured on Llama shapes: tests/medlite/engines/llamacpp/test_memory.py.
    """
    logits = 4 * max_outputs(shape.n_vocab, n_batch) * shape.n_vocab
    widest = max(2 * 4 * n_batch * shape.n_ff, logits)
    return widest + 5 * 4 * n_batch * shape.n_embd + 2 * n_batch * n_cells + logits


def n_cells_for(n_context: int, n_batch: int) -> int:
    """Cells of the KV cache: a full sequence and what fills up a decode, for short contexts a batch beside it."""
    wanted = max(n_context + EXACT_ROWS, 2 * n_batch)
    return (wanted + CELL_PADDING - 1) // CELL_PADDING * CELL_PADDING


def estimate(shape: ModelShape, n_context: int, kv_type: str, n_batch: int) -> MemoryEstimate:
    """What a load with these settings will take."""
    n_cells = n_cells_for(n_context, n_batch)
    return MemoryEstimate(
        weights=shape.n_weight_bytes,
        repacked=shape.n_repacked_bytes,
        kv_cache=n_cells * kv_bytes_per_token(shape, kv_type),
        compute=compute_bytes(shape, n_batch, n_cells),
    )


def context_needs(shape: ModelShape, kv_type: str, n_batch: int) -> ContextNeeds:
    """What `choose_context` weighs: every part of the estimate that must fit, and the KV cache in it."""
    return ContextNeeds(
        n_trained=shape.n_context_trained,
        weights=shape.n_weight_bytes,
        total=lambda n_context: estimate(shape, n_context, kv_type, n_batch).needed,
        cache=lambda n_context: estimate(shape, n_context, kv_type, n_batch).kv_cache,
        per_token=kv_bytes_per_token(shape, kv_type),
        step=CELL_PADDING,
        cache_hint="--kv-type q8_0 halves the cache" if kv_type == "f16" else "",
    )


def layers_that_fit(shape: ModelShape, need: MemoryEstimate, free_gpu_bytes: int) -> int:
    """How many layers to place on the GPU, counting the output as one more; n_layer + 1 is the whole model.

    A layer takes its weights and its share of the KV cache; the compute buffers stand on the GPU in any case.
    """
    left = free_gpu_bytes - RESERVE_BYTES - need.compute
    if need.weights + need.kv_cache <= left:
        return shape.n_layer + 1
    per_layer = (need.weights - shape.n_output_bytes + need.kv_cache) / shape.n_layer
    return max(0, min(shape.n_layer, int(left / per_layer)))
