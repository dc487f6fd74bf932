"""What a config.json says is checked before anything is computed with it."""

from collections.abc import Callable
from typing import Any

import pytest

from medlite.errors import CheckpointError
from quantize.families.config import derived_head_dim, head_counts, head_dim, number, positive, required


@pytest.mark.parametrize("value", [None, 0, -1, 1.0, "8", True, [8]])
def test_a_size_is_a_positive_integer(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: n "):
        positive({"n": value}, "n")


@pytest.mark.parametrize("value", [None, float("inf"), float("nan"), "1e-5", False])
def test_a_number_is_finite(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: n "):
        number({"n": value}, "n")
    assert number({"n": 1}, "n") == 1.0


HEADS = {"hidden_size": 256, "num_attention_heads": 8}


def test_heads_are_counted_and_measured() -> None:
    assert head_counts(HEADS) == (8, 8)
    assert head_counts(HEADS | {"num_key_value_heads": 2}) == (8, 2)
    assert head_dim(HEADS) == derived_head_dim(HEADS) == 32
    assert head_dim(HEADS | {"head_dim": 128}) == 128


CONTRADICTIONS: list[tuple[Callable[[dict[str, Any]], object], dict[str, Any], str]] = [
    (head_counts, {"num_key_value_heads": 3}, "8 heads do not divide into 3"),
    (derived_head_dim, {"hidden_size": 250}, "hidden_size 250 does not divide into 8 heads"),
    (lambda config: required(config, "vocab_size"), {}, "vocab_size is missing"),
]


@pytest.mark.parametrize(("read", "change", "message"), CONTRADICTIONS)
def test_contradictions_are_named(
    read: Callable[[dict[str, Any]], object], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(HEADS | change)
