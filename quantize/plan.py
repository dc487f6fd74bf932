"""The whole output file, decided from headers before a byte is written.

A plan lists every tensor's type, shape, size and offset, so `--dry-run` prints exactly the file to come, free disk
is checked first, and worker threads may write in any order.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medlite.artifact import RECIPE_KEY
from medlite.errors import CheckpointError, RecipeError
from medlite.gguf_format import (
    DEFAULT_ALIGNMENT,
    GGML_TYPES,
    Kind,
    TensorInfo,
    Value,
    pack_header,
    pad_to,
    place_tensors,
)
from quantize.architectures import Architecture, ExtraTensor, TensorRule, find_architecture, head_counts, positive
from quantize.checkpoint import FLOAT_DTYPES, Checkpoint, SourceTensor
from quantize.recipes import Choice, Recipe, TensorShape, choose_types, lacks_imatrix
from quantize.tokenizer import vocabulary

Importance = Mapping[str, NDArray[np.float32]]
QUANTIZATION_VERSION = 2  # Source: ggml/include/ggml.h, GGML_QNT_VERSION


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output. source and rule are None for a tensor that the config states (rope_freqs)."""

    info: TensorInfo
    source: SourceTensor | None
    rule: TensorRule | None
    extra: ExtraTensor | None
    reason: str


@dataclass(frozen=True)
class QuantizationPlan:
    """Everything about one output file.

    importance: GGUF name -> (row_length,) weight of each column, None without an imatrix. ignored: source tensor
    name -> reason.
    """

    checkpoint: Checkpoint
    architecture: Architecture
    recipe: Recipe
    metadata: Mapping[str, Value]
    tensors: tuple[PlannedTensor, ...]
    ignored: Mapping[str, str]
    importance: Importance | None = None

    @cached_property
    def header(self) -> bytes:
        """The bytes of the file up to its data."""
        return pack_header(self.metadata, [tensor.info for tensor in self.tensors])

    @property
    def n_bytes(self) -> int:
        """The exact size of the file."""
        last = self.tensors[-1].info
        return len(self.header) + pad_to(last.offset + last.n_bytes, DEFAULT_ALIGNMENT)

    @property
    def n_params(self) -> int:
        return sum(tensor.info.n_weights for tensor in self.tensors if tensor.extra is None)

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(tensor.info.n_bytes for tensor in self.tensors if tensor.extra is None) / self.n_params


def make_plan(
    checkpoint: Checkpoint, recipe: Recipe, *, overrides: tuple[tuple[str, str], ...] = (),
    importance: Importance | None = None,
) -> QuantizationPlan:
    """The plan for one recipe, from headers only.

    overrides: (regular expression, type name) pairs of --tensor-type. importance: from an imatrix, by GGUF name.
    Raises CheckpointError where a source tensor is unknown, missing or misshapen, RecipeError where the recipe
    needs what is not there.
    """
    architecture = find_architecture(checkpoint.config)
    sources, ignored = _match(checkpoint, architecture)
    _check_shapes(checkpoint, architecture, sources)
    extras = {extra.name: extra for extra in architecture.extras(checkpoint.config)}
    shapes = [TensorShape(name, source.shape) for name, (source, _) in sources.items()]
    shapes += [TensorShape(extra.name, extra.values.shape) for extra in extras.values()]
    shapes.sort(key=lambda shape: file_order(shape.name))
    _check_overrides(recipe, overrides)
    n_head, n_head_kv = head_counts(checkpoint.config)
    choices = choose_types(
        recipe, shapes, n_gqa=n_head // n_head_kv, has_imatrix=importance is not None, overrides=overrides,
        is_70b=checkpoint.config["num_hidden_layers"] == 80 and n_head != n_head_kv)
    _check_imatrix(recipe, shapes, choices, importance)
    placed = place_tensors([(shape.name, choices[shape.name].type, shape.shape) for shape in shapes])
    tensors = tuple(_planned(info, sources, extras, choices[info.name].reason) for info in placed)
    return QuantizationPlan(checkpoint, architecture, recipe, _metadata(checkpoint, architecture, recipe, tensors),
                            tensors, ignored, importance)


def _planned(
    info: TensorInfo, sources: Mapping[str, tuple[SourceTensor, TensorRule]], extras: Mapping[str, ExtraTensor],
    reason: str,
) -> PlannedTensor:
    source, rule = sources.get(info.name, (None, None))
    return PlannedTensor(info, source, rule, extras.get(info.name), reason)


def file_order(name: str) -> tuple[int, str]:
    """Sort key of llama.cpp's tensor map: tensors without a layer first, then by layer, then by name.

    Source: src/llama-model-loader.h, weight_name_comparer.
    """
    match = re.match(r"blk\.(\d+)\.", name)
    return (int(match[1]) if match else -1, name)


def _match(
    checkpoint: Checkpoint, architecture: Architecture
) -> tuple[dict[str, tuple[SourceTensor, TensorRule]], dict[str, str]]:
    """GGUF name -> (source tensor, rule), and ignored name -> reason. Every source tensor lands in exactly one."""
    sources: dict[str, tuple[SourceTensor, TensorRule]] = {}
    ignored: dict[str, str] = {}
    for tensor in checkpoint.tensors.values():
        reason = next((row.reason for row in architecture.ignored if re.fullmatch(row.pattern, tensor.name)), None)
        if reason is not None:
            ignored[tensor.name] = reason
            continue
        found = [(rule, match) for rule in architecture.rules if (match := re.fullmatch(rule.pattern, tensor.name))]
        if not found:
            raise CheckpointError(f"{tensor.path}: no rule of {architecture.hf_name} takes {tensor.name}",
                                  hint="the checkpoint holds more than the architecture says; it may be an adapter")
        rule, match = found[0]
        target = rule.target.format(*match.groups())
        if target in sources:
            raise CheckpointError(f"{tensor.path}: {tensor.name} and {sources[target][0].name} both become {target}")
        if tensor.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"{tensor.path}: {tensor.name} is {tensor.dtype}, one of {', '.join(FLOAT_DTYPES)} was needed",
                hint="start from the full-precision checkpoint, not from one that is quantized already")
        sources[target] = (tensor, rule)
    _check_complete(checkpoint, architecture, sources)
    return sources, ignored


