"""Blocks of MatMulNBits: the bytes mean to ONNX Runtime what they mean to us, and the search earns its time."""

import os

import numpy as np
import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
onnx = pytest.importorskip("onnx", reason="needs the extra [onnx]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")

from quantize.onnx.blocks import BLOCKS, BlockFormat, Blocks, decode_rows, encode_rows  # noqa: E402

FORMATS = [BlockFormat(bits, block, symmetric) for bits in (4, 8) for block in BLOCKS for symmetric in (True, False)]
N_ROWS, ROW = 24, 384  # three blocks of 128: an odd number of zero points


def weights(seed: int = 0, n_rows: int = N_ROWS) -> np.ndarray:
    return (0.05 * np.random.default_rng(seed).standard_normal((n_rows, ROW))).astype(np.float32)


def name_of(layout: BlockFormat) -> str:
    return f"int{layout.bits}-b{layout.block}-{'sym' if layout.symmetric else 'zp'}"


def runtime_weights(blocks: Blocks, layout: BlockFormat) -> tuple[np.ndarray, np.ndarray]:
    """The weights as MatMulNBits multiplies by them, and as GatherBlockQuantized looks them up."""
    helper, kind = onnx.helper, onnx.TensorProto
    n_blocks = layout.n_blocks(ROW)
    made = [
        helper.make_tensor(
            "B", kind.UINT8, [N_ROWS, n_blocks, layout.block * layout.bits // 8], blocks.codes.tobytes(), raw=True
        ),
        helper.make_tensor("E", kind.UINT8, list(blocks.codes.shape), blocks.codes.tobytes(), raw=True),
        helper.make_tensor("S", kind.FLOAT, [N_ROWS, n_blocks], blocks.scales.astype(np.float32).tobytes(), raw=True),
    ]
    zeros = []
    if blocks.zero_points is not None:
        made.append(
            helper.make_tensor("Z", kind.UINT8, list(blocks.zero_points.shape), blocks.zero_points.tobytes(), raw=True)
        )
        zeros = ["Z"]
    nodes = [
        helper.make_node(
            "MatMulNBits",
            ["A", "B", "S", *zeros],
            ["Y"],
            domain="com.microsoft",
            K=ROW,
            N=N_ROWS,
            bits=layout.bits,
            block_size=layout.block,
            accuracy_level=1,
        ),
        helper.make_node(
            "GatherBlockQuantized",
            ["E", "I", "S", *zeros],
            ["G"],
            domain="com.microsoft",
            bits=layout.bits,
            block_size=layout.block,
            gather_axis=0,
            quantize_axis=1,
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "blocks",
        [
            helper.make_tensor_value_info("A", kind.FLOAT, ["n", ROW]),
            helper.make_tensor_value_info("I", kind.INT64, ["i"]),
        ],
        [
            helper.make_tensor_value_info("Y", kind.FLOAT, ["n", N_ROWS]),
            helper.make_tensor_value_info("G", kind.FLOAT, ["i", ROW]),
        ],
        made,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)], ir_version=10
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    multiplied, gathered = session.run(None, {"A": np.eye(ROW, dtype=np.float32), "I": np.arange(N_ROWS)})
    return multiplied.T, gathered


@pytest.mark.parametrize("layout", FORMATS, ids=name_of)
def test_the_runtime_reads_our_bytes_as_we_do(layout: BlockFormat) -> None:
    blocks = encode_rows(weights(), layout)
    decoded = decode_rows(blocks, layout, ROW)
    multiplied, gathered = runtime_weights(blocks, layout)
    assert np.array_equal(multiplied, decoded)
    assert np.array_equal(gathered, decoded)


@pytest.mark.parametrize("layout", FORMATS, ids=name_of)
def test_sizes_are_what_the_plan_counts_on(layout: BlockFormat) -> None:
    blocks = encode_rows(weights(), layout)
    assert blocks.codes.shape == (N_ROWS, layout.code_bytes(ROW))
    assert blocks.scales.shape == (N_ROWS, layout.n_blocks(ROW))
    n_zero_bytes = 0 if blocks.zero_points is None else blocks.zero_points.shape[1]
    assert n_zero_bytes == layout.zero_point_bytes(ROW)


@pytest.mark.parametrize("layout", FORMATS, ids=name_of)
def test_encoding_again_changes_nothing_much(layout: BlockFormat) -> None:
    """Values that a format can hold come back: the second error is far below the first."""
    first = decode_rows(encode_rows(weights(), layout), layout, ROW)
    second = decode_rows(encode_rows(first, layout), layout, ROW)
    assert np.square(second - first).sum() <= 0.35 * np.square(first - weights()).sum()


@pytest.mark.parametrize("layout", FORMATS, ids=name_of)
def test_rows_do_not_depend_on_their_neighbours(layout: BlockFormat) -> None:
    whole = encode_rows(weights(n_rows=700), layout)  # more than one chunk
    part = encode_rows(weights(n_rows=700)[395:400], layout)
    assert np.array_equal(whole.codes[395:400], part.codes)
    assert np.array_equal(whole.scales[395:400], part.scales)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_search_beats_rounding_to_the_extremes(symmetric: bool) -> None:
    """Squared error against plain round-to-nearest over the block's range, on normal weights."""
    values = weights(n_rows=256)
    layout = BlockFormat(4, 32, symmetric)
    searched = np.square(decode_rows(encode_rows(values, layout), layout, ROW) - values).sum()
    blocks = values.reshape(-1, 32)
    if symmetric:
        extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
        step = extreme / -8
        plain = np.clip(np.rint(blocks / step), -8, 7) * step
    else:
        low, high = np.minimum(blocks.min(axis=1, keepdims=True), 0), np.maximum(blocks.max(axis=1, keepdims=True), 0)
        step = (high - low) / 15
        zero = np.rint(-low / step)
        plain = (np.clip(np.rint(blocks / step) + zero, 0, 15) - zero) * step
    assert searched < 0.95 * np.square(plain - blocks).sum()  # measured: 0.86 and 0.94


def test_golden_bytes_of_a_block() -> None:
    values = np.zeros((1, 32), np.float32)
    values[0, :4] = [-8, 7, 1, -3]
    blocks = encode_rows(values, BlockFormat(4, 32))
    assert blocks.scales.tolist() == [[1.0]]
    assert blocks.codes[0, :3].tolist() == [0xF0, 0x59, 0x88]
    blocks = encode_rows(values * 127 / 8, BlockFormat(8, 32))
    assert blocks.scales.tolist() == [[1.0]]
    assert blocks.codes[0, :5].tolist() == [128 - 127, 128 + 111, 128 + 16, 128 - 48, 128]


@pytest.mark.parametrize("layout", FORMATS, ids=name_of)
@pytest.mark.parametrize("value", [0.0, 1e-12, -1e-12, 3.0, -3.0, 7e4])
def test_extreme_blocks_stay_numbers(value: float, layout: BlockFormat) -> None:
    values = np.full((2, ROW), value, np.float32)
    decoded = decode_rows(encode_rows(values, layout), layout, ROW)
    assert np.isfinite(decoded).all()
    if abs(value) in (0.0, 3.0, 7e4):
        assert np.allclose(decoded, values, rtol=2e-2)
