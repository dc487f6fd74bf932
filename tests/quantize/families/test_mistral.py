"""Mistral: its sliding window, which llama.cpp drops."""

from pathlib import Path

from quantize.match import match_checkpoint
from quantize.source.checkpoint import open_checkpoint
from tests.helpers.family_cases import config_of, read_family


def test_a_sliding_window_that_llama_cpp_drops_is_noted(folders: dict[str, Path]) -> None:
    notes = match_checkpoint(open_checkpoint(folders["mistral"])).notes
    assert notes == ("beyond 128 tokens llama.cpp attends to all tokens, the source to the last 128",)
    assert match_checkpoint(open_checkpoint(folders["llama3"])).notes == ()


def test_mistral_without_the_key_has_the_window_of_its_config_class(folders: dict[str, Path]) -> None:
    config = config_of(folders["mistral"])
    del config["sliding_window"]
    family, effective = read_family(config)
    assert family.metadata(effective)["attention.sliding_window"].value == 4096
    family, effective = read_family(config | {"sliding_window": None})
    assert "attention.sliding_window" not in family.metadata(effective)
