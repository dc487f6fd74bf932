"""Rotary settings: both spellings of Transformers mean the same."""

from pathlib import Path

import numpy as np

from quantize.families import FAMILIES as TABLE
from quantize.families.family import text_config
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
