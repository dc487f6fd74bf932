"""A tiny decoder as an exporter writes it: named modules, Gemm and MatMul, a tied head twice, a growing cache."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.tiny_checkpoint import write_safetensors, write_tokenizer

HIDDEN, N_HEAD, WIDTH, FFN, N_VOCAB, N_CONTEXT = 64, 2, 32, 128, 400, 96
CONFIG = {"model_type": "gpt2", "vocab_size": N_VOCAB, "n_positions": N_CONTEXT, "eos_token_id": 7}


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    shapes = {
        "wte": (N_VOCAB, HIDDEN),
        "wpe": (N_CONTEXT, HIDDEN),
        "c_attn": (HIDDEN, 3 * HIDDEN),
        "bias": (3 * HIDDEN,),
        "out": (HIDDEN, HIDDEN),
        "fc1": (HIDDEN, FFN),
        "fc2": (FFN, HIDDEN),
    }
    made = {name: (0.15 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    return made | {"head": np.ascontiguousarray(made["wte"].T)}


def nodes(helper: Any) -> list[Any]:
    def node(kind: str, inputs: str, output: str, module: str = "", **attributes: Any) -> Any:
        outputs = output.split()
        name = f"/transformer/{module}/{kind}" if module else f"/{outputs[0]}"
        return helper.make_node(kind, inputs.split(), outputs, name=name, **attributes)

    def heads(x: str) -> list[Any]:
        return [
            node("Reshape", f"{x} heads_shape", f"{x}_heads"),
            node("Transpose", f"{x}_heads", f"{x}_t", perm=[0, 2, 1, 3]),
        ]

    return [
        node("Gather", "wte input_ids", "tokens", "wte"),
        node("Gather", "wpe position_ids", "places", "wpe"),
        node("Add", "tokens places", "x0"),
        node("Reshape", "x0 flat_shape", "x0_flat"),
        node("Gemm", "x0_flat c_attn bias", "qkv_flat", "h.1/attn/c_attn"),
        node("Shape", "input_ids", "ids_shape"),
        node("Concat", "ids_shape qkv_width", "qkv_shape", axis=0),
        node("Reshape", "qkv_flat qkv_shape", "qkv"),
        node("Split", "qkv", "q k v", axis=-1, num_outputs=3),
        *heads("q"),
        *heads("k"),
        *heads("v"),
        node("Concat", "past_key_values.0.key k_t", "present.0.key", axis=2),
        node("Concat", "past_key_values.0.value v_t", "present.0.value", axis=2),
        node("Transpose", "present.0.key", "keys", perm=[0, 1, 3, 2]),
        node("MatMul", "q_t keys", "raw"),
        node("Mul", "raw scale", "scores"),
        node("Shape", "attention_mask", "mask_shape"),
        node("Gather", "mask_shape one", "total", axis=0),
        node("Range", "zero total one", "steps"),
        node("Unsqueeze", "position_ids outer", "rows"),
        node("LessOrEqual", "steps rows", "seen"),
        node("Where", "seen scores never", "masked"),
        node("Softmax", "masked", "shares", axis=-1),
        node("MatMul", "shares present.0.value", "mixed"),
        node("Transpose", "mixed", "mixed_t", perm=[0, 2, 1, 3]),
        node("Reshape", "mixed_t joined_shape", "joined"),
        node("MatMul", "joined out", "attended", "h.1/attn/out_proj"),
        node("Add", "x0 attended", "x1"),
        node("MatMul", "x1 fc1", "wide", "h.1/fc1"),
        node("Relu", "wide", "active"),
        node("MatMul", "active fc2", "narrow", "h.1/fc2"),
        node("Add", "x1 narrow", "x2"),
        node("MatMul", "x2 head", "logits", "lm_head"),
    ]


def write_export(folder: Path, *, external: bool = False) -> Path:
    """model.onnx and versions.json in `folder`, as the guest leaves them. external: weights beside it (above 2 GB)."""
    import onnx

    helper, kind = onnx.helper, onnx.TensorProto
    folder.mkdir(parents=True, exist_ok=True)
    constants = {
        "flat_shape": [-1, HIDDEN],
        "qkv_width": [3 * HIDDEN],
        "heads_shape": [0, 0, N_HEAD, WIDTH],
        "joined_shape": [0, 0, HIDDEN],
        "outer": [1, 3],
        "zero": 0,
        "one": 1,
    }
    made = [onnx.numpy_helper.from_array(np.asarray(value, np.int64), name) for name, value in constants.items()]
    made += [
        onnx.numpy_helper.from_array(np.asarray(value, np.float32), name)
        for name, value in {"scale": WIDTH**-0.5, "never": -1e9, **weights()}.items()
    ]
    inputs = [
        helper.make_tensor_value_info(name, kind.INT64, ["batch", length])
        for name, length in (("input_ids", "n"), ("attention_mask", "total_n"), ("position_ids", "n"))
    ]
    inputs += [
        helper.make_tensor_value_info(f"past_key_values.0.{part}", kind.FLOAT, ["batch", N_HEAD, "past", WIDTH])
        for part in ("key", "value")
    ]
    outputs = [helper.make_tensor_value_info("logits", kind.FLOAT, ["batch", "n", N_VOCAB])]
    outputs += [
        helper.make_tensor_value_info(f"present.0.{part}", kind.FLOAT, ["batch", N_HEAD, "total_n", WIDTH])
        for part in ("key", "value")
    ]
    graph = helper.make_graph(nodes(helper), "tiny", inputs, outputs, made)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8),
        str(folder / "model.onnx"),
        save_as_external_data=external,
        location="model.onnx_data",
        size_threshold=64,
    )
    (folder / "versions.json").write_text('{"optimum-onnx": "0.1.0"}')
    return folder


def write_source(folder: Path, **changes: Any) -> Path:
    """A checkpoint folder that the export could have come from."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    write_safetensors(folder / "model.safetensors", weights(), "F32")
    write_tokenizer(folder, N_VOCAB)
    return folder


def reference(folder: Path, tokens: tuple[int, ...]) -> np.ndarray:
    """(n_tokens, n_vocab) logits of the export itself, in plain ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    empty = np.zeros((1, N_HEAD, 0, WIDTH), np.float32)
    ids = np.asarray([tokens], np.int64)
    feed = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(len(tokens))[None],
        "past_key_values.0.key": empty,
        "past_key_values.0.value": empty,
    }
    return np.asarray(session.run(["logits"], feed)[0][0])
