"""A checkpoint matched with its family: every tensor named, shaped and found, before anything is decided about it.

The one place where a checkpoint's names meet a family's rules. The plans of both formats, the check of an artifact
against its source and the outline of a model without weights are functions of what is found here.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medlite.errors import CheckpointError
from medlite.formats.gguf import Value
from medlite.formats.safetensors import FLOAT_DTYPES, SourceTensor
from quantize.families import find_family
from quantize.families.config import Config, head_counts, positive
from quantize.families.family import Family, TensorRule, text_config
from quantize.families.transforms import KEEP, Transform
from quantize.source.checkpoint import Checkpoint
from quantize.source.model_card import general_metadata
from quantize.source.tokenizer import vocabulary

Shape = tuple[int, ...]


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

    config: flat and complete. tensors: in llama.cpp's file order. hyperparameters: the family's GGUF metadata, with
    the "<family>." before each key. ignored: source tensor name -> reason.
    """

    checkpoint: Checkpoint
    family: Family
    config: Config
    tensors: tuple[ModelTensor, ...]
    hyperparameters: Mapping[str, Value]
    ignored: Mapping[str, str]
    _vocabularies: dict[str | None, dict[str, Value]] = field(default_factory=dict, compare=False, repr=False)

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

    def vocabulary(self, pre_tokenizer: str | None = None) -> dict[str, Value]:
        """tokenizer.*, made once for all plans. Raises TokenizerError where it cannot be carried over exactly."""
        if pre_tokenizer not in self._vocabularies:
            n_vocab = positive(self.config, "vocab_size")
            self._vocabularies[pre_tokenizer] = vocabulary(self.checkpoint.files, n_vocab, pre_tokenizer)
        return self._vocabularies[pre_tokenizer]


def match_checkpoint(checkpoint: Checkpoint) -> SourceModel:
    """The model in `checkpoint`, from headers and small files only.

    Raises CheckpointError where the family is unknown, or a source tensor is unknown, missing or misshapen.
    """
    family, config = match_config(checkpoint.config)
    sources, ignored = _match_names(checkpoint, family, config)
    _check_complete(checkpoint, family, config, sources)
    _check_shapes(family, config, sources)
    tensors = [
        ModelTensor(name, source.shape, source, rule.transform, rule.transform.row_group(config))
        for name, (source, rule) in sources.items()
    ]
    tensors += [ModelTensor(extra.name, extra.values.shape, values=extra.values) for extra in family.extras(config)]
    tensors.sort(key=lambda tensor: file_order(tensor.name))
    return SourceModel(checkpoint, family, config, tuple(tensors), hyperparameters(family, config), ignored)


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


def expected_tensors(family: Family, config: Config) -> dict[str, tuple[TensorRule, Shape]]:
    """GGUF name -> rule and shape of every tensor that a complete checkpoint has; extras are not in it."""
    shapes = family.shapes(config)
    tied = bool(config.get("tie_word_embeddings"))
    found: dict[str, tuple[TensorRule, Shape]] = {}
    for rule in family.rules:
        if rule.optional or (rule.target == "output.weight" and tied):
            continue
        inner = name_in_layer(rule.target)
        if inner not in shapes:
            raise CheckpointError(f"{family.hf_name}: the config does not say the shape of {rule.target}")
        n_layers = positive(config, "num_hidden_layers") if inner != rule.target else 1
        found |= {rule.target.format(layer): (rule, shapes[inner]) for layer in range(n_layers)}
    return found


def name_in_layer(name: str) -> str:
    """The tensor's name without its layer, or without the {0} of a rule."""
    return re.sub(r"^blk\.(?:\d+|\{0\})\.", "", name)


def file_order(name: str) -> tuple[int, str]:
    """Sort key of llama.cpp's tensor map: tensors without a layer first, then by layer, then by name.

    Source: src/llama-model-loader.h, weight_name_comparer.
    """
    match = re.match(r"blk\.(\d+)\.", name)
    return (int(match[1]) if match else -1, name)


