"""Everything about one ONNX folder, whoever made its graph, and the same as an output to write.

Two functions make one: quantize.onnx.plan.plan_onnx from a checkpoint, quantize.onnx.exported.plan_export from
another exporter's graph.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medlite.errors import CheckpointError
from medlite.files import json_text
from medlite.formats.onnx_folder import DATA_NAME, FACTS_NAME, MODEL_NAME, SCHEMA
from quantize.onnx.blocks import STRETCHES
from quantize.onnx.recipes import OnnxRecipe
from quantize.onnx.storage import Storage
from quantize.source.checkpoint import Checkpoint
from quantize.stream.plan import Output, PlannedFile, PlannedTensor, bits_per_weight, n_params

# device -> what activations, vectors and norms are: CUDA's attention takes nothing wider than float16.
FLOATS: dict[str, Storage] = {"cpu": Storage(32), "cuda": Storage(16)}


@dataclass(frozen=True)
class OnnxPlan:
    """One folder, decided before a byte is written.

    graph: the bytes of model.onnx. n_data_bytes: of the file with the tensors. companions: the small files beside
    them, as bytes or as the file to copy. made_by: package -> version of what made the graph.
    """

    checkpoint: Checkpoint
    architecture: str
    recipe: OnnxRecipe
    block: int
    device: str
    tensors: tuple[PlannedTensor, ...]
    n_data_bytes: int
    graph: bytes
    made_by: Mapping[str, str]
    companions: Mapping[str, bytes | Path] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Bytes of the graph and its weights; the tokenizer's files come on top."""
        return len(self.graph) + self.n_data_bytes

    @property
    def n_params(self) -> int:
        return n_params(self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return bits_per_weight(self.tensors)

    def output(self, path: Path) -> Output:
        """The plan as the folder `path`. Raises CheckpointError where the source lacks a file that it carries."""
        for content in self.companions.values():
            if isinstance(content, Path) and not content.is_file():
                raise CheckpointError(
                    f"{content}: missing, an ONNX folder carries it for every runtime",
                    hint="AutoTokenizer.from_pretrained(SOURCE).save_pretrained(SOURCE) writes it",
                )
        return Output(
            path=path,
            paths=(path / MODEL_NAME, path / DATA_NAME),
            checkpoint=self.checkpoint,
            architecture=self.architecture,
            recipe=self.recipe.name,
            tensors=self.tensors,
            files=(PlannedFile(self.graph, len(self.graph)), PlannedFile(b"", self.n_data_bytes)),
            ignored=self.ignored,
            facts={"block": self.block, "device": self.device},
            made_by=self.made_by,
            companions=self.companions,
            stamp=str(STRETCHES).encode(),
        )


def facts_file(plan: OnnxPlan, name: str, of_graph: Mapping[str, Any]) -> dict[str, bytes]:
    """medlite.json, what medlite.formats.artifact and the engine read before anything is loaded.

    name: of the model. of_graph: the keys that only who made the graph can state.
    """
    facts = {
        "schema": SCHEMA,
        "name": name,
        "architecture": plan.architecture,
        "recipe": plan.recipe.name,
        "block": plan.block,
        "device": plan.device,
        "n_params": plan.n_params,
        "n_data_bytes": plan.n_data_bytes,
        "bits_per_weight": round(plan.bits_per_weight, 6),
        **of_graph,
    }
    return {FACTS_NAME: json_text(facts).encode()}
