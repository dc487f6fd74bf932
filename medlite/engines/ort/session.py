"""ONNX Runtime itself: the right wheel, no telemetry, a session on the device that was asked for, its cache.

Everything that must be known of the runtime's habits stands here; `engine.py` sees tokens and logits only.
"""

import contextlib
import io
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medlite.devices import cpu_name, find_gpus
from medlite.engines.engine import Logits
from medlite.errors import DeviceError, EngineError, MissingExtraError
from medlite.formats.onnx_folder import MODEL_NAME, OnnxFacts

WHEELS = ("onnxruntime", "onnxruntime-gpu")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
QUIET = 3  # log severity: errors only
LOGITS_FROM, TOTAL_TOKENS, POSITIONS = "logits_from", "total_tokens", "position_ids"

Ids = NDArray[np.int64]


def import_runtime() -> Any:
    """The onnxruntime module, its telemetry off. Raises MissingExtraError, or EngineError where two wheels clash.

    Telemetry is on by default in the wheels for Linux, and starts with the import.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    installed = installed_wheels()
    if len(installed) > 1:
        raise EngineError(
            f"{' and '.join(installed)} are both installed, and each overwrites the other's files",
            hint=repair_command(installed),
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "onnx") from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise EngineError(
            "onnxruntime is installed in part: another wheel of it was removed", hint=repair_command(installed)
        )
    return onnxruntime


def installed_wheels() -> dict[str, str]:
    """Wheel -> version, of those that bring the module onnxruntime."""
    found = {}
    for name in WHEELS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def repair_command(installed: dict[str, str]) -> str:
    """The commands that leave one whole wheel."""
    wanted = "onnx-gpu" if "onnxruntime-gpu" in installed else "onnx"
    return f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'medlite[{wanted}]'"


@dataclass(frozen=True)
class Opened:
    """A session of the module `runtime`, and where it really runs."""

    runtime: Any
    session: Any
    device: str
    device_name: str
    version: str
    warning: str = ""


def open_session(folder: Path, facts: OnnxFacts, device: str, n_threads: int) -> Opened:
    """A session on `device` (auto, cpu, cuda). Raises DeviceError where cuda was asked for and is not what runs.

    session.get_providers() is the only truth: the list of available providers names CUDA on any machine, and a
    provider that fails to start is replaced by the CPU with a log line.
    """
    runtime = import_runtime()
    wanted, warning = _wanted_device(runtime, facts, device), ""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = QUIET
    # Repacked weights go to memory of their own, not into the arena of activations: decode is a tenth faster.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    providers = [PROVIDERS["cuda"], PROVIDERS["cpu"]] if wanted == "cuda" else [PROVIDERS["cpu"]]
    session = _load(runtime, folder, options, providers)
    if wanted == "cuda" and session.get_providers()[0] != PROVIDERS["cuda"]:
        message = "ONNX Runtime could not start its CUDA provider and fell back to the CPU"
        if device == "cuda":
            raise DeviceError(message, hint="pip install 'medlite[onnx-gpu]' and a driver for CUDA 13, or --device cpu")
        wanted, warning = "cpu", message
    gpus = find_gpus() if wanted == "cuda" else ()
    return Opened(runtime, session, wanted, gpus[0].name if gpus else cpu_name(), str(runtime.__version__), warning)


def _wanted_device(runtime: Any, facts: OnnxFacts, device: str) -> str:
    """cpu or cuda."""
    if device == "cpu":
        return "cpu"
    has_provider = PROVIDERS["cuda"] in runtime.get_available_providers()
    if device == "cuda":
        if facts.device != "cuda":
            raise DeviceError(
                "this folder was made for the CPU: its float32 attention does not run on CUDA",
                hint="medlite quantize SOURCE --format onnx --device cuda makes one that does",
            )
        if not has_provider:
            raise DeviceError(
                "the installed onnxruntime has no CUDA provider",
                hint="pip uninstall -y onnxruntime && pip install 'medlite[onnx-gpu]'",
            )
    if facts.device != "cuda" or not has_provider:
        return "cpu"
    if not find_gpus():
        if device == "cuda":
            raise DeviceError("no NVIDIA GPU found (its driver lists none)", hint="--device cpu")
        return "cpu"
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        runtime.preload_dlls()
    return "cuda"


def _load(runtime: Any, folder: Path, options: Any, providers: list[str]) -> Any:
    """The session. Raises EngineError with the runtime's reason."""
    try:
        return runtime.InferenceSession(str(folder / MODEL_NAME), options, providers=providers)
    except _failures() as error:
        reason = str(error).strip().splitlines()[0]
        raise EngineError(
            f"{folder / MODEL_NAME}: onnxruntime {runtime.__version__} cannot load it: {reason}",
            hint="an operator that is not registered needs a newer onnxruntime (1.31 has all); else: "
            f"medlite verify {folder}",
        ) from error


