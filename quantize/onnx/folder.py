"""What every plan of an ONNX folder has, whoever made its graph: its two files, its floats, medlite.json."""

from collections.abc import Mapping
from typing import Any

from medlite.files import json_text
from medlite.formats.onnx_folder import DATA_NAME, FACTS_NAME, MODEL_NAME, SCHEMA
from quantize.onnx.blocks import STRETCHES
from quantize.onnx.storage import DATA_FILE, Storage
from quantize.stream.plan import Plan, PlannedFile

# device -> what activations, vectors and norms are: CUDA's attention takes nothing wider than float16.
FLOATS: dict[str, Storage] = {"cpu": Storage(32), "cuda": Storage(16)}
STAMP = str(STRETCHES).encode()


def folder_files(graph: bytes, n_data_bytes: int) -> tuple[PlannedFile, PlannedFile]:
    """The graph, and the file with the tensors."""
    return PlannedFile(graph, len(graph), MODEL_NAME), PlannedFile(b"", n_data_bytes, DATA_NAME)


def facts_file(plan: Plan, name: str, of_graph: Mapping[str, Any]) -> dict[str, bytes]:
    """medlite.json, what medlite.formats.artifact and the engine read before anything is loaded.

    name: of the model. of_graph: the keys that only who made the graph can state.
    """
    facts = {
        "schema": SCHEMA,
        "name": name,
        "architecture": plan.architecture,
        "recipe": plan.recipe,
        **plan.facts,
        "n_params": plan.n_params,
        "n_data_bytes": plan.files[DATA_FILE].n_bytes,
        "bits_per_weight": round(plan.bits_per_weight, 6),
        **of_graph,
    }
    return {FACTS_NAME: json_text(facts).encode()}
