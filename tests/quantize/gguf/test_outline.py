"""What a config alone implies equals what the plan finds in a checkpoint, for every family."""

import json
from pathlib import Path

import pytest

from medlite.errors import CheckpointError
from quantize.families import FAMILIES as TABLE
from quantize.gguf.outline import Outline
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.match import match_checkpoint
from quantize.source.checkpoint import open_checkpoint
from tests.helpers import tiny_families
from tests.helpers.plans import tensor_infos
from tests.helpers.tiny_checkpoint import make_llama

FAMILIES = tiny_families.FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_an_outline_has_the_tensors_of_the_plan(family: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_families.make_family(family, tmp_path / family))
    outline = Outline(checkpoint.config)
    for name in ("BF16", "Q8_0", "Q4_K_M", "Q3_K_S", "IQ4_XS", "Q4_0"):
        plan = plan_gguf(match_checkpoint(checkpoint), RECIPES[name])
        assert outline.header(RECIPES[name]).tensors == tensor_infos(plan), name
        assert outline.n_params == plan.n_params


def test_every_architecture_has_an_outline() -> None:
    config = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 512,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 32,
        "sliding_window": None,
        "cross_attention_layers": [],
    }
    for name in TABLE:
        more = {"sliding_window": 16} if "Gemma" in name else {}
        assert Outline({**config, **more, "architectures": [name]}).n_params > 1_000_000


def test_the_vocabulary_is_the_only_estimate(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_llama(tmp_path / "m"))
    plan, outline = plan_gguf(match_checkpoint(checkpoint), RECIPES["Q4_K_M"]), Outline(checkpoint.config)
    header = outline.header(RECIPES["Q4_K_M"])
    assert header.n_file_bytes - header.data_start == plan.n_bytes - len(plan.files[0].header)


def test_a_config_that_lacks_a_size_is_refused(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    del config["intermediate_size"]
    with pytest.raises(CheckpointError, match="intermediate_size"):
        Outline(config)
