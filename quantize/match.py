"""A checkpoint matched with its family: every tensor named, shaped and found, before anything is decided about it.

The plans of both formats, the check of an artifact
against its source and the outline of a model without weights are functions of what is found here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medlite.formats.gguf import Value
from medlite.formats.safetensors import SourceTensor
from quantize.families import find_family
from quantize.families.config import Config, head_counts, positive
from quantize.families.family import Family, text_config
from quantize.families.names import Shape, file_order, match_names
from quantize.families.transforms import KEEP, Transform
from quantize.source.checkpoint import Checkpoint
from quantize.source.model_card import general_metadata
from quantize.source.tokenizer import vocabulary


@dataclass(frozen=True)
class ModelTensor:
    """One tensor of the model, whatever format it goes to.

    name: as GGUF has it, in both formats. shape: outermost first. source: where its rows lie, which `transform` brings
    into the target's layout, row_group of them together; None for what only the config states: then `values` holds it.
    """

    name: str
    shape: Shape
    source: SourceTensor | None = None
    transform: Transform = KEEP
    row_group: int = 1
    values: NDArray[np.float32] | None = field(default=None, compare=False)

    @property
    def n_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def is_parameter(self) -> bool:
        """False for what only the config states (rotary factors), which is no weight of the model."""
        return self.source is not None


@dataclass(frozen=True)
class SourceModel:
    """A checkpoint as its family understands it.

    config: flat and complete. n_vocab: rows of the embedding. tensors: in llama.cpp's file order.
    hyperparameters: the family's GGUF metadata, with the "<family>." before each key. ignored: source tensor name ->
    reason. pre_tokenizer: llama.cpp's name of it, where the checkpoint's pattern is in no table (--pre-tokenizer).
    """

    checkpoint: Checkpoint
    family: Family
    config: Config
    n_vocab: int
    tensors: tuple[ModelTensor, ...]
    hyperparameters: Mapping[str, Value]
    ignored: Mapping[str, str]
    pre_tokenizer: str | None = None

    @property
    def n_params(self) -> int:
        return sum(tensor.n_weights for tensor in self.tensors if tensor.is_parameter)

    @property
    def n_gqa(self) -> int:
        """Query heads that share a key-value head."""
        return query_heads_per_kv_head(self.config)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user must know of any artifact of the model, whatever the recipe loses."""
        return self.family.notes(self.config)

    @cached_property
    def general(self) -> dict[str, Value]:
        """general.*, from the model card; its size label counts every tensor, as llama.cpp's converter does."""
        n_weights = sum(tensor.n_weights for tensor in self.tensors)
        return general_metadata(self.checkpoint.files, self.family.gguf_name, n_weights)

    @cached_property
    def vocabulary(self) -> dict[str, Value]:
        """tokenizer.*, made once for all plans. Raises TokenizerError where it cannot be carried over exactly."""
        return vocabulary(self.checkpoint.files, self.n_vocab, self.pre_tokenizer)


def match_checkpoint(checkpoint: Checkpoint, pre_tokenizer: str | None = None) -> SourceModel:
    """The model in `checkpoint`, from headers and small files only.

    Raises CheckpointError where the family is unknown, or a source tensor is unknown, missing or misshapen.
    """
    family, config = match_config(checkpoint.config)
    n_vocab, metadata = positive(config, "vocab_size"), hyperparameters(family, config)
    sources, ignored = match_names(checkpoint, family, config)
    tensors = [
        ModelTensor(name, source.shape, source, rule.transform, rule.transform.row_group(config))
        for name, (source, rule) in sources.items()
    ]
    tensors += [ModelTensor(extra.name, extra.values.shape, values=extra.values) for extra in family.extras(config)]
    tensors.sort(key=lambda tensor: file_order(tensor.name))
    return SourceModel(checkpoint, family, config, n_vocab, tuple(tensors), metadata, ignored, pre_tokenizer)


# --- what a config alone says ----------------------------------------------------------------------------------------


def match_config(stated: Mapping[str, Any]) -> tuple[Family, dict[str, Any]]:
    """The family of a config.json and its flat, complete config. Raises CheckpointError where none computes it."""
    family = find_family(stated)
    return family, text_config(stated, family)


def hyperparameters(family: Family, config: Config) -> dict[str, Value]:
    """The family's metadata under its GGUF names."""
    return {f"{family.gguf_name}.{key}": value for key, value in family.metadata(config).items()}


def query_heads_per_kv_head(config: Config) -> int:
    n_head, n_head_kv = head_counts(config)
    return n_head // n_head_kv
