"""Phi-3: LongRoPE's numbers in the metadata."""

from pathlib import Path

import pytest

from medlite.formats.gguf import read_header
from tests.helpers.tiny_families import attention_factor


def test_long_rope_states_its_attention_factor(folders: dict[str, Path]) -> None:
    metadata = read_header(folders["phi3_long"] / "source.gguf").metadata
    assert metadata["phi3.rope.scaling.attn_factor"].value == pytest.approx(attention_factor(8192 / 512, 512))
    assert metadata["phi3.rope.scaling.original_context_length"].value == 512
