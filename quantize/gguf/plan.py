"""The whole output file, decided from headers before a byte is written.

A plan lists every tensor's type, shape, size and offset, so `--dry-run` prints exactly the file to come, free disk
is checked first, and worker threads may write in any order.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medlite.errors import CheckpointError, RecipeError
from medlite.files import format_bytes
from medlite.formats.artifact import RECIPE_KEY
from medlite.formats.gguf import (
    DEFAULT_ALIGNMENT,
    GGML_TYPES,
    GgmlType,
    Kind,
    TensorInfo,
    Value,
    pack_header,
    pad_to,
    place_tensors,
)
from quantize.families import find_family
from quantize.families.config import ExtraTensor, head_counts, positive
from quantize.families.family import Family, TensorRule, text_config
from quantize.gguf.recipes import Choice, Recipe, TensorShape, choose_types, lacks_imatrix
from quantize.source.checkpoint import FLOAT_DTYPES, Checkpoint, SourceTensor, read_json_object
from quantize.source.tokenizer import vocabulary

Importance = Mapping[str, NDArray[np.float32]]
QUANTIZATION_VERSION = 2  # Source: ggml/include/ggml.h, GGML_QNT_VERSION


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output. source and rule are None for a tensor that the config states (rope_freqs).

    file: which of the plan's files holds it; info.offset counts from that file's data.
    """

    info: TensorInfo
    file: int
    source: SourceTensor | None
    rule: TensorRule | None
    extra: ExtraTensor | None
    reason: str


@dataclass(frozen=True)
class PlannedFile:
    """One file of the output: its header's bytes and its exact size."""

    header: bytes
    n_bytes: int


@dataclass(frozen=True)
class QuantizationPlan:
    """Everything about one artifact: one file, or several under --max-shard-size.

    importance: GGUF name -> (row_length,) weight of each column, None without an imatrix. ignored: source tensor
    name -> reason.
    """

    checkpoint: Checkpoint
    family: Family
    recipe: Recipe
    metadata: Mapping[str, Value]
    tensors: tuple[PlannedTensor, ...]
    files: tuple[PlannedFile, ...]
    ignored: Mapping[str, str]
    importance: Importance | None = None

    @property
    def n_bytes(self) -> int:
        """The exact size of the artifact, all files together."""
        return sum(file.n_bytes for file in self.files)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user must know of the result beside the recipe's loss."""
        return self.family.notes(self.checkpoint.config)

    @property
    def n_params(self) -> int:
        return sum(tensor.info.n_weights for tensor in self.tensors if tensor.extra is None)

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(tensor.info.n_bytes for tensor in self.tensors if tensor.extra is None) / self.n_params

    def paths(self, path: Path) -> list[Path]:
        """Where each file goes: `path` itself, or llama.cpp's split names beside it."""
        if len(self.files) == 1:
            return [path]
        return [
            path.with_name(f"{path.stem}-{i + 1:05d}-of-{len(self.files):05d}{path.suffix}")
            for i in range(len(self.files))
        ]


def make_plan(
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    overrides: tuple[tuple[str, str], ...] = (),
    importance: Importance | None = None,
    max_shard_bytes: int | None = None,
    pre_tokenizer: str | None = None,
) -> QuantizationPlan:
    """The plan for one recipe, from headers only.

    overrides: (regular expression, type name) pairs of --tensor-type. importance: from an imatrix, by GGUF name.
    pre_tokenizer: llama.cpp's name of it where the checkpoint's pattern is unknown (--pre-tokenizer).
    max_shard_bytes: tensor bytes a file may hold, None for one file. Raises CheckpointError where a source tensor is
    unknown, missing or misshapen, RecipeError where the recipe needs what is not there.
    """
    family = find_family(checkpoint.config)
    checkpoint = replace(checkpoint, config=text_config(checkpoint.config, family))
    sources, ignored = _match(checkpoint, family)
    _check_shapes(checkpoint, family, sources)
    extras = {extra.name: extra for extra in family.extras(checkpoint.config)}
    shapes = [TensorShape(name, source.shape) for name, (source, _) in sources.items()]
    shapes += [TensorShape(extra.name, extra.values.shape) for extra in extras.values()]
    shapes.sort(key=lambda shape: file_order(shape.name))
    _check_overrides(recipe, overrides)
    n_head, n_head_kv = head_counts(checkpoint.config)
    choices = choose_types(
        recipe,
        shapes,
        n_gqa=n_head // n_head_kv,
        has_imatrix=importance is not None,
        overrides=overrides,
        is_70b=family.is_70b(checkpoint.config),
    )
    _check_imatrix(recipe, shapes, choices, importance)
    metadata = _metadata(checkpoint, family, recipe, sum(math.prod(shape.shape) for shape in shapes), pre_tokenizer)
    tensors: list[PlannedTensor] = []
    files: list[PlannedFile] = []
    groups = _split([(shape.name, choices[shape.name].type, shape.shape) for shape in shapes], max_shard_bytes)
    for i, group in enumerate(groups):
        placed = place_tensors(group)
        for info in placed:
            source, rule = sources.get(info.name, (None, None))
            tensors.append(PlannedTensor(info, i, source, rule, extras.get(info.name), choices[info.name].reason))
        header = pack_header(_file_metadata(metadata, i, len(groups), len(shapes)), placed)
        end = pad_to(placed[-1].offset + placed[-1].n_bytes, DEFAULT_ALIGNMENT)
        files.append(PlannedFile(header, len(header) + end))
    return QuantizationPlan(checkpoint, family, recipe, metadata, tuple(tensors), tuple(files), ignored, importance)


