"""The decoder as an ONNX graph: about a dozen nodes a layer, weights in an external data file.

Inputs and outputs are those of onnxruntime-genai's models: input_ids, attention_mask, past_key_values.N.key/value to
logits, present.N.key/value. Two more inputs have defaults, so a runtime that does not know them need not feed them:
logits_from (the first position of input_ids whose logits are computed, 0) and, under LongRoPE, total_tokens (the
length that a prompt read in pieces will have, 0: as long as it is).
Source of the operators: onnxruntime docs/ContribOperators.md.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from medlite.errors import MissingExtraError
from medlite.formats.onnx_folder import DATA_NAME
from medlite.version import __version__
from quantize.families.family import Layer
from quantize.onnx.blocks import BlockFormat
from quantize.onnx.decoder import Decoder
from quantize.onnx.storage import Storage
from quantize.stream.plan import Part, PlannedTensor

CONTRIB = "com.microsoft"
OPSET, CONTRIB_OPSET, IR_VERSION = 21, 1, 10
INT64_MAX = (1 << 63) - 1
ACCURACY_LEVEL = 4  # int8 activations in MatMulNBits: twice the decode speed of level 1 at no visible loss
LOGITS_FROM, TOTAL_TOKENS = "logits_from", "total_tokens"


def build_graph(decoder: Decoder, tensors: Iterable[PlannedTensor], float_name: str) -> bytes:
    """The bytes of the model file; the same arguments give the same bytes. float_name: dtype of the activations."""
    onnx = import_onnx()
    graph = Graph(tensors, float_name, onnx)
    hidden = _decode(graph, decoder)
    graph.node("Slice", [hidden, LOGITS_FROM, graph.integers([INT64_MAX]), graph.integers([1])], "hidden.wanted")
    head = "output.weight" if "output.weight" in decoder.tensors else "token_embd.weight"
    logits = graph.linear("hidden.wanted", head, "logits.raw")
    graph.node("Cast", [logits], "logits", to=onnx.TensorProto.FLOAT)
    inputs, outputs = _inputs(graph, decoder), _outputs(graph, decoder)
    made = onnx.helper.make_graph(graph.nodes, "decoder", inputs, outputs, graph.initializers)
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(CONTRIB, CONTRIB_OPSET)]
    model = onnx.helper.make_model(made, ir_version=IR_VERSION, opset_imports=opsets)
    model.producer_name, model.producer_version = "medlite", __version__
    return bytes(model.SerializeToString(deterministic=True))


def import_onnx() -> Any:
    """The package onnx. Raises MissingExtraError."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", "onnx") from error
    return onnx


def blocks_of(tensor: PlannedTensor) -> BlockFormat | None:
    """The blocks that the tensor is stored in, None for plain floats."""
    return tensor.encoding.blocks if isinstance(tensor.encoding, Storage) else None


