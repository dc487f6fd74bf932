"""The plan of an ONNX folder whose graph Optimum made: what medlite.json must say of it, and its tokenizer's files."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medlite.errors import CheckpointError
from medlite.formats.chat_template import stated_tokens
from medlite.formats.hub_cache import repository_or_folder
from medlite.formats.json import read_json
from medlite.formats.safetensors import SourceTensor
from quantize.onnx.config import COPIED_NAMES, TOKENIZER_NAME, end_tokens
from quantize.onnx.folder import FLOATS, facts_file
from quantize.onnx.optimum import Export
from quantize.onnx.recipes import OnnxRecipe
from quantize.onnx.rewrite import ExportedGraph, rewrite
from quantize.source.checkpoint import Checkpoint, SourceFiles
from quantize.stream.plan import Plan

# config.json's words for the longest sequence. Source: the families' configuration files in transformers.
CONTEXT_KEYS = ("n_positions", "max_position_embeddings", "n_ctx")
# Tokenizers that no tokenizer.json can hold -> the files that medlite.engines reads instead.
OTHER_TOKENIZERS: dict[str, tuple[str, ...]] = {"biogpt": ("vocab.json", "merges.txt")}
PAST = "past_key_values."


def open_source(folder: Path) -> Checkpoint:
    """The config and the weight files of `folder`; what is in the files is Optimum's to read.

    Each file stands as one tensor of bytes, so that receipts name and hash it. Raises CheckpointError.
    """
    small = SourceFiles(folder)
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise CheckpointError(f"{folder}: no *.safetensors and no pytorch_model*.bin", hint="is the download complete?")
    sizes = {path: path.stat().st_size for path in files}
    tensors = {path.name: SourceTensor(path.name, "U8", (n,), path, 0, n) for path, n in sizes.items()}
    return Checkpoint(small, small.object("config.json"), tensors)


def plan_export(checkpoint: Checkpoint, export: Export, recipe: OnnxRecipe, block: int) -> Plan:
    """The plan for one recipe of what Optimum exported. Raises CheckpointError where the config lacks a size."""
    n_vocab = _size(checkpoint, ("vocab_size",))
    graph = ExportedGraph(export, n_vocab)
    plan = rewrite(graph, checkpoint, recipe, block)
    files = tokenizer_files(checkpoint, export.folder)
    facts = facts_file(plan, repository_or_folder(checkpoint.folder), _facts(plan, files, graph, n_vocab))
    return replace(plan, companions={**files, **facts})


def _size(checkpoint: Checkpoint, keys: tuple[str, ...]) -> int:
    value = next((checkpoint.config[key] for key in keys if key in checkpoint.config), None)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{checkpoint.folder / 'config.json'}: {' or '.join(keys)} is {value!r}")
    return value


def _cache_shape(graph: ExportedGraph) -> tuple[int, int, int]:
    """Layers, heads of keys, width of a head. Raises CheckpointError for a cache of another form."""
    shapes = [
        [dim.dim_value for dim in one.type.tensor_type.shape.dim]
        for one in graph.model.graph.input
        if one.name.startswith(PAST)
    ]
    alike = all(len(shape) == 4 and shape[1:] == shapes[0][1:] for shape in shapes)
    if not shapes or len(shapes) % 2 or not alike or not (shapes[0][1] and shapes[0][3]):
        raise CheckpointError(
            f"the exported graph's key-value cache is {shapes[:1]}, (batch, heads, tokens, width) was needed",
            hint="--format gguf may know the architecture",
        )
    return len(shapes) // 2, shapes[0][1], shapes[0][3]


def _facts(plan: Plan, files: Mapping[str, Path], graph: ExportedGraph, n_vocab: int) -> dict[str, Any]:
    """What medlite.json says of the graph, as quantize.onnx.config does of our own."""
    checkpoint = plan.checkpoint
    n_layer, n_head_kv, head_dim = _cache_shape(graph)
    settings = checkpoint.files.object_if_any("tokenizer_config.json")
    template = settings.get("chat_template")
    if not isinstance(template, str) and "chat_template.jinja" in files:
        template = files["chat_template.jinja"].read_text(encoding="utf-8")
    return {
        "n_vocab": n_vocab,
        "n_context_trained": _size(checkpoint, CONTEXT_KEYS),
        "n_layer": n_layer,
        "n_head_kv": n_head_kv,
        "head_dim": head_dim,
        "kv_type": FLOATS[plan.facts["device"]].name,
        "long_rope_from": 0,
        "shared_cache": False,
        "special_tokens": stated_tokens(settings),
        "end_tokens": _end_tokens(checkpoint, files, n_vocab),
        "chat_template": template if isinstance(template, str) else None,
    }


@dataclass(frozen=True)
class _AddedToken:
    id: int
    content: str


@dataclass(frozen=True)
class _Tokenizer:
    """tokenizer.json, as far as an exported folder needs it."""

    added_tokens: list[_AddedToken] | None = None


def _end_tokens(checkpoint: Checkpoint, files: Mapping[str, Path], n_vocab: int) -> list[int]:
    """Every token that ends a turn: as the configs say, and by its text."""
    added: list[_AddedToken] = []
    if TOKENIZER_NAME in files:
        added = read_json(files[TOKENIZER_NAME], _Tokenizer, CheckpointError).added_tokens or []
    places = {token.content: token.id for token in added}
    return end_tokens(checkpoint.config, checkpoint.files, places, set(), n_vocab=n_vocab)


def tokenizer_files(checkpoint: Checkpoint, exported: Path) -> dict[str, Path]:
    """Name -> file: the source's, or what Optimum's transformers made of them.

    Raises CheckpointError where the model's tokenizer can be carried over neither as tokenizer.json nor as its own.
    """
    files: dict[str, Path] = {}
    for name in COPIED_NAMES:
        for folder in (checkpoint.folder, exported):
            if (folder / name).is_file():
                files.setdefault(name, folder / name)
    if TOKENIZER_NAME not in files:
        others = OTHER_TOKENIZERS.get(str(checkpoint.config.get("model_type")), ())
        if not others or not all((checkpoint.folder / name).is_file() for name in others):
            raise CheckpointError(
                f"{checkpoint.folder / TOKENIZER_NAME}: missing, and transformers cannot make it",
                hint="AutoTokenizer.from_pretrained(SOURCE).save_pretrained(SOURCE) writes it where "
                "the tokenizer has a fast form",
            )
        files |= {name: checkpoint.folder / name for name in others}
    return files