TensorRow = tuple[str, GgmlType, tuple[int, ...]]


def _split(rows: list[TensorRow], max_bytes: int | None) -> list[list[TensorRow]]:
    """The tensors of each file, in order. Source: tools/gguf-split/gguf-split.cpp, split_strategy."""
    groups: list[list[TensorRow]] = [[]]
    size = 0
    for row in rows:
        n_bytes = pad_to(row[1].row_bytes(math.prod(row[2])), DEFAULT_ALIGNMENT)
        if max_bytes is not None and n_bytes > max_bytes:
            raise RecipeError(
                f"{row[0]} takes {format_bytes(n_bytes)}, --max-shard-size is {format_bytes(max_bytes)}",
                hint="a tensor is never cut; choose larger shards",
            )
        if max_bytes is not None and groups[-1] and size + n_bytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(row)
        size += n_bytes
    return groups


def _file_metadata(metadata: Mapping[str, Value], i: int, n_files: int, n_tensors: int) -> Mapping[str, Value]:
    """The first of several files carries all metadata, the others only where they stand."""
    if n_files == 1:
        return metadata
    split = {
        "split.no": Value(Kind.UINT16, i),
        "split.count": Value(Kind.UINT16, n_files),
        "split.tensors.count": Value(Kind.INT32, n_tensors),
    }
    return {**metadata, **split} if i == 0 else split


def file_order(name: str) -> tuple[int, str]:
    """Sort key of llama.cpp's tensor map: tensors without a layer first, then by layer, then by name.

    Source: src/llama-model-loader.h, weight_name_comparer.
    """
    match = re.match(r"blk\.(\d+)\.", name)
    return (int(match[1]) if match else -1, name)


def _match(checkpoint: Checkpoint, family: Family) -> tuple[dict[str, tuple[SourceTensor, TensorRule]], dict[str, str]]:
    """GGUF name -> (source tensor, rule), and ignored name -> reason. Every source tensor lands in exactly one."""
    sources: dict[str, tuple[SourceTensor, TensorRule]] = {}
    ignored: dict[str, str] = {}
    dropped = checkpoint.config["dropped_layers"]
    for tensor in checkpoint.tensors.values():
        reason = next((row.reason for row in family.ignored if re.fullmatch(row.pattern, tensor.name)), None)
        if reason is not None:
            ignored[tensor.name] = reason
            continue
        found = [(rule, match) for rule in family.rules if (match := re.fullmatch(rule.pattern, tensor.name))]
        if not found:
            raise CheckpointError(
                f"{tensor.path}: no rule of {family.hf_name} takes {tensor.name}",
                hint="the checkpoint holds more than the architecture says; it may be an adapter",
            )
        rule, match = found[0]
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
    _check_complete(checkpoint, family, sources)
    return sources, ignored


def _without_last_rows(tensor: SourceTensor, n_rows: int) -> SourceTensor:
    """`tensor` as if its last rows were not there. Raises CheckpointError if it has no more."""
    if len(tensor.shape) != 2 or tensor.shape[0] <= n_rows:
        raise CheckpointError(f"{tensor.path}: {tensor.name} has shape {tensor.shape}, more than {n_rows} rows needed")
    return replace(
        tensor, shape=(tensor.shape[0] - n_rows, tensor.shape[1]), n_bytes=tensor.n_bytes - n_rows * tensor.row_bytes
    )