def _failures() -> tuple[type[BaseException], ...]:
    """What ONNX Runtime raises; its classes have no parent of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    # fmt: off
    names = ("EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "ModelLoadCanceled",
             "NoModel", "NoSuchFile", "NotFound", "NotImplemented", "RuntimeException")
    # fmt: on
    return (RuntimeError, *(getattr(state, name) for name in names if hasattr(state, name)))


class CachedDecoder:
    """One sequence in a key-value buffer that the graph writes in place, through IO binding.

    n_tokens: how many the buffer holds; `rewind` shortens it. Buffers are bound once, so a step binds four arrays.
    """

    def __init__(self, opened: Opened, facts: OnnxFacts, n_context: int) -> None:
        self._session, self._facts = opened.session, facts
        self._binding = opened.session.io_binding()
        self._mask = np.ones((1, n_context), np.int64)
        self._ids = np.zeros((1, n_context), np.int64)
        self._from, self._total = np.zeros(1, np.int64), np.zeros((), np.int64)
        self._step = np.empty((1, 1, facts.n_vocab), np.float32)
        self._kept: list[Any] = []  # what the binding points to
        self.n_tokens = 0
        self._bind_cache(opened.device, n_context)

    def _bind_cache(self, device: str, n_context: int) -> None:
        facts = self._facts
        shape = (1, facts.n_head_kv, n_context, facts.head_dim)
        dtype = np.dtype(facts.kv_type)
        for layer in range(facts.n_layer):
            for part in ("key", "value"):
                past, present = f"past_key_values.{layer}.{part}", f"present.{layer}.{part}"
                if device == "cuda":
                    from onnxruntime import OrtValue

                    value = OrtValue.ortvalue_from_shape_and_type(shape, dtype, "cuda", 0)
                    self._binding.bind_ortvalue_input(past, value)
                    self._binding.bind_ortvalue_output(present, value)
                    self._kept.append(value)
                    continue
                buffer = np.zeros(shape, dtype)  # pages are taken as they are written
                self._binding.bind_input(past, "cpu", 0, dtype, shape, buffer.ctypes.data)
                self._binding.bind_output(present, "cpu", 0, dtype, shape, buffer.ctypes.data)
                self._kept.append(buffer)

    def read(self, tokens: Ids, logits_from: int, n_total: int) -> Logits:
        """Read `tokens` behind what is there; the logits of those from index `logits_from` on, (n, n_vocab).

        n_total: the length that the whole prompt will have. The array of a single step is reused by the next one.
        """
        n, n_after = len(tokens), self.n_tokens + len(tokens)
        self._ids[0, :n] = tokens
        self._from[0] = logits_from
        self._bind("input_ids", self._ids, (1, n))
        self._bind("attention_mask", self._mask, (1, n_after))
        self._bind(LOGITS_FROM, self._from, (1,))
        if self._facts.long_rope_from:
            self._total[()] = n_total
            self._bind(TOTAL_TOKENS, self._total, ())
        shape = (1, n - logits_from, self._facts.n_vocab)
        logits = self._step if shape == self._step.shape else np.empty(shape, np.float32)
        self._binding.bind_output("logits", "cpu", 0, np.float32, shape, logits.ctypes.data)
        run(lambda: self._session.run_with_iobinding(self._binding))
        self.n_tokens = n_after
        one: Logits = logits[0]
        return one

    def _bind(self, name: str, values: NDArray[np.int64], shape: tuple[int, ...]) -> None:
        self._binding.bind_input(name, "cpu", 0, np.int64, shape, values.ctypes.data)

    def rewind(self, n_tokens: int) -> None:
        """Keep the first n_tokens; the rest is overwritten by what comes."""
        self.n_tokens = min(self.n_tokens, n_tokens)


def read_batch(opened: Opened, facts: OnnxFacts, rows: list[Ids], logits_from: int) -> Logits:
    """Logits (n_rows, longest - logits_from, n_vocab) of whole sequences side by side, padded on the right.

    The padding's own logits mean nothing. Padding on the left would shift the rotary positions.
    """
    longest = max(len(row) for row in rows)
    ids, mask = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    empty = np.zeros((len(rows), facts.n_head_kv, 0, facts.head_dim), np.dtype(facts.kv_type))
    feed: dict[str, Any] = {
        f"past_key_values.{layer}.{part}": empty for layer in range(facts.n_layer) for part in ("key", "value")
    }
    feed |= {"input_ids": ids, "attention_mask": mask, LOGITS_FROM: np.array([logits_from], np.int64)}
    if not facts.shared_cache and POSITIONS in {one.name for one in opened.session.get_inputs()}:
        feed[POSITIONS] = np.broadcast_to(np.arange(longest), ids.shape).copy()
    logits: Logits = run(lambda: opened.session.run(["logits"], feed))[0]
    return logits


def run(call: Any) -> Any:
    """call(); raises EngineError with the runtime's reason."""
    try:
        return call()
    except _failures() as error:
        raise EngineError(
            f"onnxruntime: {str(error).strip().splitlines()[0]}",
            hint="medlite verify FOLDER checks the weights; a shorter --context needs less memory",
        ) from error
