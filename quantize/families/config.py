"""What a config.json says, checked: sizes, counts, numbers.

The config that these functions take is flat and complete: family.text_config has lifted the nested text model and
filled in what Transformers assumes where a key is missing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medlite.errors import CheckpointError

Config = Mapping[str, Any]


@dataclass(frozen=True)
class ExtraTensor:
    """A tensor that the source states in its config only. Stored as F32."""

    name: str
    values: NDArray[np.float32]


def required(config: Config, key: str) -> Any:
    """config[key]; raises CheckpointError naming the key if it is missing."""
    if config.get(key) is None:
        raise CheckpointError(f"config.json: {key} is missing", hint="the folder is no complete checkpoint")
    return config[key]


def positive(config: Config, key: str) -> int:
    """config[key] as a positive integer."""
    value = required(config, key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise CheckpointError(f"config.json: {key} is {value!r}, a positive integer was needed")
    return value


def number(config: Config, key: str) -> float:
    """config[key] as a finite number."""
    value = required(config, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(f"config.json: {key} is {value!r}, a number was needed")
    return float(value)


def head_counts(config: Config) -> tuple[int, int]:
    """Query heads and key-value heads; the first is a multiple of the second."""
    n_head = positive(config, "num_attention_heads")
    n_head_kv = positive(config, "num_key_value_heads") if config.get("num_key_value_heads") is not None else n_head
    if n_head % n_head_kv:
        raise CheckpointError(f"config.json: {n_head} heads do not divide into {n_head_kv} key-value heads")
    return n_head, n_head_kv


def head_dim(config: Config) -> int:
    """Width of one attention head; stated, or hidden_size / heads."""
    stated = config.get("head_dim")
    return int(stated) if stated else int(config["hidden_size"]) // int(config["num_attention_heads"])


def derived_head_dim(config: Config) -> int:
    """hidden_size / heads, where a config leaves head_dim out."""
    hidden, n_head = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    if hidden % n_head:
        raise CheckpointError(f"config.json: hidden_size {hidden} does not divide into {n_head} heads")
    return hidden // n_head