def _check_complete(
    checkpoint: Checkpoint, family: Family, sources: Mapping[str, tuple[SourceTensor, TensorRule]]
) -> None:
    """Raise CheckpointError if a layer lacks a tensor, or a layer lies beyond the config's count."""
    n_layers = positive(checkpoint.config, "num_hidden_layers")
    tied = bool(checkpoint.config.get("tie_word_embeddings"))
    for rule in family.rules:
        if rule.optional or (rule.target == "output.weight" and tied):
            continue
        targets = [rule.target.format(layer) for layer in range(n_layers)] if "{0}" in rule.target else [rule.target]
        for target in targets:
            if target not in sources:
                raise CheckpointError(
                    f"{checkpoint.folder}: no tensor becomes {target} ({rule.pattern})",
                    hint="a shard is missing or the config is of another model",
                )
    for target, (source, _) in sources.items():
        if file_order(target)[0] >= n_layers:
            raise CheckpointError(f"{source.path}: {source.name} lies beyond the config's {n_layers} layers")


def _check_shapes(
    checkpoint: Checkpoint, family: Family, sources: Mapping[str, tuple[SourceTensor, TensorRule]]
) -> None:
    """Raise CheckpointError where a tensor's shape contradicts the config."""
    wanted = family.shapes(checkpoint.config)
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
    lacking = [
        name for name, choice in choices.items() if lacks_imatrix(recipe, name, choice.type) and name not in data
    ]
    if lacking:
        shown = ", ".join(lacking[:4]) + (f" and {len(lacking) - 4} more" if len(lacking) > 4 else "")
        raise RecipeError(
            f"{recipe.name} needs an importance matrix for {shown}",
            hint="--imatrix FILE, made by llama-imatrix on text of your domain",
        )
    for shape in shapes:
        if shape.name in data and data[shape.name].shape != shape.shape[-1:]:
            raise RecipeError(
                f"imatrix: {shape.name} has {data[shape.name].size} columns, the tensor {shape.shape[-1]}",
                hint="the imatrix was made for another model",
            )


def _metadata(
    checkpoint: Checkpoint, family: Family, recipe: Recipe, n_params: int, pre_tokenizer: str | None
) -> dict[str, Value]:
    return {
        **_general(checkpoint.folder, family.gguf_name, n_params),
        **{f"{family.gguf_name}.{key}": value for key, value in family.metadata(checkpoint.config).items()},
        "general.file_type": Value(Kind.UINT32, recipe.file_type),
        "general.quantization_version": Value(Kind.UINT32, QUANTIZATION_VERSION),
        RECIPE_KEY: Value(Kind.STRING, recipe.name),
        **vocabulary(checkpoint.folder, positive(checkpoint.config, "vocab_size"), pre_tokenizer),
    }


def _repetition_penalty(folder: Path) -> float | None:
    """generation_config.json's repetition_penalty, where there is one."""
    path = folder / "generation_config.json"
    stated = read_json_object(path).get("repetition_penalty") if path.is_file() else None
    return float(stated) if isinstance(stated, int | float) else None


def _general(folder: Path, family: str, n_params: int) -> dict[str, Value]:
    """general.*: name, base model, licence, languages, tags, from the model card beside the weights."""
    import gguf

    try:
        found = gguf.Metadata.load(None, folder, None, n_params)
        if found.name is None:
            found.name = folder.resolve().name
        if found.sampling_penalty_repeat is None:  # gguf < 0.20 reads only llama.cpp's spelling of it
            found.sampling_penalty_repeat = _repetition_penalty(folder)
        if found.size_label is None:
            found.size_label = gguf.size_label(n_params, 0, 0, 0)
        writer = gguf.GGUFWriter(None, family)
        writer.add_type(gguf.GGUFType.MODEL)
        found.set_gguf_meta_model(writer)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{folder}: the model card cannot be read: {error}", hint="correct or remove README.md beside the weights"
        ) from error
    result: dict[str, Value] = {}
    for key, row in writer.kv_data[0].items():
        if int(row.type) == Kind.ARRAY:
            result[key] = Value(Kind.STRING, list(row.value), is_array=True)
        else:
            result[key] = Value(Kind(int(row.type)), row.value)
    return result