class Graph:
    """Nodes and initializers as they are added; every method returns the name of what it makes."""

    def __init__(self, tensors: Iterable[PlannedTensor], float_name: str, onnx: Any) -> None:
        self.onnx = onnx
        self.float_name = float_name
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.tensors = {tensor.name: tensor for tensor in tensors}
        self._made: set[str] = set()

    @property
    def float_type(self) -> int:
        return self.type_of(self.float_name)

    def type_of(self, dtype: str) -> int:
        """ONNX's number for a dtype."""
        names = {"float32": "FLOAT", "float16": "FLOAT16", "uint8": "UINT8", "int64": "INT64", "int32": "INT32"}
        return int(getattr(self.onnx.TensorProto, names[dtype]))

    def node(
        self, kind: str, inputs: list[str], output: str | list[str], *, domain: str = "", **attributes: Any
    ) -> str:
        """One operator; its name is that of its first output."""
        outputs = [output] if isinstance(output, str) else output
        self.nodes.append(
            self.onnx.helper.make_node(kind, inputs, outputs, name=outputs[0], domain=domain, **attributes)
        )
        return outputs[0]

    def contrib(self, kind: str, inputs: list[str], output: str | list[str], **attributes: Any) -> str:
        return self.node(kind, inputs, output, domain=CONTRIB, **attributes)

    def integers(self, values: list[int], *, scalar: bool = False) -> str:
        """An int64 constant."""
        name = "int64." + "_".join(map(str, values)) + (".scalar" if scalar else "")
        if name not in self._made:
            self._made.add(name)
            self.initializers.append(
                self.onnx.helper.make_tensor(name, self.onnx.TensorProto.INT64, [] if scalar else [len(values)], values)
            )
        return name

    def scalar(self, value: float) -> str:
        """A float constant, of the activations' type."""
        name = f"float.{value!r}"
        if name not in self._made:
            self._made.add(name)
            self.initializers.append(self.onnx.numpy_helper.from_array(np.array(value, self.float_name), name))
        return name

    def external(self, piece: Part, name: str, shape: tuple[int, ...]) -> str:
        """The initializer `name` whose bytes are `piece`'s; the embedding and a tied head share theirs."""
        if name not in self._made:
            self._made.add(name)
            proto = self.onnx.TensorProto(
                name=name,
                data_type=self.type_of(piece.dtype),
                dims=list(shape),
                data_location=self.onnx.TensorProto.EXTERNAL,
            )
            for key, value in (("location", DATA_NAME), ("offset", piece.offset), ("length", piece.n_bytes)):
                proto.external_data.add(key=key, value=str(value))
            self.initializers.append(proto)
        return name

    def wide(self, piece: Part) -> str:
        """`piece` as the activations' type: scales and float16 weights are widened once, when the model loads."""
        stored = self.external(piece, piece.name, piece.shape)
        if piece.dtype == self.float_name:
            return stored
        if (name := f"{piece.name}.{self.float_name}") not in self._made:
            self._made.add(name)
            self.node("Cast", [stored], name, to=self.float_type)
        return name

    # --- weights -----------------------------------------------------------------------------------------------------

    def vector(self, name: str) -> str:
        """A norm, a bias or a rotary cache."""
        return self.wide(self.tensors[name].parts[0])

    def embed(self, ids: str, output: str, name: str = "token_embd.weight") -> str:
        """Rows of the embedding."""
        tensor = self.tensors[name]
        layout = blocks_of(tensor)
        if layout is None:
            stored = self.external(tensor.parts[0], tensor.name, tensor.shape)
            rows = self.node("Gather", [stored, ids], f"{output}.stored", axis=0)
            return self.node("Cast", [rows], output, to=self.float_type)
        codes, scales, *zeros = tensor.parts
        inputs = [self.external(codes, codes.name, codes.shape), ids, self.wide(scales)]
        inputs += [self.external(piece, piece.name, piece.shape) for piece in zeros]
        form = {"bits": layout.bits, "block_size": layout.block, "gather_axis": 0, "quantize_axis": 1}
        return self.contrib("GatherBlockQuantized", inputs, output, **form)

    def linear(self, x: str, name: str, output: str) -> str:
        """x times the transposed weight, plus its bias if it has one."""
        tensor = self.tensors[name]
        bias = name.removesuffix(".weight") + ".bias"
        product = self.product(x, tensor, f"{output}.unbiased" if bias in self.tensors else output)
        return self.node("Add", [product, self.vector(bias)], output) if bias in self.tensors else product

    def product(self, x: str, tensor: PlannedTensor, output: str) -> str:
        """x times the transposed weight."""
        n_rows, row_length = tensor.shape
        layout = blocks_of(tensor)
        if layout is None:
            return self.contrib("FusedMatMul", [x, self.wide(tensor.parts[0])], output, transB=1)
        codes, scales, *zeros = tensor.parts
        shape = (n_rows, layout.n_blocks(row_length), layout.block * layout.bits // 8)
        inputs = [x, self.external(codes, f"{codes.name}.blocks", shape), self.wide(scales)]
        inputs += [self.external(piece, piece.name, piece.shape) for piece in zeros]
        form = {"K": row_length, "N": n_rows, "bits": layout.bits, "block_size": layout.block}
        return self.contrib("MatMulNBits", inputs, output, **form, accuracy_level=ACCURACY_LEVEL)

    def norm(self, x: str, name: str, epsilon: float) -> str:
        """RMS norm over the last axis, by the weight of the norm `name`."""
        inputs = [x, self.vector(f"{name}.weight")]
        return self.node("SimplifiedLayerNormalization", inputs, name, axis=-1, epsilon=epsilon, stash_type=1)


# --- the decoder -----------------------------------------------------------------------------------------------------


def _decode(graph: Graph, decoder: Decoder) -> str:
    """The normed hidden states behind the last layer, (batch, length, hidden)."""
    positions = _positions(graph, decoder)
    residual = graph.embed("input_ids", "embedding")
    if decoder.embedding_scale != 1.0:
        residual = graph.node("Mul", [residual, graph.scalar(decoder.embedding_scale)], "embedding.scaled")
    x = graph.norm(residual, "blk.0.attn_norm", decoder.norm_epsilon)
    for number, layer in enumerate(decoder.layers):
        block = f"blk.{number}"
        out = _attention(graph, decoder, layer, number, x, positions)
        out = _norm_if_any(graph, decoder, out, f"{block}.post_attention_norm")
        x, residual = _add_and_norm(graph, decoder, residual, out, f"{block}.ffn_norm")
        out = _feed_forward(graph, decoder, block, x)
        out = _norm_if_any(graph, decoder, out, f"{block}.post_ffw_norm")
        following = f"blk.{number + 1}.attn_norm" if number + 1 < len(decoder.layers) else "output_norm"
        x, residual = _add_and_norm(graph, decoder, residual, out, following)
    return x


def _norm_if_any(graph: Graph, decoder: Decoder, x: str, norm: str) -> str:
    """`x`, normed where the model has such a norm."""
    return graph.norm(x, norm, decoder.norm_epsilon) if f"{norm}.weight" in decoder.tensors else x


def _add_and_norm(graph: Graph, decoder: Decoder, residual: str, delta: str, norm: str) -> tuple[str, str]:
    """The normed sum and the sum."""
    total = f"{norm}.residual"
    graph.contrib(
        "SkipSimplifiedLayerNormalization",
        [residual, delta, graph.vector(f"{norm}.weight")],
        [norm, "", "", total],
        epsilon=decoder.norm_epsilon,
    )
    return norm, total


def _attention(graph: Graph, decoder: Decoder, layer: Layer, number: int, x: str, positions: str) -> str:
    block = f"blk.{number}"
    if f"{block}.attn_qkv.weight" in decoder.tensors:
        query, key, value = graph.linear(x, f"{block}.attn_qkv.weight", f"{block}.qkv"), "", ""
    else:
        query, key, value = (graph.linear(x, f"{block}.attn_{part}.weight", f"{block}.{part}") for part in "qkv")
        query = _head_norm(graph, decoder, query, f"{block}.attn_q_norm", decoder.n_head)
        key = _head_norm(graph, decoder, key, f"{block}.attn_k_norm", decoder.n_head_kv)
    past = [f"past_key_values.{number}.key", f"past_key_values.{number}.value"]
    caches = [graph.vector(f"rope.{layer.table}.{function}") for function in ("cos", "sin")]
    inputs = [query, key, value, *past, "last_position", "n_total", *caches]
    attended = graph.contrib(
        "GroupQueryAttention",
        [*inputs, positions] if positions else inputs,
        [f"{block}.attention", f"present.{number}.key", f"present.{number}.value"],
        num_heads=decoder.n_head,
        kv_num_heads=decoder.n_head_kv,
        scale=decoder.attention_scale,
        do_rotary=1,
        rotary_interleaved=0,
        local_window_size=layer.window,
    )
    return graph.linear(attended, f"{block}.attn_output.weight", f"{block}.attn_output")


def _head_norm(graph: Graph, decoder: Decoder, x: str, norm: str, n_head: int) -> str:
    """`x` with each head normed on its own, where the model does so."""
    if f"{norm}.weight" not in decoder.tensors:
        return x
    heads = graph.node("Reshape", [x, graph.integers([0, 0, n_head, decoder.head_dim])], f"{norm}.heads")
    normed = graph.norm(heads, norm, decoder.norm_epsilon)
    return graph.node("Reshape", [normed, graph.integers([0, 0, n_head * decoder.head_dim])], f"{norm}.flat")


def _feed_forward(graph: Graph, decoder: Decoder, block: str, x: str) -> str:
    """down(activation(gate(x)) * up(x))"""
    if f"{block}.ffn_gate.weight" in decoder.tensors:
        gate, up = (graph.linear(x, f"{block}.ffn_{part}.weight", f"{block}.{part}") for part in ("gate", "up"))
    else:
        gate, up = f"{block}.gate", f"{block}.up"
        both = graph.linear(x, f"{block}.ffn_up.weight", f"{block}.gate_up")
        graph.node("Split", [both], [gate, up], axis=-1, num_outputs=2)
    if decoder.arithmetic.activation == "silu":
        active = graph.contrib("QuickGelu", [gate], f"{block}.active", alpha=1.0)
    else:
        active = graph.node("Gelu", [gate], f"{block}.active", approximate="tanh")
    gated = graph.node("Mul", [active, up], f"{block}.gated")
    return graph.linear(gated, f"{block}.ffn_down.weight", f"{block}.ffn_down")


def _positions(graph: Graph, decoder: Decoder) -> str:
    """Add n_total and last_position, which attention counts by; under LongRoPE return the rotary cache's rows.

    A right-padded prompt starts at 0; else each sequence continues behind what its mask counts.
    """
    int32, axis, one = graph.type_of("int32"), graph.integers([1]), graph.integers([1], scalar=True)
    sums = graph.node("ReduceSum", ["attention_mask", axis], "mask.sums", keepdims=0)
    last = graph.node("Sub", [sums, axis], "mask.last")
    graph.node("Cast", [last], "last_position", to=int32)
    shape = graph.node("Shape", ["attention_mask"], "mask.shape")
    total = graph.node("Gather", [shape, one], "mask.total", axis=0)
    graph.node("Cast", [total], "n_total", to=int32)
    if not decoder.long_rope_from:
        return ""
    zero, border = graph.integers([0], scalar=True), graph.integers([decoder.long_rope_from], scalar=True)
    ids = graph.node("Shape", ["input_ids"], "ids.shape")
    length = graph.node("Gather", [ids, one], "ids.length", axis=0)
    counts = graph.node("Add", [last, axis], "mask.counts")
    before = graph.node("Sub", [counts, length], "ids.before")
    first = graph.node("Max", [before, zero], "ids.first")
    column = graph.node("Unsqueeze", [first, axis], "ids.first.column")
    steps = graph.node("Range", [zero, length, one], "ids.steps")
    places = graph.node("Add", [column, steps], "ids.positions")
    longest = graph.node("Max", [total, TOTAL_TOKENS], "ids.longest")
    is_long = graph.node("Greater", [longest, border], "ids.is_long")
    offset = graph.node("Where", [is_long, border, zero], "ids.offset")
    return graph.node("Add", [places, offset], "rotary.rows")


def _inputs(graph: Graph, decoder: Decoder) -> list[Any]:
    """The inputs; those with a default stand among the initializers too."""
    helper, proto = graph.onnx.helper, graph.onnx.TensorProto
    graph.initializers.append(helper.make_tensor(LOGITS_FROM, proto.INT64, [1], [0]))
    cache = ["batch", decoder.n_head_kv, "past", decoder.head_dim]
    inputs = [
        helper.make_tensor_value_info("input_ids", proto.INT64, ["batch", "length"]),
        helper.make_tensor_value_info("attention_mask", proto.INT64, ["batch", "total"]),
    ]
    inputs += [
        helper.make_tensor_value_info(f"past_key_values.{i}.{part}", graph.float_type, cache)
        for i in range(len(decoder.layers))
        for part in ("key", "value")
    ]
    inputs.append(helper.make_tensor_value_info(LOGITS_FROM, proto.INT64, [1]))
    if decoder.long_rope_from:
        graph.initializers.append(helper.make_tensor(TOTAL_TOKENS, proto.INT64, [], [0]))
        inputs.append(helper.make_tensor_value_info(TOTAL_TOKENS, proto.INT64, []))
    return inputs


def _outputs(graph: Graph, decoder: Decoder) -> list[Any]:
    helper = graph.onnx.helper
    cache = ["batch", decoder.n_head_kv, "total", decoder.head_dim]
    outputs = [
        helper.make_tensor_value_info("logits", graph.onnx.TensorProto.FLOAT, ["batch", "wanted", decoder.n_vocab])
    ]
    return outputs + [
        helper.make_tensor_value_info(f"present.{i}.{part}", graph.float_type, cache)
        for i in range(len(decoder.layers))
        for part in ("key", "value")
    ]
