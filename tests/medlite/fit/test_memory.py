"""Predicted memory: what the engine would load, and sliding windows counted by hand."""

from dataclasses import replace

import pytest

from medlite.engines.context import RESERVE_BYTES
from medlite.engines.engine import N_BATCH
from medlite.engines.llamacpp.memory import estimate
from medlite.fit.memory import fits, predict_memory, windowed_kv_bytes
from medlite.models.catalog import read_catalog
from medlite.models.registry import COMMON_RECIPE
from tests.helpers.candidates import candidates_of


@pytest.mark.parametrize("name", list(read_catalog()))
def test_every_catalogue_model_gets_an_answer(name: str) -> None:
    model = read_catalog()[name]
    found = {c.recipe: c for c in candidates_of(name, 2048)}
    one = found[COMMON_RECIPE].memory[2048]
    assert one.needed > found[COMMON_RECIPE].shape.n_weight_bytes
    assert one.total >= one.needed
    assert found["BF16"].n_file_bytes == pytest.approx(2 * model.n_params, rel=0.02)
    assert predict_memory(found["BF16"].shape, 2048, "q8_0").kv_cache < one.kv_cache


def test_what_fits_is_what_the_engine_would_load() -> None:
    one = next(c for c in candidates_of("llama3.1-8b-instruct") if c.recipe == COMMON_RECIPE)
    prediction = one.memory[8192]
    assert replace(prediction, runtime=0) == estimate(one.shape, 8192, "f16", N_BATCH)
    assert fits(prediction, prediction.needed + RESERVE_BYTES)
    assert not fits(prediction, prediction.needed + RESERVE_BYTES - 1)


def test_sliding_windows_are_counted_by_hand_for_gemma() -> None:
    one = candidates_of("medgemma-4b-it", 32768)[0]
    # 34 layers, of which every sixth sees all: 5 of 32768 + 256 cells, 29 of 1024 + 512; 2 * 2 * 4 heads * 256 bytes.
    assert windowed_kv_bytes(one.header, one.shape, 32768, "f16") == (5 * 33024 + 29 * 1536) * 4096
    assert one.memory[32768].kv_cache == 34 * 33024 * 4096
    assert windowed_kv_bytes(candidates_of("phi3-mini-4k", 4096)[0].header, one.shape, 4096, "f16") is None
