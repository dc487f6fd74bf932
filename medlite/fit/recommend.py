"""Which recipe fits: a model at several recipes, with what each takes on a machine, and the advice that follows."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medlite.engines.engine import N_BATCH
from medlite.engines.llamacpp.memory import MemoryEstimate, ModelShape, estimate, layers_that_fit, read_shape
from medlite.errors import CheckpointError, EngineError
from medlite.files import format_bytes
from medlite.fit.decode import decode_tokens_per_second, reading_names
from medlite.fit.machine import Machine
from medlite.fit.memory import STANDARD_CONTEXTS, fits, predict_memory
from medlite.fit.speed import bytes_per_second
from medlite.formats.artifact import describe
from medlite.formats.gguf import Header, read_header
from medlite.formats.json import read_json
from medlite.formats.onnx_folder import is_onnx_folder
from medlite.models.catalog import find_model, hf_config, near_names
from medlite.models.hub import REPOSITORY, cached_file
from medlite.models.registry import COMMON_RECIPE

SHOWN_CONTEXTS = 4
COMMON_CONTEXT = 8192
# Not recommended: checkpoints are BF16, so F32 adds nothing and F16 rounds; ternary types are for models trained so.
SPECIAL_RECIPES = ("F32", "F16", "TQ1_0", "TQ2_0")


@dataclass(frozen=True)
class Candidate:
    """A model at a recipe: the header of its file or of the file to come, and what it takes per context."""

    recipe: str
    needs_imatrix: bool
    n_params: int
    header: Header
    shape: ModelShape
    memory: Mapping[int, MemoryEstimate] = field(default_factory=dict)
    tokens_per_second: float | None = None

    @property
    def n_file_bytes(self) -> int:
        return self.header.n_file_bytes

    @property
    def bits_per_weight(self) -> float:
        n_bytes = sum(tensor.n_bytes for tensor in self.header.tensors if not tensor.name.startswith("rope_"))
        return 8 * n_bytes / self.n_params

    @property
    def recommendable(self) -> bool:
        return not self.needs_imatrix and self.recipe not in SPECIAL_RECIPES


# --- what is asked about ---------------------------------------------------------------------------------------------


def find_config(model: str) -> dict[str, Any]:
    """The config of a folder, a catalogue row or a repository in the hub's cache. Raises CheckpointError."""
    path = Path(model).expanduser()
    refuse_onnx(path)
    if path.is_dir():
        return read_json(path / "config.json", dict[str, Any], CheckpointError)
    if (known := find_model(model)) is not None:
        return hf_config(known)
    if (match := REPOSITORY.fullmatch(model)) and (
        found := cached_file(match["repository"], "config.json", match["revision"])
    ):
        return read_json(found, dict[str, Any], CheckpointError)
    near = near_names(model)
    if match and not near:
        raise CheckpointError(
            f"{model}: not in the catalogue, and its config.json is not in the local cache",
            hint=f"medlite pull {model} --config brings it; fit itself opens no connection",
        )
    raise CheckpointError(
        f"{model}: neither a file, a folder, a catalogue name nor a repository in the local cache",
        hint=f"did you mean {' or '.join(near)}?" if near else "medlite models lists the names",
    )


def refuse_onnx(path: Path) -> None:
    """Raise CheckpointError for an ONNX folder."""
    if is_onnx_folder(path):
        raise CheckpointError(
            f"{path}: an ONNX folder; only llama.cpp's memory and speed are predicted",
            hint="medlite bench run measures both",
        )


def file_candidate(path: Path) -> Candidate:
    """The GGUF file at `path` as it is."""
    header = read_header(path)
    artifact = describe(path, header)
    return Candidate(artifact.recipe, False, artifact.n_params, header, read_shape(header))


def usual_contexts(trained: int) -> list[int]:
    """The context lengths to show for a model that was trained for `trained` tokens; 0 if it does not say."""
    usual = [n for n in STANDARD_CONTEXTS if not trained or n < trained] + ([trained] if trained else [])
    while len(usual) > SHOWN_CONTEXTS:
        usual.pop(1 if COMMON_CONTEXT not in usual[:2] else 2)
    return usual


