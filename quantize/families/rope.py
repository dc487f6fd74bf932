"""Rotary position embeddings: what a config says of them, as metadata, extra tensors and angles."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medlite.errors import CheckpointError
from medlite.formats.gguf import Kind, Value
from quantize.families.config import Config, ExtraTensor, derived_head_dim, head_dim, number, positive, required


def rope_parameters(config: Config, layers: str = "full_attention") -> Mapping[str, Any]:
    """The rotary settings of one kind of layer, with rope_theta and rope_type.

    Reads both spellings: rope_scaling beside rope_theta (Transformers 4), rope_parameters (Transformers 5), the
    latter flat or by kind of layer.
    """
    stated = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(stated, dict):
        raise CheckpointError(f"config.json: rope_scaling is {stated!r}, an object was needed")
    by_kind = {"full_attention", "sliding_attention"} & set(stated)
    result = dict(stated.get(layers) or {}) if by_kind else dict(stated)
    result["rope_type"] = result.get("rope_type") or result.get("type") or "default"
    if result.get("rope_theta") is None:
        result["rope_theta"] = config.get("rope_theta")
    if result.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise CheckpointError(
            f"config.json: partial_rotary_factor {result['partial_rotary_factor']} is not known",
            hint="known: 1.0, every dimension of a head rotates",
        )
    return result


def rope_metadata(rope: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Value]:
    """The rope.* keys. Raises CheckpointError where the kind of scaling is not one of `known`."""
    kind = rope["rope_type"]
    if kind not in known:
        raise CheckpointError(
            f"config.json: rope_scaling of type {kind!r} is not known for this architecture",
            hint=f"known: {', '.join(known)}",
        )
    result = {"rope.freq_base": Value(Kind.FLOAT32, number(rope, "rope_theta"))}
    if kind == "linear":
        result["rope.scaling.type"] = Value(Kind.STRING, "linear")
        result["rope.scaling.factor"] = Value(Kind.FLOAT32, number(rope, "factor"))
    return result


# --- extra tensors ---------------------------------------------------------------------------------------------------


def llama3_factors(config: Config) -> tuple[ExtraTensor, ...]:
    """rope_freqs.weight (head_dim / 2,): what each rotary frequency is divided by under Llama 3.1's scaling.

    Source: llama.cpp conversion/llama.py, generate_extra_tensors; in float32 where torch has it.
    """
    rope = rope_parameters(config)
    if rope["rope_type"] != "llama3":
        return ()
    dim = head_dim(config)
    factor, low, high = (number(rope, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = number(rope, "original_max_position_embeddings")
    factors = np.empty(dim // 2, np.float32)
    for i, frequency in enumerate(frequencies(number(rope, "rope_theta"), dim)):
        wavelength = np.float32(2 * math.pi) / frequency
        if wavelength < context / high:
            factors[i] = 1.0
        elif wavelength > context / low:
            factors[i] = factor
        else:
            smooth = (np.float32(context) / wavelength - np.float32(low)) / np.float32(high - low)
            factors[i] = 1 / ((1 - smooth) / np.float32(factor) + smooth)
    return (ExtraTensor("rope_freqs.weight", factors),)


def longrope_factors(config: Config) -> tuple[ExtraTensor, ...]:
    """rope_factors_long.weight and rope_factors_short.weight (head_dim / 2,) of a stretched context."""
    rope = rope_parameters(config)
    if rope["rope_type"] == "default":
        return ()
    extras = []
    for name in ("long", "short"):
        values, n = required(rope, f"{name}_factor"), derived_head_dim(config) // 2
        if not (isinstance(values, list) and len(values) == n and all(isinstance(v, int | float) for v in values)):
            raise CheckpointError(f"config.json: {name}_factor is not a list of {n} numbers")
        extras.append(ExtraTensor(f"rope_factors_{name}.weight", np.array(values, np.float32)))
    return tuple(extras)


def original_context(config: Config) -> int:
    """Tokens that the model was trained on before its context was stretched."""
    rope = rope_parameters(config)
    return positive({**config, **{k: v for k, v in rope.items() if v is not None}}, "original_max_position_embeddings")


def longrope_attention_factor(config: Config) -> float:
    """What LongRoPE multiplies the rotated values by. Source: LongRoPE (2402.13753), equation in section 3.3."""
    original = original_context(config)
    scale = positive(config, "max_position_embeddings") / original
    factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    stated = rope_parameters(config).get("attention_factor")
    if stated is not None and not math.isclose(stated, factor, rel_tol=1e-6):
        raise CheckpointError(f"config.json: attention_factor {stated} is not the {factor} of the stretched context")
    return factor


# --- tables of angles ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rotary:
    """One table of rotations. inverse: (head_dim / 2,) radians per position. magnitude multiplies sine and cosine."""

    inverse: NDArray[np.float32]
    magnitude: float = 1.0

    def rows(self, first: int, n: int, function: Any) -> NDArray[np.float32]:
        """(n, head_dim / 2): `function` (np.cos or np.sin) of the angles of positions first, first + 1, ...

        In float32 throughout, as transformers' rotary embeddings compute it.
        """
        positions = np.arange(first, first + n, dtype=np.float32)
        values: NDArray[np.float32] = function(positions[:, None] * self.inverse[None, :])
        return values * np.float32(self.magnitude)


@dataclass(frozen=True)
class RotaryTable:
    """Rotations by row of the cos and sin caches. long: used instead once a sequence exceeds n_short tokens.

    The caches hold n_short rows of `short`, then the rows of `long`; without `long` only those of `short`.
    """

    short: Rotary
    long: Rotary | None = None
    n_short: int = 0

    def n_rows(self, n_context: int) -> int:
        return n_context + (self.n_short if self.long else 0)

    def rows(self, first: int, n: int, function: Any) -> NDArray[np.float32]:
        """Rows [first, first + n) of a cache."""
        if self.long is None:
            return self.short.rows(first, n, function)
        n_from_short = min(max(self.n_short - first, 0), n)
        parts = []
        if n_from_short:
            parts.append(self.short.rows(first, n_from_short, function))
        if n > n_from_short:
            parts.append(self.long.rows(first + n_from_short - self.n_short, n - n_from_short, function))
        return np.concatenate(parts)


def frequencies(theta: float, width: int) -> NDArray[np.float32]:
    """(width / 2,): theta^(-2i / width), radians per position.

    The powers are taken in float64 and rounded, which is what torch's vector power gives; numpy's float32 power is
    off by one bit.
    """
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    powers: NDArray[np.float32] = np.power(theta, exponents.astype(np.float64)).astype(np.float32)
    return np.float32(1.0) / powers


def scaled_frequencies(config: Config) -> NDArray[np.float32]:
    """The frequencies that the config states, divided by the factor of linear scaling where there is one."""
    rope = rope_parameters(config)
    stretch = number(rope, "factor") if rope["rope_type"] == "linear" else 1.0
    return frequencies(number(rope, "rope_theta"), head_dim(config)) / np.float32(stretch)


def one_table(config: Config) -> tuple[RotaryTable, ...]:
    """The table of a model whose layers all rotate alike."""
    return (RotaryTable(Rotary(scaled_frequencies(config))),)


def llama3_table(config: Config) -> tuple[RotaryTable, ...]:
    """As `one_table`, with Llama 3.1's scaling where the config states it."""
    inverse = scaled_frequencies(config)
    for extra in llama3_factors(config):
        inverse = inverse / extra.values
    return (RotaryTable(Rotary(inverse)),)


def longrope_table(config: Config) -> tuple[RotaryTable, ...]:
    """As `one_table`, or LongRoPE's pair of tables where the context is stretched."""
    extras = {extra.name: extra.values for extra in longrope_factors(config)}
    if not extras:
        return one_table(config)
    magnitude = longrope_attention_factor(config)
    short, long = (
        Rotary(scaled_frequencies(config) / extras[f"rope_factors_{name}.weight"], magnitude)
        for name in ("short", "long")
    )
    return (RotaryTable(short, long, original_context(config)),)
