"""Rotary settings: both spellings of Transformers mean the same, and each scaling does what its paper says."""

import math
from pathlib import Path

import numpy as np
import pytest

from medlite.errors import CheckpointError
from quantize.families import FAMILIES as TABLE
from quantize.families.family import text_config
from quantize.families.rope import (
    llama3_factors,
    llama3_table,
    longrope_attention_factor,
    longrope_table,
    one_table,
    rope_metadata,
    rope_parameters,
)
from tests.helpers.family_cases import config_of


def test_transformers_5_spelling_of_rope_gives_the_same_metadata(folders: dict[str, Path]) -> None:
    """Gemma's by kind of layer, Llama's flat."""
    old = config_of(folders["gemma3"])
    new = dict(
        old,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        },
    )
    for key in ("rope_theta", "rope_local_base_freq", "rope_scaling"):
        del new[key]
    gemma = TABLE["Gemma3ForCausalLM"]
    assert gemma.metadata(text_config(old, gemma)) == gemma.metadata(text_config(new, gemma))
    old = config_of(folders["llama32"])
    new = dict(old, rope_parameters={**old["rope_scaling"], "rope_theta": old["rope_theta"]})
    del new["rope_theta"], new["rope_scaling"]
    llama = TABLE["LlamaForCausalLM"]
    assert llama.metadata(text_config(old, llama)) == llama.metadata(text_config(new, llama))
    assert np.array_equal(
        llama.extras(text_config(old, llama))[0].values, llama.extras(text_config(new, llama))[0].values
    )


ROPE = {"hidden_size": 64, "num_attention_heads": 1, "rope_theta": 10000.0, "max_position_embeddings": 4096}


def test_linear_scaling_slows_every_frequency_alike() -> None:
    plain, scaled = one_table(ROPE)[0], one_table(ROPE | {"rope_scaling": {"type": "linear", "factor": 4.0}})[0]
    assert np.array_equal(plain.short.inverse / np.float32(4), scaled.short.inverse)
    assert plain.short.inverse[0] == 1.0
    assert plain.n_rows(10) == 10


def test_llama_3_1_keeps_fast_frequencies_and_divides_slow_ones() -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = ROPE | {"rope_scaling": scaling | {"original_max_position_embeddings": 8192}}
    (extra,) = llama3_factors(config)
    assert (extra.name, extra.values[0], extra.values[-1]) == ("rope_freqs.weight", 1.0, 8.0)
    assert np.all(np.diff(extra.values) >= 0)
    assert np.array_equal(llama3_table(config)[0].short.inverse, one_table(ROPE)[0].short.inverse / extra.values)
    assert llama3_factors(ROPE) == ()


def test_longrope_has_a_table_for_short_and_one_for_long_sequences() -> None:
    factors = {"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32}
    config = ROPE | {"rope_scaling": factors, "original_max_position_embeddings": 16, "max_position_embeddings": 256}
    (table,) = longrope_table(config)
    assert table.long is not None
    assert np.array_equal(table.short.inverse, table.long.inverse * np.float32(2))
    assert table.n_rows(256) == 256 + 16
    magnitude = longrope_attention_factor(config)
    assert magnitude == pytest.approx(math.sqrt(1 + math.log(16) / math.log(16)))
    rows = table.rows(0, 20, np.cos)
    assert np.array_equal(rows[:16], table.short.rows(0, 16, np.cos))
    assert np.array_equal(rows[16:], table.long.rows(0, 4, np.cos))
    assert rows[0, 0] == np.float32(magnitude)


def test_a_rotation_that_no_family_knows_is_refused() -> None:
    with pytest.raises(CheckpointError, match="rope_scaling is 3"):
        rope_parameters(ROPE | {"rope_scaling": 3})
    with pytest.raises(CheckpointError, match="'yarn' is not known"):
        rope_metadata(rope_parameters(ROPE | {"rope_scaling": {"type": "yarn"}}), ("default",))
