"""Predicted decode speed: every term against a count by hand."""

from pathlib import Path

import pytest

from medlite.engines.llamacpp.memory import read_shape
from medlite.fit import decode
from medlite.fit.decode import decode_tokens_per_second, reading_names
from medlite.formats.gguf import read_header
from tests.helpers.tiny_gguf import write_tiny_gguf


def test_decode_reads_every_matrix_once_and_no_embedding(tmp_path: Path) -> None:
    header = read_header(write_tiny_gguf(tmp_path / "m.gguf"))
    shape = read_shape(header)
    matrices = sum(t.n_bytes for t in header.tensors if len(t.shape) > 1 and t.name != "token_embd.weight")
    fixed = decode.TOKEN_SECONDS + 2 * decode.LAYER_SECONDS + shape.n_vocab * decode.VOCABULARY_SECONDS
    attention, _ = names = reading_names(header, shape, "f16")
    assert names == ["attention over F16 in heads of 64", "F32"]
    speeds = {"F32": 1e9, attention: 1e9, "memory": 2e9}
    assert decode_tokens_per_second(header, shape, "f16", speeds, n_used=0) == pytest.approx(
        1 / (matrices / (decode.READING_SHARE * 1e9) + fixed)
    )
    cache = 100 * 2 * 4 * (64 + 64) * 2  # tokens * layers * query heads * (K and V of a head) * bytes
    once = 100 * 2 * 2 * (64 + 64) * 2  # two heads of keys and values
    assert decode_tokens_per_second(header, shape, "f16", speeds, n_used=100) == pytest.approx(
        1 / (matrices / (decode.READING_SHARE * 1e9) + cache / 1e9 + once / 2e9 + fixed)
    )
    assert decode_tokens_per_second(header, shape, "f16", speeds, n_used=0, n_threads=2) == pytest.approx(
        1 / (matrices / (decode.READING_SHARE * 1e9) + fixed + decode.WAKE_SECONDS)
    )
    assert decode_tokens_per_second(header, shape, "q8_0", speeds) is None
    assert decode_tokens_per_second(header, shape, "f16", {"Q4_K": 1e9}) is None
