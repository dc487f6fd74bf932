"""Tiny checkpoints of every family, converted and read as a plan reads them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from medlite.formats.gguf import read_header
from quantize.families.family import Family
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.match import match_checkpoint, match_config
from quantize.source.checkpoint import open_checkpoint
from quantize.stream.writer import WriteSettings, write


def convert(folder: Path, recipe: str, target: Path, importance: dict[str, np.ndarray] | None = None) -> None:
    plan = plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES[recipe], importance=importance)
    write([plan.output(target)], WriteSettings(n_threads=2, measure=False, hash_source=False))


def importance_of(path: Path) -> dict[str, np.ndarray]:
    """Random column weights for every matrix in the file that is no embedding."""
    rng = np.random.default_rng(5)
    return {
        t.name: rng.exponential(size=t.shape[-1]).astype(np.float32)
        for t in read_header(path).tensors
        if len(t.shape) > 1 and t.name != "token_embd.weight"
    }


def config_of(folder: Path, **changes: Any) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text()) | changes


def read_family(config: dict[str, Any]) -> tuple[Family, dict[str, Any]]:
    """What a plan does with a config before it looks at tensors."""
    family, effective = match_config(config)
    family.metadata(effective)
    family.extras(effective)
    return family, effective
