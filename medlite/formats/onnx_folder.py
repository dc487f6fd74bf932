"""An ONNX folder of medlite: its file names and medlite.json, which says what the graph alone does not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from medlite.errors import ArtifactError
from medlite.formats.json import read_json_of

MODEL_NAME = "model.onnx"
DATA_NAME = "model.onnx.data"
FACTS_NAME = "medlite.json"
SCHEMA = "medlite-onnx-1"
MAX_FACTS_BYTES = 16 << 20

Size = Annotated[int, msgspec.Meta(gt=0, lt=1 << 48)]
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]


@dataclass(frozen=True)
class OnnxFacts:
    """medlite.json. kv_type: of the key-value cache. end_tokens: ids that end a turn.

    long_rope_from: tokens beyond which another rotary table rules, 0 without one. shared_cache: the graph writes the
    key-value cache in place (GroupQueryAttention); else each run returns a longer one (graphs of other exporters).
    """

    name: str
    architecture: str
    recipe: str
    block: Count
    device: str
    n_params: Size
    n_data_bytes: Size
    bits_per_weight: float
    n_vocab: Size
    n_context_trained: Size
    n_layer: Size
    n_head_kv: Size
    head_dim: Size
    kv_type: Literal["float32", "float16"]
    long_rope_from: Count
    shared_cache: bool
    special_tokens: dict[str, str]
    end_tokens: list[Count]
    chat_template: str | None

    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token takes over all layers."""
        return 2 * self.n_layer * self.n_head_kv * self.head_dim * (2 if self.kv_type == "float16" else 4)


def is_onnx_folder(path: Path) -> bool:
    """True for a folder that holds medlite.json."""
    return (path / FACTS_NAME).is_file()


def read_onnx_facts(folder: Path) -> OnnxFacts:
    """The facts of the ONNX folder, checked. Raises ArtifactError where they are missing, malformed or of no use."""
    path = folder / FACTS_NAME
    hint = "the folder is incomplete; make it again"
    facts = read_json_of(SCHEMA, path, OnnxFacts, ArtifactError, hint=hint, most_bytes=MAX_FACTS_BYTES)
    if not all(token < facts.n_vocab for token in facts.end_tokens):
        raise ArtifactError(f"{path}: end_tokens are not token ids below {facts.n_vocab}")
    return facts


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
