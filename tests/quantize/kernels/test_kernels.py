"""The compiled kernels against ggml: every type, every instruction set, every kind of weight, every bit."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medlite.errors import NotFiniteError, RecipeError
from medlite.formats.gguf import GGML_TYPES
from quantize import kernels
from quantize.stream import ggml
from quantize.stream.encode import Rows, encode, measure_errors, to_float32

KERNELS = kernels.load()
pytestmark = pytest.mark.skipif(KERNELS is None, reason=f"kernels: {kernels.missing_reason()}")
ISAS = KERNELS.isas if KERNELS else ()
F32, F16, BF16 = (GGML_TYPES[name].id for name in ("F32", "F16", "BF16"))
PLAIN = ("F32", "F16", "BF16")
# fmt: off
CASES = [(name, weighted) for name, row in GGML_TYPES.items() for weighted in (False, True)
         if KERNELS and KERNELS.supports(row.id, weighted) and not (name in PLAIN and weighted)]
# fmt: on
GRID_TYPES = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
OVERFLOWING = ("large", "some largest bf16", "all largest bf16", "blocks of all sizes", "all exponents")
LARGEST_BF16 = np.uint32(0x7F7F0000).view(np.float32)

Weights = NDArray[np.float32]


def to_bf16(x: Weights) -> NDArray[np.uint16]:
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def kinds_of_weights(n_rows: int, n_per_row: int, seed: int) -> Iterator[tuple[str, Weights]]:
    """(name, weights): what checkpoints hold and what breaks searches, each (n_rows, n_per_row)."""
    random = np.random.default_rng(seed)
    shape = (n_rows, n_per_row)
    normal = random.standard_normal(shape).astype(np.float32) * np.float32(0.02)
    column = np.arange(n_per_row)
    constant = np.repeat(random.standard_normal((n_rows, 1)), n_per_row, 1)
    largest = np.where(random.random(shape) < 0.5, LARGEST_BF16, -LARGEST_BF16)
    half_zero = np.where(random.random(shape) < 0.5, np.float32(-0.0), normal)
    scales = np.exp(random.uniform(-60, 60, (n_rows, n_per_row // 32))).repeat(32, 1)
    kinds = {
        "normal": normal,
        "bf16": (to_bf16(normal).astype(np.uint32) << 16).view(np.float32),
        "heavy-tailed": random.standard_t(1.2, shape) * 0.01,
        "constant rows": constant,
        "negative constant": -abs(constant),
        "zeros": np.zeros(shape),
        "signed zeros": np.where(random.random(shape) < 0.5, 0.0, -0.0),
        "mostly zero": np.where(column % 300 == 0, normal, 0),
        "negative zeros between": half_zero,
        "one outlier": np.where(column % 256 == 7, 50, normal),
        "one negative outlier": np.where(column % 512 == 7, -50, normal),
        "denormals": random.integers(-200, 200, shape) * np.float32(1e-45),
        "tiny": random.standard_normal(shape) * 1e-38,
        "near the zero threshold": random.standard_normal(shape) * 1e-15,
        "large": random.standard_normal(shape) * 1e19,
        "some largest bf16": np.where(random.random(shape) < 0.01, LARGEST_BF16, normal),
        "all largest bf16": largest,
        "negative only": -abs(normal),
        "positive only": abs(normal),
        "nearly one value": -1 - random.random(shape) * 1e-6,
        "sign flips": np.broadcast_to(np.where(column % 2, 0.5, -0.5), shape),
        "ties": random.integers(-8, 8, shape) / 8,
        "three values": random.integers(-1, 2, shape) * 0.25,
        "blocks of all sizes": normal * scales,
        "all exponents": np.sign(normal) * np.exp(random.uniform(-80, 80, shape)),
    }
    for name, x in kinds.items():
        yield name, np.ascontiguousarray(x, np.float32)


def importances(n_per_row: int, seed: int) -> Iterator[tuple[str, Weights]]:
    random = np.random.default_rng(seed)
    yield "uniform", (random.random(n_per_row) + 0.01).astype(np.float32)
    yield "mostly zero", np.where(random.random(n_per_row) < 0.6, 0, random.random(n_per_row)).astype(np.float32)
    yield "spread", np.exp(random.standard_normal(n_per_row) * 4).astype(np.float32)


def oracle(name: str, x: Weights, importance: Weights | None) -> NDArray[np.uint8]:
    out = np.zeros(len(x) * GGML_TYPES[name].row_bytes(x.shape[1]), np.uint8)
    ggml.quantize_rows(GGML_TYPES[name], x, out, importance)
    return out


def encoded(name: str, x: NDArray, importance: Weights | None, isa: str | None, source: int = F32) -> NDArray[np.uint8]:
    assert KERNELS is not None
    out = np.zeros(len(x) * GGML_TYPES[name].row_bytes(x.shape[1]), np.uint8)
    assert KERNELS.encode(GGML_TYPES[name].id, source, x, out, x.shape, importance, isa) == out.nbytes
    return out


def overflow_refused(name: str, x: Weights, importance: Weights | None) -> Weights:
    """The rows that `name` can hold. ggml aborts the process at the others; here every instruction set refuses them."""
    kept = []
    for row in np.split(x, len(x)):
        able = []
        for isa in ISAS:
            with suppress(RecipeError):
                encoded(name, row, importance, isa)
                able.append(isa)
        assert len(able) in (0, len(ISAS)), f"{name}: only {able} encode this row"
        kept += [row] if able else []
    return np.concatenate([*kept, np.zeros((1, x.shape[1]), np.float32)])


def assert_equal_to_ggml(name: str, x: Weights, importance: Weights | None, what: str) -> None:
    if name in GRID_TYPES and what.startswith(OVERFLOWING):
        x = overflow_refused(name, x, importance)
    expected = oracle(name, x, importance)
    for isa in ISAS:
        n_wrong = int((encoded(name, x, importance, isa) != expected).sum())
        assert n_wrong == 0, f"{name} {isa}, {what}: {n_wrong} of {expected.size} bytes differ"


@pytest.mark.parametrize(("name", "weighted"), CASES)
def test_every_bit_is_ggmls(name: str, weighted: bool) -> None:
    for kind, x in kinds_of_weights(n_rows=9, n_per_row=1280, seed=1):  # 45 superblocks: no multiple of the lanes
        for how, importance in importances(x.shape[1], seed=2) if weighted else [("none", None)]:
            assert_equal_to_ggml(name, x, importance, f"{kind} weights, importance {how}")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "weighted"), CASES)
def test_every_bit_is_ggmls_over_ten_million_weights(name: str, weighted: bool) -> None:
    for kind, x in kinds_of_weights(n_rows=200, n_per_row=2048, seed=3):  # 25 kinds: 1.02e7 weights
        _, importance = next(importances(x.shape[1], seed=4)) if weighted else ("none", None)
        assert_equal_to_ggml(name, x, importance, f"{kind} weights")


@pytest.mark.parametrize(("name", "weighted"), CASES)
def test_half_precision_sources_give_the_bytes_of_their_float32(name: str, weighted: bool) -> None:
    x = dict(kinds_of_weights(5, 768, seed=5))["heavy-tailed"].clip(-6e4, 6e4)
    _, importance = next(importances(768, seed=6)) if weighted else ("none", None)
    for isa in ISAS:
        for source, halves, floats in (
            (F16, x.astype(np.float16), x.astype(np.float16).astype(np.float32)),
            (BF16, to_bf16(x), (to_bf16(x).astype(np.uint32) << 16).view(np.float32)),
        ):
            got = encoded(name, halves, importance, isa, source)
            assert np.array_equal(got, oracle(name, floats, importance)), (isa, source)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("target", ["F16", "BF16", "F32"])
def test_every_finite_half_converts_as_ggml_converts_it(target: str, isa: str) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    f16 = halves[np.isfinite(halves.view(np.float16))].reshape(8, -1)
    bf16 = halves[(halves & 0x7F80) != 0x7F80].reshape(8, -1)
    for source, rows, floats in (
        (F16, f16, f16.view(np.float16).astype(np.float32)),
        (BF16, bf16, (bf16.astype(np.uint32) << 16).view(np.float32)),
    ):
        assert np.array_equal(encoded(target, rows, None, isa, source), oracle(target, floats, None)), source


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["Q4_K", "Q4_0", "Q8_0", "F16", "F32"])
def test_a_weight_that_is_not_finite_names_its_row(name: str, value: float, isa: str) -> None:
    for row, column in ((0, 0), (17, 255), (39, 511)):
        x = np.ones((40, 512), np.float32)
        x[row, column] = value
        for source, rows in ((F32, x), (F16, x.astype(np.float16)), (BF16, to_bf16(x))):
            with pytest.raises(NotFiniteError, match=f"row {row} ") as raised:
                encoded(name, rows, None, isa, source)
            assert raised.value.row == row


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", GRID_TYPES[1:])  # IQ2_XXS finds such a row nearly zero, as ggml does
def test_weights_that_overflow_a_grid_search_are_refused(name: str, isa: str) -> None:
    x = dict(kinds_of_weights(3, 512, seed=9))["normal"]
    x[1] *= np.float32(1e36)
    with pytest.raises(RecipeError, match=f"row 1 holds weights so large that the {name} search overflows"):
        encoded(name, x, np.ones(512, np.float32), isa)


def test_what_does_not_fit_together_is_refused_before_memory_is_touched() -> None:
    assert KERNELS is not None
    x, out = np.zeros((2, 512), np.float32), np.zeros(576, np.uint8)
    q4_k = GGML_TYPES["Q4_K"].id
    assert KERNELS.encode(q4_k, F32, x, out, (2, 512)) == 576
    with pytest.raises(RecipeError, match="row length 384 is not a multiple of 256"):
        KERNELS.encode(q4_k, F32, x[:, :384].copy(), out, (2, 384))
    with pytest.raises(RecipeError, match="4096 bytes offered, 6144"):
        KERNELS.encode(q4_k, F32, x, out, (3, 512))
    with pytest.raises(RecipeError, match="contiguous"):
        KERNELS.encode(q4_k, F32, np.zeros((2, 1024), np.float32)[:, ::2], out, (2, 512))
    with pytest.raises(RecipeError, match="writable"):
        KERNELS.encode(q4_k, F32, x, bytes(576), (2, 512))
    with pytest.raises(RecipeError, match="importance is float64"):
        KERNELS.encode(q4_k, F32, x, out, (2, 512), np.ones(512))
    with pytest.raises(RecipeError, match="ggml type 12 is not one of F32"):
        KERNELS.encode(q4_k, q4_k, x, out, (2, 512))
    assert not KERNELS.supports(GGML_TYPES["I32"].id)
    with pytest.raises(RecipeError, match="do not encode this type"):
        KERNELS.encode(GGML_TYPES["I32"].id, F32, x, np.zeros(4096, np.uint8), (2, 512))


def test_buffers_may_be_plain_memory_and_rows_may_be_none() -> None:
    assert KERNELS is not None
    x = dict(kinds_of_weights(2, 512, seed=7))["normal"]
    out = bytearray(576)
    assert KERNELS.encode(GGML_TYPES["Q4_K"].id, F32, x.tobytes(), out, x.shape) == 576
    assert out == oracle("Q4_K", x, None).tobytes()
    assert KERNELS.encode(GGML_TYPES["Q4_K"].id, F32, b"", bytearray(), (0, 512)) == 0


def test_threads_share_the_kernels() -> None:
    x = dict(kinds_of_weights(64, 2048, seed=8))["normal"]
    expected, got = oracle("Q6_K", x, None), [np.zeros(0, np.uint8)] * 4

    def work(i: int) -> None:
        got[i] = encoded("Q6_K", x, None, None)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(one, expected) for one in got)


def test_an_unknown_instruction_set_is_refused_by_the_library_itself() -> None:
    assert KERNELS is not None
    x = np.zeros(256, np.float32)
    arguments = (0, F32, x.ctypes.data, x.ctypes.data, 1, 256, None, 99, ctypes.byref(ctypes.c_int64()))
    assert KERNELS.library.medlite_encode(*arguments) == -3


MEASURED = sorted({name for name, _ in CASES} - set(PLAIN))


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_the_errors_of_rows_are_float64s_over_ggmls_decoded_weights(name: str, dtype: str) -> None:
    wide = dict(kinds_of_weights(4, 2816, seed=9))["heavy-tailed"].clip(-100, 100)  # a row is no multiple of a piece
    values: NDArray[Any] = {"F32": wide, "F16": wide.astype(np.float16), "BF16": to_bf16(wide)}[dtype]
    rows, row = Rows(dtype, values), GGML_TYPES[name]
    encoded = encode(row, rows, np.ones(2816, np.float32))
    source = to_float32(rows).astype(np.float64)
    squares = (ggml.dequantize_rows(row, encoded, rows.shape) - source) ** 2
    found = measure_errors(row, rows, encoded)
    ratios = squares.sum(1) / (source**2).sum(1)
    assert found.squared_error == pytest.approx(squares.sum(), rel=2e-5)
    assert found.squared_weight == pytest.approx((source**2).sum(), rel=2e-5)
    assert found.worst_ratio == pytest.approx(ratios.max(), rel=2e-5)
    assert found.worst_row == ratios.argmax()
