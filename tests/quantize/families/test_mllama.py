"""Llama 3.2 Vision without its image: the plain Llama inside."""

from pathlib import Path
from typing import Any

import pytest

from medlite.errors import CheckpointError
from quantize.match import match_checkpoint
from quantize.source.checkpoint import open_checkpoint
from tests.helpers.family_cases import config_of, convert, read_family
from tests.helpers.gguf_compare import assert_equal_tensors, tensors_of
from tests.helpers.tiny_families import plain_llama_of_mllama


@pytest.mark.parametrize("family", ["mllama", "mllama_new_names"])
def test_llama_vision_becomes_the_plain_llama_without_its_cross_attention_layers(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """The same weights laid out as a Llama of three layers give the same file, tensor by tensor."""
    plain = plain_llama_of_mllama(tmp_path / "plain")
    convert(plain, "BF16", tmp_path / "plain.gguf")
    assert_equal_tensors(folders[family] / "source.gguf", tmp_path / "plain.gguf")
    assert tensors_of(tmp_path / "plain.gguf")["token_embd.weight"][1] == (512, 256)


def test_llama_vision_lists_what_it_leaves_out(folders: dict[str, Path]) -> None:
    ignored = match_checkpoint(open_checkpoint(folders["mllama"])).ignored
    assert ignored["vision_model.class_embedding"] == "the vision tower: the result reads text only"
    assert ignored["language_model.model.layers.1.cross_attn_attn_gate"] == (
        "cross-attention to an image: skipped where there is none"
    )
    assert ignored["language_model.model.layers.4.mlp.down_proj.weight"] == (
        "layer 4, of a cross-attention layer: skipped where there is no image"
    )
    assert ignored["language_model.model.embed_tokens.weight[512:]"] == "rows past the vocabulary, of image tokens"


@pytest.mark.parametrize("layers", [[1, 1], [5], [-1], ["1"], 3])
def test_cross_attention_layers_that_cannot_be_are_refused(layers: Any, folders: dict[str, Path]) -> None:
    config = config_of(folders["mllama"])
    config["text_config"]["cross_attention_layers"] = layers
    with pytest.raises(CheckpointError, match="cross_attention_layers"):
        read_family(config)
