"""What a decoder computes beside its weights: sizes, rotary tables, attention windows, activation.

Read from the GGUF plan, whose metadata every family states in the same words, so a family that converts to GGUF
converts to ONNX too, if its features stand here. What is not known here is an error, never an approximation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medlite.errors import CheckpointError
from quantize.families.transforms import head_dim
from quantize.gguf.plan import QuantizationPlan

NO_WINDOW = -1  # GroupQueryAttention's local_window_size for full attention
GEMMA3_PATTERN = 6  # every sixth layer sees all tokens; quantize.families.architectures refuses other patterns
DEFAULT_THETA = 10000.0


@dataclass(frozen=True)
class Rotary:
    """One table of rotations. inverse: (head_dim / 2,) radians per position. magnitude multiplies sine and cosine."""

    inverse: NDArray[np.float32]
    magnitude: float = 1.0

    def rows(self, first: int, n: int, function: Any) -> NDArray[np.float32]:
        """(n, head_dim / 2): `function` (np.cos or np.sin) of the angles of positions first, first + 1, ...

        In float32 throughout, as transformers' rotary embeddings compute it.
        """
        positions = np.arange(first, first + n, dtype=np.float32)
        values: NDArray[np.float32] = function(positions[:, None] * self.inverse[None, :])
        return values * np.float32(self.magnitude)


@dataclass(frozen=True)
class RotaryTable:
    """Rotations by row of the cos and sin caches. long: used instead once a sequence exceeds n_short tokens.

    The caches hold n_short rows of `short`, then the rows of `long`; without `long` only those of `short`.
    """

    short: Rotary
    long: Rotary | None = None
    n_short: int = 0

    def n_rows(self, n_context: int) -> int:
        return n_context + (self.n_short if self.long else 0)

    def rows(self, first: int, n: int, function: Any) -> NDArray[np.float32]:
        """Rows [first, first + n) of a cache."""
        if self.long is None:
            return self.short.rows(first, n, function)
        n_from_short = min(max(self.n_short - first, 0), n)
        parts = []
        if n_from_short:
            parts.append(self.short.rows(first, n_from_short, function))
        if n > n_from_short:
            parts.append(self.long.rows(first + n_from_short - self.n_short, n - n_from_short, function))
        return np.concatenate(parts)


@dataclass(frozen=True)
class Layer:
    """window: tokens that a query sees, NO_WINDOW for all before it. table: which of the decoder's rotary tables."""

    window: int
    table: int


@dataclass(frozen=True)
class Decoder:
    """The arithmetic of a model. tensors: the GGUF names that it has, which say whether biases and head norms exist."""

    family: str
    hidden: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    n_context: int
    norm_epsilon: float
    activation: str  # "silu" or "gelu_tanh"
    embedding_scale: float
    attention_scale: float
    layers: tuple[Layer, ...]
    tables: tuple[RotaryTable, ...]
    tensors: frozenset[str]

    @property
    def long_rope_from(self) -> int:
        """Tokens beyond which the long rotary table rules; 0 if there is none."""
        return self.tables[0].n_short if self.tables[0].long else 0


def read_decoder(plan: QuantizationPlan) -> Decoder:
    """The decoder that `plan` describes. Raises CheckpointError where the graph has no words for the family."""
    family, config = plan.architecture.gguf_name, plan.checkpoint.config
    if family not in FAMILIES:
        raise CheckpointError(
            f"config.json: {plan.architecture.hf_name} has no ONNX graph",
            hint=f"known to --format onnx: {', '.join(FAMILIES)}; --format gguf may know it",
        )
    facts = {
        key.removeprefix(f"{family}."): value.value
        for key, value in plan.metadata.items()
        if key.startswith(f"{family}.")
    }
    shapes = {tensor.info.name: tensor.info.shape for tensor in plan.tensors}
    n_vocab, hidden = shapes["token_embd.weight"]
    width = head_dim(config)
    tables = _tables(plan, facts, width)
    return Decoder(
        family=family,
        hidden=hidden,
        n_head=int(facts["attention.head_count"]),
        n_head_kv=int(facts["attention.head_count_kv"]),
        head_dim=width,
        n_vocab=n_vocab,
        n_context=int(facts["context_length"]),
        norm_epsilon=float(facts["attention.layer_norm_rms_epsilon"]),
        activation=FAMILIES[family],
        embedding_scale=hidden**0.5 if family == "gemma3" else 1.0,
        attention_scale=float(config["query_pre_attn_scalar"] if family == "gemma3" else width) ** -0.5,
        layers=_layers(family, facts),
        tables=tables,
        tensors=frozenset(shapes),
    )


# GGUF name of a family that the graph knows -> its feed-forward activation.
FAMILIES: dict[str, str] = {"llama": "silu", "qwen2": "silu", "qwen3": "silu", "phi3": "silu", "gemma3": "gelu_tanh"}


def _layers(family: str, facts: Mapping[str, Any]) -> tuple[Layer, ...]:
    window = int(facts.get("attention.sliding_window") or 0)
    if not 0 < window < int(facts["context_length"]):
        window = NO_WINDOW
    n_layers = int(facts["block_count"])
    if family != "gemma3":
        return (Layer(window, 0),) * n_layers
    return tuple(Layer(NO_WINDOW, 0) if (i + 1) % GEMMA3_PATTERN == 0 else Layer(window, 1) for i in range(n_layers))


def _tables(plan: QuantizationPlan, facts: Mapping[str, Any], width: int) -> tuple[RotaryTable, ...]:
    """The rotary tables: of all layers, or for Gemma 3 of its full and of its sliding ones."""
    extras = {t.extra.name: t.extra.values for t in plan.tensors if t.extra is not None}
    known = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
    if unknown := sorted(extras.keys() - known):
        raise CheckpointError(f"config.json: {', '.join(unknown)} has no place in the ONNX graph")
    theta = float(facts.get("rope.freq_base", DEFAULT_THETA))
    stretch = float(facts.get("rope.scaling.factor", 1.0)) if facts.get("rope.scaling.type") == "linear" else 1.0
    if "rope_factors_long.weight" in extras:
        magnitude = float(facts.get("rope.scaling.attn_factor", 1.0))
        short, long = (
            Rotary(_inverse(theta, width) / extras[f"rope_factors_{name}.weight"], magnitude)
            for name in ("short", "long")
        )
        return (RotaryTable(short, long, int(facts["rope.scaling.original_context_length"])),)
    inverse = _inverse(theta, width) / np.float32(stretch)
    if "rope_freqs.weight" in extras:
        inverse = inverse / extras["rope_freqs.weight"]
    tables = [RotaryTable(Rotary(inverse))]
    if plan.architecture.gguf_name == "gemma3":
        tables.append(RotaryTable(Rotary(_inverse(float(facts["rope.freq_base_swa"]), width))))
    return tuple(tables)


def _inverse(theta: float, width: int) -> NDArray[np.float32]:
    """theta^(-2i / width), powers rounded from float64 as torch's are."""
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    powers: NDArray[np.float32] = np.power(theta, exponents.astype(np.float64)).astype(np.float32)
    return np.float32(1.0) / powers
