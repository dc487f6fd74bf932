"""What a decoder computes, as the ONNX graph states it: sizes, rotary tables, attention windows, activation.

What a family computes stands in its file (`Family.arithmetic`); here it meets one checkpoint's config.
"""

from dataclasses import dataclass

from medlite.errors import CheckpointError
from quantize.families import FAMILIES
from quantize.families.config import head_counts, head_dim, number, positive
from quantize.families.family import Arithmetic, Layer
from quantize.families.rope import RotaryTable
from quantize.match import SourceModel


@dataclass(frozen=True)
class Decoder:
    """The arithmetic of a model. tensors: the GGUF names that it has, which say whether biases and head norms exist."""

    arithmetic: Arithmetic
    hidden: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    n_context: int
    norm_epsilon: float
    embedding_scale: float
    attention_scale: float
    layers: tuple[Layer, ...]
    tables: tuple[RotaryTable, ...]
    tensors: frozenset[str]

    @property
    def long_rope_from(self) -> int:
        """Tokens beyond which the long rotary table rules; 0 if there is none."""
        return self.tables[0].n_short if self.tables[0].long else 0


def read_decoder(model: SourceModel) -> Decoder:
    """What `model` computes. Raises CheckpointError where the graph has no words for the family."""
    family, config = model.family, model.config
    arithmetic = family.arithmetic
    if arithmetic is None:
        raise CheckpointError(
            f"config.json: {family.hf_name} has no ONNX graph",
            hint=f"known to --format onnx: {', '.join(name for name, row in FAMILIES.items() if row.arithmetic)}; "
            "--format gguf knows it",
        )
    shapes = {tensor.name: tensor.shape for tensor in model.tensors}
    n_vocab, hidden = shapes["token_embd.weight"]
    n_head, n_head_kv = head_counts(config)
    return Decoder(
        arithmetic=arithmetic,
        hidden=hidden,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim(config),
        n_vocab=n_vocab,
        n_context=positive(config, "max_position_embeddings"),
        norm_epsilon=number(config, "rms_norm_eps"),
        embedding_scale=arithmetic.embedding_scale(config),
        attention_scale=arithmetic.attention_scale(config),
        layers=arithmetic.layers(config),
        tables=arithmetic.tables(config),
        tensors=frozenset(shapes),
    )
