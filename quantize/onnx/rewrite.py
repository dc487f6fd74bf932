"""Another exporter's float32 graph with its weights low-bit: MatMul, Gemm and the embedding's Gather become blocks.

The graph keeps its inputs (position_ids, a key-value cache that grows by concatenation) and its other operators. What
changes: a matrix of weights is stored as quantize.onnx.recipes says, equal matrices (an embedding and the head tied
to it) once, and logits are computed from `logits_from` on, as in our own graphs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medlite.errors import CheckpointError
from quantize.onnx.folder import STAMP, folder_files
from quantize.onnx.graph import CONTRIB, CONTRIB_OPSET, INT64_MAX, LOGITS_FROM, Graph, import_onnx
from quantize.onnx.optimum import Export
from quantize.onnx.recipes import OnnxRecipe, choose_storage
from quantize.onnx.storage import Storage, place
from quantize.source.checkpoint import Checkpoint
from quantize.stream.plan import Plan, PlannedTensor, array_rows

EXPORT_NAME = "model.onnx"
COMPARE_ROWS = 4096

# The module that a matrix belongs to, by the end of its path in the model -> the category that recipes know it by.
# fmt: off
CATEGORIES: tuple[tuple[str, str], ...] = (
    ("attn.c_attn", "attn_qkv"), ("query_key_value", "attn_qkv"), ("v_proj", "attn_v"), ("q_proj", "attn_q"),
    ("k_proj", "attn_k"), ("mlp.c_proj", "ffn_down"), ("down_proj", "ffn_down"), ("fc2", "ffn_down"),
    ("fc_out", "ffn_down"), ("dense_4h_to_h", "ffn_down"),
)
# fmt: on


@dataclass(frozen=True)
class Matrix:
    """Weights of one operator. rows: (n_out, n_in), or an embedding's (n_vocab, width). shared: another's name."""

    name: str
    node: str
    category: str
    rows: NDArray[np.float32]
    shared: str = ""

    @property
    def stored_as(self) -> str:
        return self.shared or self.name


class ExportedGraph:
    """The export, read once: operators, and weights as views of the file."""

    def __init__(self, export: Export, n_vocab: int) -> None:
        self.onnx = import_onnx()
        self.export = export
        path = export.folder / EXPORT_NAME
        self.model = self.onnx.load(str(path), load_external_data=False)
        self.floats = {
            tensor.name: self._values(tensor)
            for tensor in self.model.graph.initializer
            if tensor.data_type == self.onnx.TensorProto.FLOAT and tensor.dims
        }
        self.matrices = list(self._matrices(n_vocab))
        n_heads = sum(matrix.category == "output" for matrix in self.matrices)
        if n_heads != 1:
            raise CheckpointError(
                f"{path}: {n_heads} matrices of {n_vocab} rows, one that makes the logits was needed",
                hint="only causal language models can be exported",
            )

    def _values(self, tensor: Any) -> NDArray[np.float32]:
        """The tensor's values, memory-mapped where they lie in a file of their own."""
        shape = tuple(int(n) for n in tensor.dims)
        if tensor.data_location != self.onnx.TensorProto.EXTERNAL:
            values: NDArray[np.float32] = self.onnx.numpy_helper.to_array(tensor)
            return values
        place = {entry.key: entry.value for entry in tensor.external_data}
        path = self.export.folder / Path(place["location"]).name
        return np.memmap(path, np.float32, "r", int(place.get("offset", 0)), shape)

    def _matrices(self, n_vocab: int) -> Iterator[Matrix]:
        """Every matrix that is stored as rows, the head marked as such and tied to an equal embedding."""
        tables: list[Matrix] = []
        seen: dict[str, str] = {}
        for node in self.model.graph.node:
            if (found := _weights_of(node, self.floats)) is None:
                continue
            source, rows = found
            if node.op_type == "Gather" and len(rows) != n_vocab:
                continue  # positions: few, and every bit of them counts
            name = _path(node) + ".weight"
            category = _category(_path(node), node.op_type, len(rows) == n_vocab)
            shared = seen.setdefault(source, name) if category != "output" else ""
            if category == "output":
                shared = next((table.name for table in tables if _equal(table.rows, rows)), "")
            matrix = Matrix(name, node.name, category, rows, shared if shared != name else "")
            if category == "embedding":
                tables.append(matrix)
            yield matrix


def _weights_of(node: Any, floats: Mapping[str, NDArray[np.float32]]) -> tuple[str, NDArray[np.float32]] | None:
    """The initializer and its rows (n_out, n_in) where the node multiplies by a matrix or looks one up; else None."""
    settings = {attribute.name: attribute for attribute in node.attribute}
    at = 0 if node.op_type == "Gather" else 1
    if node.op_type not in ("MatMul", "Gemm", "Gather") or len(node.input) <= at or node.input[at] not in floats:
        return None
    values = floats[node.input[at]]
    if values.ndim != 2:
        return None
    if node.op_type == "Gather":
        return (node.input[at], values) if not ("axis" in settings and settings["axis"].i) else None
    if node.op_type == "MatMul":
        return node.input[at], values.T
    scaled = any(key in settings and settings[key].f != 1.0 for key in ("alpha", "beta"))
    if scaled or ("transA" in settings and settings["transA"].i):
        return None
    return node.input[at], values if "transB" in settings and settings["transB"].i else values.T


