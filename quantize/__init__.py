"""Hugging Face checkpoints to low-bit artifacts: one plan, one streaming pass, ggml's own bytes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantize.check import verify
    from quantize.gguf.plan import plan_gguf
    from quantize.gguf.recipes import RECIPES
    from quantize.match import match_checkpoint
    from quantize.onnx.plan import plan_onnx
    from quantize.onnx.recipes import ONNX_RECIPES
    from quantize.source.checkpoint import open_checkpoint
    from quantize.stream.writer import write

__all__ = [
    "ONNX_RECIPES",
    "RECIPES",
    "match_checkpoint",
    "open_checkpoint",
    "plan_gguf",
    "plan_onnx",
    "verify",
    "write",
]

_HOMES = {
    "ONNX_RECIPES": "quantize.onnx.recipes",
    "RECIPES": "quantize.gguf.recipes",
    "match_checkpoint": "quantize.match",
    "open_checkpoint": "quantize.source.checkpoint",
    "plan_gguf": "quantize.gguf.plan",
    "plan_onnx": "quantize.onnx.plan",
    "verify": "quantize.check",
    "write": "quantize.stream.writer",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: every `import quantize.x` runs this file."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
