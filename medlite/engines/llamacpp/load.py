"""Loading a GGUF file, tried in a child first."""

from collections.abc import Callable
from pathlib import Path

from medlite.engines.llamacpp import guard
from medlite.engines.llamacpp.native import Model
from medlite.native import working_on


def load_model(path: Path, *, n_gpu_layers: int, on_progress: Callable[[float], None] | None = None) -> Model:
    """The model of the file at `path`. Raises EngineError with llama.cpp's reason, also where llama.cpp crashes."""
    guard.check_load(path)
    working_on(f"loading {path}")
    model = Model(path, n_gpu_layers=n_gpu_layers, on_progress=on_progress)
    working_on(f"computing with {path.name}")
    guard.remember(path)
    return model
