"""Memory from the header alone: against what llama.cpp allocates, and the choices that follow from it."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from medlite.engines.context import choose_context
from medlite.engines.engine import N_BATCH, OpenSettings
from medlite.engines.llamacpp import memory as llama_memory
from medlite.engines.llamacpp.engine import open_llamacpp
from medlite.engines.llamacpp.memory import MemoryEstimate, ModelShape, context_needs, estimate, read_shape
from medlite.errors import EngineError, MemoryShortError
from medlite.formats.gguf import GGML_TYPES, Header, Kind, TensorInfo, Value, read_header
from tests.helpers.tiny_gguf import write_tiny_gguf

GB = 10**9

# Llama-3.1-8B at Q4_K_M: 32 layers, 8 KV heads of 128.
# fmt: off
EIGHT_B = ModelShape(
    n_layer=32, n_embd=4096, n_ff=14336, n_head=32, n_vocab=128256, n_context_trained=131072,
    kv_weights=((1024, 1024),) * 32, n_weight_bytes=4920 << 20, n_output_bytes=800 << 20, n_repacked_bytes=3000 << 20)
# fmt: on


def test_the_estimate_is_what_llama_cpp_allocates(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", n_context=4096)
    for n_context, kv_type in ((512, "f16"), (4096, "f16"), (4096, "q8_0")):
        settings = OpenSettings(device="cpu", n_context=n_context, n_threads=1, kv_type=kv_type)
        with closing(open_llamacpp(path, settings)) as engine:
            buffers = engine.info.buffer_bytes
            assert engine.memory.kv_cache == pytest.approx(buffers["CPU KV"], rel=0.01)
            allocated = sum(size for name, size in buffers.items() if name != "CPU_Mapped model")
            assert engine.memory.kv_cache + engine.memory.compute == pytest.approx(allocated, rel=0.25)


def test_a_token_of_llama_3_1_8b_takes_128_kib_of_cache() -> None:
    assert llama_memory.kv_bytes_per_token(EIGHT_B, "f16") == 128 << 10
    assert llama_memory.kv_bytes_per_token(EIGHT_B, "q8_0") == (64 << 10) * 34 // 32
    assert llama_memory.kv_bytes_per_token(EIGHT_B, "q4_0") == (64 << 10) * 18 // 32


@pytest.mark.parametrize(("free", "expected"), [(64 * GB, 32768), (16 * GB, 18432), (6 * GB, 512)])
def test_the_default_context_takes_a_share_of_what_the_weights_leave(free: int, expected: int) -> None:
    chosen = choose_context(context_needs(EIGHT_B, "f16", N_BATCH), None, free)
    assert chosen == pytest.approx(expected, rel=0.1)
    assert chosen % 256 == 0


def test_a_small_model_gets_the_context_it_was_trained_for() -> None:
    small = replace(EIGHT_B, n_context_trained=1000, n_weight_bytes=1 << 20)
    assert choose_context(context_needs(small, "f16", N_BATCH), None, 16 * GB) == 1000
    assert choose_context(context_needs(small, "f16", N_BATCH), 300, 16 * GB) == 300


def test_what_cannot_fit_is_refused_with_a_context_that_fits() -> None:
    with pytest.raises(MemoryShortError, match="GB of weights"):
        choose_context(context_needs(EIGHT_B, "f16", N_BATCH), None, 4 * GB)
    with pytest.raises(MemoryShortError, match=r"a context of 131072 tokens needs 17\.2 GB") as refused:
        choose_context(context_needs(EIGHT_B, "f16", N_BATCH), 131072, 16 * GB)
    assert refused.value.hint is not None
    fits = int(refused.value.hint.split()[1].strip(","))
    assert choose_context(context_needs(EIGHT_B, "f16", N_BATCH), fits, 16 * GB) == fits
    for wanted in (0, 131073):
        with pytest.raises(EngineError):
            choose_context(context_needs(EIGHT_B, "f16", N_BATCH), wanted, 64 * GB)


def test_layers_go_to_the_gpu_as_far_as_they_fit() -> None:
    need = estimate(EIGHT_B, 8192, "f16", N_BATCH)
    assert llama_memory.layers_that_fit(EIGHT_B, need, 80 * GB) == 33
    assert llama_memory.layers_that_fit(EIGHT_B, need, 1 << 20) == 0
    some = llama_memory.layers_that_fit(EIGHT_B, need, 4 * GB)
    assert 0 < some < 32
    assert llama_memory.layers_that_fit(EIGHT_B, need, 5 * GB) > some


def test_copies_for_the_cpu_kernels_count_once_towards_what_must_fit() -> None:
    memory = MemoryEstimate(weights=100, repacked=60, kv_cache=10, compute=5)
    assert (memory.total, memory.needed) == (175, 115)


@pytest.mark.parametrize(
    ("name", "type_", "shape", "features", "repacked"),
    [
        ("blk.0.ffn_up.weight", "Q4_K", (512, 256), {"avx2"}, True),
        ("blk.0.ffn_up.weight", "Q4_K", (512, 256), {"sse2"}, False),
        ("blk.0.ffn_up.weight", "Q6_K", (512, 256), {"avx2"}, False),
        ("blk.0.ffn_up.weight", "Q6_K", (512, 256), {"asimddp"}, True),
        ("blk.0.ffn_up.weight", "Q4_K", (511, 256), {"avx2"}, False),
        ("token_embd.weight", "Q4_K", (512, 256), {"avx2"}, False),
        ("blk.0.attn_norm.weight", "F32", (256,), {"avx2"}, False),
    ],
)
def test_matrices_are_repacked_by_type_and_processor(
    name: str, type_: str, shape: tuple[int, ...], features: set[str], repacked: bool
) -> None:
    tensor = TensorInfo(name, GGML_TYPES[type_], shape, 0)
    assert llama_memory.is_repacked(tensor, frozenset(features)) is repacked


def test_a_header_without_a_needed_key_is_refused_by_name(tmp_path: Path) -> None:
    header = read_header(write_tiny_gguf(tmp_path / "tiny.gguf"))
    without = {key: value for key, value in header.metadata.items() if key != "llama.block_count"}
    with pytest.raises(EngineError, match=r"llama\.block_count"):
        read_shape(Header(without, header.tensors, header.data_start, header.n_file_bytes))
    lying = dict(header.metadata) | {"llama.block_count": Value(Kind.STRING, "two")}
    with pytest.raises(EngineError, match=r"llama\.block_count"):
        read_shape(Header(lying, header.tensors, header.data_start, header.n_file_bytes))
