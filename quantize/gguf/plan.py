"""The whole output file, decided from headers before a byte is written.

A plan lists every tensor's type, shape, size and offset, so `--dry-run` prints exactly the file to come, free disk
is checked first, and worker threads may write in any order.
"""

import hashlib
import json
from collections.abc import Mapping

from medlite.errors import RecipeError
from medlite.formats.artifact import RECIPE_KEY
from medlite.formats.gguf import (
    DEFAULT_ALIGNMENT,
    GGML_TYPES,
    Kind,
    Value,
    pack_header,
    pad_to,
    place_tensors,
    split_metadata,
    split_tensors,
)
from quantize.gguf.imatrix import Importance, check_importance
from quantize.gguf.recipes import Recipe, choose_types
from quantize.match import SourceModel
from quantize.stream.encode import GgmlEncoding
from quantize.stream.plan import Part, Plan, PlannedFile, PlannedTensor, planned_tensor

QUANTIZATION_VERSION = 2  # Source: ggml/include/ggml.h, GGML_QNT_VERSION


def plan_gguf(
    model: SourceModel,
    recipe: Recipe,
    *,
    overrides: tuple[tuple[str, str], ...] = (),
    importance: Importance | None = None,
    max_shard_bytes: int | None = None,
) -> Plan:
    """The plan for one recipe, from headers only.

    overrides: (regular expression, type name) pairs of --tensor-type. importance: from an imatrix, by GGUF name.
    max_shard_bytes: tensor bytes a file may hold, None for one file. Raises TokenizerError where the vocabulary
    cannot be carried over, RecipeError where the recipe needs what is not there.
    """
    metadata = _metadata(model, recipe)
    stamp = _importance_digest(importance or {})
    facts = {
        "imatrix_sha256": None if importance is None else stamp.hex(),
        "tokenizer_sha256": _tokenizer_sha256(metadata),
        "chat_template_sha256": _template_sha256(metadata),
    }
    shapes = {tensor.name: tensor.shape for tensor in model.tensors}
    _check_overrides(recipe, overrides)
    choices = choose_types(
        recipe,
        shapes,
        n_gqa=model.n_gqa,
        has_imatrix=importance is not None,
        overrides=overrides,
        is_70b=model.family.is_70b(model.config),
    )
    check_importance(recipe, shapes, choices, importance)
    by_name = {tensor.name: tensor for tensor in model.tensors}
    tensors: list[PlannedTensor] = []
    files: list[PlannedFile] = []
    groups = split_tensors([(name, choices[name].type, shape) for name, shape in shapes.items()], max_shard_bytes)
    for i, group in enumerate(groups):
        placed = place_tensors(group)
        stated = split_metadata(metadata, i, len(groups), len(shapes))
        header = pack_header(stated, placed)
        for info in placed:
            encoding = GgmlEncoding(info.type, (importance or {}).get(info.name))
            part = Part.of_tensor(info, i, len(header))
            tensors.append(planned_tensor(by_name[info.name], encoding, (part,), choices[info.name].reason))
        end = pad_to(placed[-1].offset + placed[-1].n_bytes, DEFAULT_ALIGNMENT)
        files.append(PlannedFile(header, len(header) + end))
    return Plan(
        checkpoint=model.checkpoint,
        architecture=model.family.gguf_name,
        recipe=recipe.name,
        tensors=tuple(tensors),
        files=tuple(files),
        ignored=model.ignored,
        facts=facts,
        stamp=stamp,
        notes=model.notes,
        metadata=metadata,
    )


def _check_overrides(recipe: Recipe, overrides: tuple[tuple[str, str], ...]) -> None:
    for pattern, name in overrides:
        if name not in GGML_TYPES or name.startswith(("I8", "I16", "I32", "I64", "F64")):
            raise RecipeError(f"--tensor-type {pattern}={name}: unknown type", hint=f"known: {', '.join(GGML_TYPES)}")
    if overrides and not GGML_TYPES[recipe.default].is_quantized:
        raise RecipeError(f"--tensor-type has no effect on {recipe.name}", hint="choose a quantized recipe")


def _metadata(model: SourceModel, recipe: Recipe) -> dict[str, Value]:
    return {
        **model.general,
        **model.hyperparameters,
        "general.file_type": Value(Kind.UINT32, recipe.file_type),
        "general.quantization_version": Value(Kind.UINT32, QUANTIZATION_VERSION),
        RECIPE_KEY: Value(Kind.STRING, recipe.name),
        **model.vocabulary,
    }


def _importance_digest(importance: Importance) -> bytes:
    digest = hashlib.sha256()
    for name, values in sorted(importance.items()):
        digest.update(name.encode() + values.tobytes())
    return digest.digest()


def _tokenizer_sha256(metadata: Mapping[str, Value]) -> str:
    """Over tokens, types, scores and merges as they stand in the metadata."""
    digest = hashlib.sha256()
    for key in ("tokens", "token_type", "scores", "merges"):
        value = metadata.get(f"tokenizer.ggml.{key}")
        digest.update(json.dumps([key, value.value if value else None]).encode())
    return digest.hexdigest()


def _template_sha256(metadata: Mapping[str, Value]) -> str | None:
    template = metadata.get("tokenizer.chat_template")
    return hashlib.sha256(template.value.encode()).hexdigest() if template else None