# --- names ------------------------------------------------------------------------------------------------------------

Sources = dict[str, tuple[SourceTensor, TensorRule]]


def _match_names(checkpoint: Checkpoint, family: Family, config: Config) -> tuple[Sources, dict[str, str]]:
    """GGUF name -> (source tensor, rule), and ignored name -> reason. Every source tensor lands in exactly one."""
    sources: Sources = {}
    ignored: dict[str, str] = {}
    dropped = config["dropped_layers"]
    for tensor in checkpoint.tensors.values():
        reason = next((row.reason for row in family.ignored if re.fullmatch(row.pattern, tensor.name)), None)
        if reason is not None:
            ignored[tensor.name] = reason
            continue
        rule, match = _rule_of(tensor, family)
        target = rule.target
        if match.groups():
            layer = int(match[1])
            if layer in dropped:
                ignored[tensor.name] = f"layer {layer}, {family.dropped_reason}"
                continue
            target = target.format(layer - sum(i < layer for i in dropped))
        if target in sources:
            raise CheckpointError(f"{tensor.path}: {tensor.name} and {sources[target][0].name} both become {target}")
        if tensor.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"{tensor.path}: {tensor.name} is {tensor.dtype}, one of {', '.join(FLOAT_DTYPES)} was needed",
                hint="start from the full-precision checkpoint, not from one that is quantized already",
            )
        if rule.extra_rows:
            tensor = _without_last_rows(tensor, rule.extra_rows)
            ignored[f"{tensor.name}[{tensor.shape[0]}:]"] = rule.extra_reason
        sources[target] = (tensor, rule)
    return sources, ignored


def _rule_of(tensor: SourceTensor, family: Family) -> tuple[TensorRule, re.Match[str]]:
    """The family's rule that takes the tensor, and its match. Raises CheckpointError if there is none."""
    for rule in family.rules:
        if match := re.fullmatch(rule.pattern, tensor.name):
            return rule, match
    raise CheckpointError(
        f"{tensor.path}: no rule of {family.hf_name} takes {tensor.name}",
        hint="the checkpoint holds more than the architecture says; it may be an adapter",
    )


def _without_last_rows(tensor: SourceTensor, n_rows: int) -> SourceTensor:
    """`tensor` as if its last rows were not there. Raises CheckpointError if it has no more."""
    if len(tensor.shape) != 2 or tensor.shape[0] <= n_rows:
        raise CheckpointError(f"{tensor.path}: {tensor.name} has shape {tensor.shape}, more than {n_rows} rows needed")
    return replace(
        tensor, shape=(tensor.shape[0] - n_rows, tensor.shape[1]), n_bytes=tensor.n_bytes - n_rows * tensor.row_bytes
    )


def _check_complete(checkpoint: Checkpoint, family: Family, config: Config, sources: Sources) -> None:
    """Raise CheckpointError if a layer lacks a tensor, or a layer lies beyond the config's count."""
    for name, (rule, _) in expected_tensors(family, config).items():
        if name not in sources:
            raise CheckpointError(
                f"{checkpoint.folder}: no tensor becomes {name} ({rule.pattern})",
                hint="a shard is missing or the config is of another model",
            )
    n_layers = positive(config, "num_hidden_layers")
    for name, (source, _) in sources.items():
        if file_order(name)[0] >= n_layers:
            raise CheckpointError(f"{source.path}: {source.name} lies beyond the config's {n_layers} layers")


def _check_shapes(family: Family, config: Config, sources: Sources) -> None:
    """Raise CheckpointError where a tensor's shape contradicts the config."""
    wanted = family.shapes(config)
    for name, (source, _) in sources.items():
        shape = wanted.get(name_in_layer(name))
        if shape is not None and source.shape != shape:
            raise CheckpointError(f"{source.path}: {source.name} has shape {source.shape}, config.json says {shape}")