def _check_complete(
    checkpoint: Checkpoint, architecture: Architecture, sources: Mapping[str, tuple[SourceTensor, TensorRule]]
) -> None:
    """Raise CheckpointError if a layer lacks a tensor, or a layer lies beyond the config's count."""
    n_layers = positive(checkpoint.config, "num_hidden_layers")
    tied = bool(checkpoint.config.get("tie_word_embeddings"))
    for rule in architecture.rules:
        if rule.optional or (rule.target == "output.weight" and tied):
            continue
        targets = [rule.target.format(layer) for layer in range(n_layers)] if "{0}" in rule.target else [rule.target]
        for target in targets:
            if target not in sources:
                raise CheckpointError(f"{checkpoint.folder}: no tensor becomes {target} ({rule.pattern})",
                                      hint="a shard is missing or the config is of another model")
    for target, (source, _) in sources.items():
        if file_order(target)[0] >= n_layers:
            raise CheckpointError(f"{source.path}: {source.name} lies beyond the config's {n_layers} layers")


def _check_shapes(
    checkpoint: Checkpoint, architecture: Architecture, sources: Mapping[str, tuple[SourceTensor, TensorRule]]
) -> None:
    """Raise CheckpointError where a tensor's shape contradicts the config."""
    wanted = architecture.shapes(checkpoint.config)
    for target, (source, _) in sources.items():
        shape = wanted.get(re.sub(r"^blk\.\d+\.", "", target))
        if shape is not None and source.shape != shape:
            raise CheckpointError(f"{source.path}: {source.name} has shape {source.shape}, config.json says {shape}")


def _check_overrides(recipe: Recipe, overrides: tuple[tuple[str, str], ...]) -> None:
    for pattern, name in overrides:
        if name not in GGML_TYPES or name.startswith(("I8", "I16", "I32", "I64", "F64")):
            raise RecipeError(f"--tensor-type {pattern}={name}: unknown type", hint=f"known: {', '.join(GGML_TYPES)}")
    if overrides and not GGML_TYPES[recipe.default].is_quantized:
        raise RecipeError(f"--tensor-type has no effect on {recipe.name}", hint="choose a quantized recipe")


def _check_imatrix(
    recipe: Recipe, shapes: list[TensorShape], choices: Mapping[str, Choice], importance: Importance | None
) -> None:
    """Raise RecipeError naming tensors that lack importance data they cannot do without, or whose data misfits."""
    data = importance or {}
    lacking = [name for name, choice in choices.items()
               if lacks_imatrix(recipe, name, choice.type) and name not in data]
    if lacking:
        shown = ", ".join(lacking[:4]) + (f" and {len(lacking) - 4} more" if len(lacking) > 4 else "")
        raise RecipeError(f"{recipe.name} needs an importance matrix for {shown}",
                          hint="--imatrix FILE, made by llama-imatrix on text of your domain")
    for shape in shapes:
        if shape.name in data and data[shape.name].shape != shape.shape[-1:]:
            raise RecipeError(f"imatrix: {shape.name} has {data[shape.name].size} columns, "
                              f"the tensor {shape.shape[-1]}", hint="the imatrix was made for another model")


def _metadata(
    checkpoint: Checkpoint, architecture: Architecture, recipe: Recipe, tensors: tuple[PlannedTensor, ...]
) -> dict[str, Value]:
    n_params = sum(tensor.info.n_weights for tensor in tensors)
    return {
        **_general(checkpoint.folder, architecture.gguf_name, n_params),
        **architecture.metadata(architecture.gguf_name, checkpoint.config),
        "general.file_type": Value(Kind.UINT32, recipe.file_type),
        "general.quantization_version": Value(Kind.UINT32, QUANTIZATION_VERSION),
        RECIPE_KEY: Value(Kind.STRING, recipe.name),
        **vocabulary(checkpoint.folder, positive(checkpoint.config, "vocab_size")),
    }


def _general(folder: Path, architecture: str, n_params: int) -> dict[str, Value]:
    """general.*: name, base model, licence, languages, tags, from the model card beside the weights."""
    import gguf

    try:
        found = gguf.Metadata.load(None, folder, None, n_params)
        if found.name is None:
            found.name = folder.resolve().name
        if found.size_label is None:
            found.size_label = gguf.size_label(n_params, 0, 0, 0)
        writer = gguf.GGUFWriter(None, architecture)
        writer.add_type(gguf.GGUFType.MODEL)
        found.set_gguf_meta_model(writer)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{folder}: the model card cannot be read: {error}",
                              hint="correct or remove README.md beside the weights") from error
    result: dict[str, Value] = {}
    for key, row in writer.kv_data[0].items():
        if int(row.type) == Kind.ARRAY:
            result[key] = Value(Kind.STRING, list(row.value), is_array=True)
        else:
            result[key] = Value(Kind(int(row.type)), row.value)
    return result

