"""An ONNX folder of medlite: its file names and medlite.json, which says what the graph alone does not."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from medlite.errors import ArtifactError

MODEL_NAME = "model.onnx"
DATA_NAME = "model.onnx.data"
FACTS_NAME = "medlite.json"
SCHEMA = "medlite-onnx-1"
MAX_FACTS_BYTES = 16 << 20

KV_TYPES = ("float32", "float16")


@dataclass(frozen=True)
class OnnxFacts:
    """medlite.json. kv_type: of the key-value cache. end_tokens: ids that end a turn.

    long_rope_from: tokens beyond which another rotary table rules, 0 without one. shared_cache: the graph writes the
    key-value cache in place (GroupQueryAttention); else each run returns a longer one (graphs of other exporters).
    """

    name: str
    architecture: str
    recipe: str
    block: int
    device: str
    n_params: int
    n_data_bytes: int
    bits_per_weight: float
    n_vocab: int
    n_context_trained: int
    n_layer: int
    n_head_kv: int
    head_dim: int
    kv_type: str
    long_rope_from: int
    shared_cache: bool
    special_tokens: dict[str, str]
    end_tokens: list[int]
    chat_template: str | None

    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token takes over all layers."""
        return 2 * self.n_layer * self.n_head_kv * self.head_dim * (2 if self.kv_type == "float16" else 4)


SIZES = ("n_params", "n_data_bytes", "n_vocab", "n_layer", "n_head_kv", "head_dim", "n_context_trained")


def is_onnx_folder(path: Path) -> bool:
    """True for a folder that holds medlite.json."""
    return (path / FACTS_NAME).is_file()


def read_onnx_facts(folder: Path) -> OnnxFacts:
    """The facts of the ONNX folder, checked. Raises ArtifactError where they are missing, malformed or of no use."""
    path = folder / FACTS_NAME
    try:
        if path.stat().st_size > MAX_FACTS_BYTES:
            raise ArtifactError(f"{path}: {path.stat().st_size} bytes, at most {MAX_FACTS_BYTES} were expected")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ArtifactError(f"{path}: {error}", hint="the folder is incomplete; make it again") from error
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        found = value.get("schema") if isinstance(value, dict) else type(value).__name__
        raise ArtifactError(f"{path}: schema {found!r}, {SCHEMA!r} was needed", hint="a newer medlite may read it")
    names = [field.name for field in fields(OnnxFacts)]
    if missing := [name for name in names if name not in value]:
        raise ArtifactError(f"{path}: {', '.join(missing)} missing")
    facts = OnnxFacts(**{name: value[name] for name in names})
    _check(path, facts)
    return facts


def _check(path: Path, facts: OnnxFacts) -> None:
    """Raise ArtifactError where a value is of another type or out of range."""
    wanted: dict[str, tuple[type, ...]] = {
        "name": (str,),
        "architecture": (str,),
        "recipe": (str,),
        "device": (str,),
        "kv_type": (str,),
        "shared_cache": (bool,),
        "special_tokens": (dict,),
        "end_tokens": (list,),
        "chat_template": (str, type(None)),
        "bits_per_weight": (int, float),
    }
    for field in fields(OnnxFacts):
        value: Any = getattr(facts, field.name)
        if not isinstance(value, wanted.get(field.name, (int,))) or (
            isinstance(value, bool) and field.name != "shared_cache"
        ):
            raise ArtifactError(f"{path}: {field.name} is {value!r}")
    for name in SIZES:
        if not 0 < getattr(facts, name) < 1 << 48:
            raise ArtifactError(f"{path}: {name} is {getattr(facts, name)}")
    if facts.kv_type not in KV_TYPES:
        raise ArtifactError(f"{path}: kv_type is {facts.kv_type!r}, one of {', '.join(KV_TYPES)} was needed")
    if not all(isinstance(token, int) and 0 <= token < facts.n_vocab for token in facts.end_tokens):
        raise ArtifactError(f"{path}: end_tokens are not token ids below {facts.n_vocab}")
    if not all(isinstance(text, str) for text in facts.special_tokens.values()):
        raise ArtifactError(f"{path}: special_tokens are not texts")


def folder_bytes(folder: Path, facts: OnnxFacts) -> int:
    """Bytes of the model: graph and weights. Raises ArtifactError where the weights are cut short."""
    try:
        n_graph_bytes, n_data_bytes = ((folder / name).stat().st_size for name in (MODEL_NAME, DATA_NAME))
    except OSError as error:
        raise ArtifactError(f"{error.filename}: {error.strerror}", hint="the folder is incomplete") from error
    if n_data_bytes != facts.n_data_bytes:
        raise ArtifactError(
            f"{folder / DATA_NAME}: {n_data_bytes} bytes, {facts.n_data_bytes} were written",
            hint="the file was cut short or replaced; make or copy the folder again",
        )
    return n_graph_bytes + n_data_bytes
