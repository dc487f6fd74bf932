"""Runtimes behind the protocols of `engine.py`. To add one: a file next to this one and a row in ENGINES."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from medlite.engines.engine import AnswersEngine, LocalEngine, OnLoad, OpenSettings
from medlite.errors import EngineError
from medlite.formats.artifact import artifact_format


@dataclass(frozen=True)
class EngineRow:
    """An engine by name, so that no runtime is imported before its use.

    module: has the function `opener` and, of an engine that runs here, `probe`, which imports the runtime and returns
    {"version": "its name 1.2", "gpu": whether it can use one}. opens: the format that it runs.
    extra: of medlite, which brings the runtime; empty if it always comes along. refuses: settings
    that it cannot take, and why.
    """

    module: str
    opener: str
    opens: str
    extra: str = ""
    refuses: Mapping[str, str] = field(default_factory=dict)

    def open(self, *arguments: Any) -> Any:
        """What the opener returns for `arguments`."""
        return getattr(importlib.import_module(self.module), self.opener)(*arguments)


# opener(path, OpenSettings, OnLoad | None) -> LocalEngine
# fmt: off
ENGINES: dict[str, EngineRow] = {
    "llamacpp": EngineRow("medlite.engines.llamacpp.engine", "open_llamacpp", opens="gguf", refuses={
        "dtype": "a GGUF file fixes the types of its weights"}),
    "ort": EngineRow("medlite.engines.ort.engine", "open_ort", opens="onnx", extra="onnx", refuses={
        "kv_type": "an ONNX graph fixes the type of its cache",
        "dtype": "an ONNX graph fixes the types of its weights"}),
    "torch": EngineRow("medlite.engines.torch", "open_torch_reference", opens="checkpoint", extra="torch", refuses={
        "kv_type": "Transformers keeps its cache in the type of the weights",
        "n_batch": "Transformers reads a prompt at once"}),
}
# fmt: on
# The same for a model behind a server, which has an address instead of a path.
# opener(url, model, exact) -> AnswersEngine
SERVER_ENGINES = {"openai": EngineRow("medlite.engines.server.engine", "open_openai", opens="server")}


def open_engine(
    artifact_path: Path | str,
    settings: OpenSettings | None = None,
    *,
    engine: str = "",
    on_progress: OnLoad | None = None,
) -> LocalEngine:
    """The artifact at `artifact_path`, loaded and ready; close it after use.

    engine: a key of ENGINES; empty for the one that runs the artifact's format.
    Raises EngineError (DeviceError, MemoryShortError) with the runtime's reason, ArtifactError for a damaged file.
    """
    path, settings = Path(artifact_path), settings or OpenSettings()
    engine = engine or engine_for(artifact_format(path))
    if engine in SERVER_ENGINES:
        raise EngineError(
            f"the {engine} engine asks a server and opens no file",
            hint=f"medlite bench run --engine {engine} --url http://localhost:8080",
        )
    if engine not in ENGINES:
        raise EngineError(f"unknown engine {engine!r}", hint=f"one of {', '.join(ENGINES)}")
    row = ENGINES[engine]
    for one in fields(settings):
        if one.name in row.refuses and getattr(settings, one.name) != one.default:
            option = f"--{one.name.replace('_', '-')} {getattr(settings, one.name)}"
            raise EngineError(f"{option}: {row.refuses[one.name]}", hint="leave it out")
    opened: LocalEngine = row.open(path, settings, on_progress)
    return opened


def engine_for(artifact_format: str) -> str:
    """The engine that runs a format: "gguf" or "onnx"."""
    return next(name for name, row in ENGINES.items() if row.opens == artifact_format)


def open_server(url: str, *, engine: str = "openai", model: str = "", exact: bool = False) -> AnswersEngine:
    """The model behind the server at `url`. exact: whole distributions, so that it is a LocalEngine too.

    Raises ServerError if it cannot be reached, has no such model or does not return what is needed; and for another
    machine where the user forbade the network.
    """
    opened: AnswersEngine = SERVER_ENGINES[engine].open(url, model, exact)
    return opened
