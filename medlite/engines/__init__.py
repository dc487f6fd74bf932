"""Runtimes behind one protocol (`engine.Engine`). To add one: a file beside this one and a row in ENGINES."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

from medlite.engines.engine import Engine
from medlite.errors import EngineError
from medlite.formats.onnx_folder import is_onnx_folder

# name -> (module, function that opens an artifact). A table of names, so that no runtime is imported before its use.
ENGINES: dict[str, tuple[str, str]] = {
    "llamacpp": ("medlite.engines.llamacpp.engine", "open_llamacpp"),
    "ort": ("medlite.engines.ort.engine", "open_ort"),
    "torch": ("medlite.engines.torch", "open_torch_reference"),
}
ALIASES = {"onnx": "ort"}  # what users also say
# The same for a model behind a server, which has an address instead of a path.
SERVER_ENGINES: dict[str, tuple[str, str]] = {"openai": ("medlite.engines.server.engine", "open_openai")}


def open_engine(
    artifact_path: Path | str,
    *,
    engine: str = "",
    device: str = "auto",
    n_context: int | None = None,
    n_threads: int | None = None,
    kv_type: str = "f16",
    on_progress: Callable[[float], None] | None = None,
) -> Engine:
    """The artifact at `artifact_path`, loaded and ready; close it after use.

    engine: a key of ENGINES; empty for the one that runs the artifact's format. device: auto, cpu or cuda. n_context
    None: from the model's training and the free memory. n_threads None: one
    per physical core. on_progress hears the loaded share, 0 to 1.
    Raises EngineError (DeviceError, MemoryShortError) with the runtime's reason, ArtifactError for a damaged file.
    """
    engine = ALIASES.get(engine, engine) or ("ort" if is_onnx_folder(Path(artifact_path)) else "llamacpp")
    if engine in SERVER_ENGINES:
        raise EngineError(
            f"the {engine} engine asks a server and opens no file",
            hint=f"medlite bench run --engine {engine} --url http://localhost:8080",
        )
    if engine not in ENGINES:
        raise EngineError(f"unknown engine {engine!r}", hint=f"one of {', '.join(ENGINES)}")
    module, function = ENGINES[engine]
    opener = cast(Callable[..., Engine], getattr(importlib.import_module(module), function))
    return opener(
        Path(artifact_path),
        device=device,
        n_context=n_context,
        n_threads=n_threads,
        kv_type=kv_type,
        on_progress=on_progress,
    )