# --- what it takes ---------------------------------------------------------------------------------------------------


def with_memory(candidate: Candidate, contexts: Collection[int], kv_type: str) -> Candidate:
    """The candidate with its memory at each context."""
    return replace(candidate, memory={n: predict_memory(candidate.shape, n, kv_type) for n in contexts})


def with_speeds(candidates: Sequence[Candidate], machine: Machine, kv_type: str) -> list[Candidate]:
    """The candidates with their decode speed on this machine; none where it is another machine's memory."""
    if machine.stated:
        return list(candidates)
    first = sorted(candidates, key=lambda c: (c.recipe != COMMON_RECIPE, not c.recommendable))
    names = [name for c in first for name in reading_names(c.header, c.shape, kv_type)]
    n_threads = machine.n_threads
    try:
        speeds = bytes_per_second(names, n_threads)
    except EngineError:  # no engine loads here
        return list(candidates)
    found = [decode_tokens_per_second(c.header, c.shape, kv_type, speeds, n_threads=n_threads) for c in candidates]
    return [replace(c, tokens_per_second=speed) for c, speed in zip(candidates, found, strict=True)]


# --- the advice ------------------------------------------------------------------------------------------------------


def common_candidate(candidates: Sequence[Candidate]) -> Candidate:
    """The one at the common recipe, else the first."""
    return next((c for c in candidates if c.recipe == COMMON_RECIPE), candidates[0])


def recommend(candidates: Sequence[Candidate], machine: Machine, context: int) -> str:
    """One or two sentences: whether the common recipe fits, and the largest that does."""
    one = common_candidate(candidates)
    need, memory = one.memory[context].needed, format_bytes(machine.n_bytes)
    where = memory if machine.stated else f"the {memory} that are free here"
    ahead = f"{one.recipe} at {context_name(context)} context needs {format_bytes(need)}"
    fitting = [c for c in candidates if fits(c.memory[context], machine.n_bytes)]
    good = [c for c in fitting if c.recommendable] or fitting
    if fits(one.memory[context], machine.n_bytes):
        speed = f", about {speed_text(one.tokens_per_second)} tokens/s" if one.tokens_per_second else ""
        larger = f"; largest that fits: {good[0].recipe}" if good and good[0] is not one else ""
        return f"{ahead}: fits in {where}{speed}{larger}."
    if not good:
        smallest = min(candidates, key=lambda c: c.memory[context].needed)
        return (
            f"{ahead}: does not fit in {where}; no recipe does: the smallest, {smallest.recipe}, needs "
            f"{format_bytes(smallest.memory[context].needed)}."
        )
    best = good[0]
    imatrix = " and an importance matrix" if best.needs_imatrix else ""
    return (
        f"{ahead}: does not fit in {where}; largest that fits: {best.recipe} "
        f"({format_bytes(best.memory[context].needed)}{imatrix})."
    )


def gpu_advice(candidates: Sequence[Candidate], machine: Machine, context: int, kv_type: str) -> str:
    """What goes on the machine's first GPU, empty without one."""
    if not machine.gpus:
        return ""
    gpu, one = machine.gpus[0], common_candidate(candidates)
    n = layers_that_fit(one.shape, estimate(one.shape, context, kv_type, N_BATCH), gpu.n_bytes_free)
    what = "the whole model" if n > one.shape.n_layer else f"{n} of {one.shape.n_layer} layers"
    return (
        f"{gpu.name}, {format_bytes(gpu.n_bytes_free)} free: takes {what} of {one.recipe} at "
        f"{context_name(context)}. Its speed is not predicted."
    )


def context_name(n: int) -> str:
    """8k for 8192, the number itself where it is not a multiple of 1024."""
    return f"{n // 1024}k" if n % 1024 == 0 else f"{n:,}"


def speed_text(tokens_per_second: float | None) -> str:
    """Two digits below ten, whole numbers above, a dot where it is not known."""
    if tokens_per_second is None:
        return "·"
    return f"{tokens_per_second:.1f}" if tokens_per_second < 10 else f"{tokens_per_second:,.0f}"
