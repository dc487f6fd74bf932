"""The whole ONNX folder, decided from headers before a byte is written: as quantize.gguf.plan, for the other format.

It gives each tensor of the matched model its storage and its places in the one external data file.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import metadata

import numpy as np

from medlite.errors import CheckpointError, RecipeError
from quantize.families.transforms import KEEP, PERMUTE_ROPE
from quantize.match import SourceModel
from quantize.onnx.config import companion_files
from quantize.onnx.decoder import Decoder, read_decoder
from quantize.onnx.folder import FLOATS, STAMP, folder_files
from quantize.onnx.graph import build_graph
from quantize.onnx.recipes import OnnxRecipe, choose_storage
from quantize.onnx.storage import place
from quantize.stream.plan import Plan, PlannedTensor, StatedRows, planned_tensor


def plan_onnx(model: SourceModel, recipe: OnnxRecipe, *, block: int, device: str = "cpu") -> Plan:
    """The plan for one recipe, from headers only.

    Raises CheckpointError as quantize.match does and where the graph cannot express the model, RecipeError where the
    block does not fit.
    """
    if device not in FLOATS:
        raise RecipeError(f"--device {device}: unknown", hint=f"one of {', '.join(FLOATS)}")
    decoder = read_decoder(model)
    if device == "cuda" and not decoder.arithmetic.fits_float16:
        raise CheckpointError(
            f"config.json: {model.family.hf_name} leaves the range of float16, which a CUDA graph computes in",
            hint="--device cpu, or --format gguf, which runs it on CUDA",
        )
    floats = FLOATS[device]
    tensors: list[PlannedTensor] = []
    end = 0
    for tensor in model.tensors:
        if not tensor.is_parameter:  # rotary factors: they are in the caches
            continue
        storage, reason = choose_storage(recipe, block, tensor.name, tensor.shape)
        if len(tensor.shape) < 2:
            storage = floats
        parts, end = place(tensor.name, tensor.shape, storage, end)
        if tensor.transform is PERMUTE_ROPE:  # the graph rotates halves as the source does: rows stay in order
            tensor = replace(tensor, transform=KEEP, row_group=1)
        tensors.append(planned_tensor(tensor, storage, parts, reason))
    for name, shape, rows in _caches(decoder):
        parts, end = place(name, shape, floats, end)
        reason = "computed from the config"
        tensors.append(PlannedTensor(name, shape, floats, parts, reason, stated=rows, is_parameter=False))
    graph = build_graph(decoder, tensors, floats.name)
    plan = Plan(
        checkpoint=model.checkpoint,
        architecture=model.family.gguf_name,
        recipe=recipe.name,
        tensors=tuple(tensors),
        files=folder_files(graph, end),
        ignored=model.ignored,
        facts={"block": block, "device": device},
        stamp=STAMP,
        made_by={"onnx": metadata.version("onnx")},
        companions={},
    )
    return replace(plan, companions=companion_files(plan, decoder, model))


def _caches(decoder: Decoder) -> Iterator[tuple[str, tuple[int, int], StatedRows]]:
    """Name, shape and rows of the cosines and sines of each rotary table."""
    for number, table in enumerate(decoder.tables):
        shape = (table.n_rows(decoder.n_context), decoder.head_dim // 2)
        yield f"rope.{number}.cos", shape, partial(table.rows, function=np.cos)
        yield f"rope.{number}.sin", shape, partial(table.rows, function=np.sin)