def _path(node: Any) -> str:
    """The module's path in the model: /transformer/h.0/mlp/c_fc/Gemm is transformer.h.0.mlp.c_fc."""
    return str(node.name or node.output[0]).strip("/").rpartition("/")[0].replace("/", ".") or str(node.output[0])


def _category(path: str, kind: str, spans_vocabulary: bool) -> str:
    if spans_vocabulary:
        return "embedding" if kind == "Gather" else "output"
    return next((category for end, category in CATEGORIES if path.endswith(end)), "other")


def _equal(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return a.shape == b.shape and all(
        np.array_equal(a[i : i + COMPARE_ROWS], b[i : i + COMPARE_ROWS]) for i in range(0, len(a), COMPARE_ROWS)
    )


def rewrite(exported: ExportedGraph, checkpoint: Checkpoint, recipe: OnnxRecipe, block: int) -> Plan:
    """The plan of the folder to come, without companions. Raises RecipeError where the block divides no rows."""
    tensors: list[PlannedTensor] = []
    end = 0

    def add(name: str, values: NDArray[np.float32], storage: Storage, reason: str) -> None:
        nonlocal end
        parts, end = place(name, values.shape, storage, end)
        tensors.append(PlannedTensor(name, values.shape, storage, parts, reason, stated=array_rows(values)))

    for matrix in exported.matrices:
        if not matrix.shared:
            storage, reason = choose_storage(recipe, block, matrix.name, matrix.rows.shape, matrix.category)
            add(matrix.name, matrix.rows, storage, reason)
    replaced = {matrix.node: matrix for matrix in exported.matrices}
    for name, values in exported.floats.items():
        if _still_used(exported.model, name, replaced):
            add(name, values, Storage(32), "no matrix of an operator: stays float")
    graph = _graph(exported, tensors, replaced)
    versions = {**exported.export.versions, "onnx": metadata.version("onnx")}
    return Plan(
        checkpoint=checkpoint,
        architecture=str(checkpoint.config.get("model_type")),
        recipe=recipe.name,
        tensors=tuple(tensors),
        files=folder_files(graph, end),
        ignored={},
        facts={"block": block, "device": "cpu"},
        stamp=STAMP,
        made_by=versions,
        companions={},
    )


def _still_used(model: Any, name: str, replaced: Mapping[str, Matrix]) -> bool:
    """Whether an operator that stays reads the initializer, or one that is replaced reads it beside its matrix."""
    for node in model.graph.node:
        read = list(node.input)
        if node.name in replaced:
            read = read[2:] if node.op_type == "Gemm" else []
        if name in read:
            return True
    return False


def _graph(exported: ExportedGraph, tensors: list[PlannedTensor], replaced: Mapping[str, Matrix]) -> bytes:
    """The bytes of model.onnx."""
    onnx, model = exported.onnx, exported.model
    graph = Graph(tensors, "float32", onnx)
    names = {tensor.name for tensor in tensors}
    for tensor in model.graph.initializer:
        if tensor.name in names:
            graph.vector(tensor.name)
        elif tensor.name not in exported.floats:
            graph.initializers.append(tensor)
    for node in model.graph.node:
        if (matrix := replaced.get(node.name)) is None:
            graph.nodes.append(node)
        else:
            _replace(graph, node, matrix)
    graph.initializers.append(onnx.helper.make_tensor(LOGITS_FROM, onnx.TensorProto.INT64, [1], [0]))
    inputs = [*model.graph.input, onnx.helper.make_tensor_value_info(LOGITS_FROM, onnx.TensorProto.INT64, [1])]
    outputs = list(model.graph.output)
    logits = next(one for one in outputs if one.name == "logits")
    logits.type.tensor_type.shape.dim[1].dim_param = "wanted"
    opsets = [*model.opset_import, onnx.helper.make_opsetid(CONTRIB, CONTRIB_OPSET)]
    made = onnx.helper.make_graph(graph.nodes, "exported", inputs, outputs, graph.initializers)
    rewritten = onnx.helper.make_model(made, ir_version=model.ir_version, opset_imports=opsets)
    rewritten.producer_name, rewritten.producer_version = model.producer_name, model.producer_version
    return bytes(rewritten.SerializeToString(deterministic=True))


def _replace(graph: Graph, node: Any, matrix: Matrix) -> None:
    """The operators that stand for `node`, with its output."""
    tensor, output = graph.tensors[matrix.stored_as], node.output[0]
    if node.op_type == "Gather":
        graph.embed(node.input[1], output, matrix.stored_as)
        return
    x = node.input[0]
    if matrix.category == "output":
        x = graph.node("Slice", [x, LOGITS_FROM, graph.integers([INT64_MAX]), graph.integers([1])], f"{output}.wanted")
    bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] else ""
    product = graph.product(x, tensor, f"{output}.unbiased" if bias else output)
    if bias:
        graph.node("Add", [product, bias], output)
