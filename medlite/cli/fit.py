"""`medlite fit`: will a model fit on this machine, and how fast will it be, for every recipe and context length?"""

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medlite.cli import print_json
from medlite.errors import CheckpointError, MedliteError

if TYPE_CHECKING:
    from rich.table import Table

    from medlite.engines.llamacpp.memory import ModelShape
    from medlite.fit.memory import Measured, Prediction
    from medlite.formats.gguf import Header

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
SHOWN_CONTEXTS = 4
COMMON_CONTEXT = 8192
COMMON_RECIPE = "Q4_K_M"
# Not recommended: checkpoints are BF16, so F32 adds nothing and F16 rounds; ternary types are for models trained so.
SPECIAL_RECIPES = ("F32", "F16", "TQ1_0", "TQ2_0")


@dataclass(frozen=True)
class Candidate:
    """A model at a recipe: the header of its file or of the file to come, and what it takes per context."""

    recipe: str
    needs_imatrix: bool
    n_params: int
    header: "Header"
    shape: "ModelShape"
    memory: "dict[int, Prediction]" = field(default_factory=dict)
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


@dataclass(frozen=True)
class Machine:
    """What there is to use, in bytes, and whether it was stated instead of looked up."""

    n_bytes: int
    stated: bool
    n_threads: int


@click.command(
    "fit",
    epilog="""\b
Examples:
  medlite fit llama3-med42-70b
  medlite fit llama3.2-3b-instruct --context 8192 --kv q8_0
  medlite fit ./Llama-3.1-8B-Instruct --memory 16GB
  medlite fit model-Q4_K_M.gguf --json

Needs neither weights nor network: the catalogue or a config.json is enough.""",
)
@click.argument("model", metavar="NAME|REPO|FOLDER|FILE")
@click.option(
    "--context",
    "n_context",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="One context length (default: the usual ones up to the model's own).",
)
@click.option(
    "--kv",
    "kv_type",
    type=click.Choice(["f16", "q8_0", "q4_0"]),
    default="f16",
    show_default=True,
    help="Type of the KV cache.",
)
@click.option("--memory", metavar="SIZE", help="Memory of the machine in question, as in 16GB (default: free here).")
@click.option("--threads", "n_threads", type=click.IntRange(min=1), help="Default: one per physical core.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def command(
    model: str, n_context: int | None, kv_type: str, memory: str | None, n_threads: int | None, as_json: bool
) -> None:
    """Predict memory and decode speed of a model for every recipe.

    NAME: of `medlite models`. FOLDER: a checkpoint's, of which only config.json is read. FILE: a GGUF file. Memory is
    that of chat and generate with the context full.
    """
    from medlite.devices import available_memory, physical_cores
    from medlite.fit.memory import read_history

    machine = Machine(
        memory_size(memory) if memory else available_memory(), memory is not None, n_threads or physical_cores()
    )
    candidates = find_candidates(model)
    contexts = wanted_contexts(n_context, candidates[0].shape.n_context_trained)
    candidates = [predict(candidate, contexts, kv_type) for candidate in with_speeds(candidates, machine, kv_type)]
    context = n_context or max(n for n in contexts if n <= max(COMMON_CONTEXT, contexts[0]))
    if as_json:
        print_json(as_data(model, candidates, machine, context, kv_type, read_history()))
        return
    show(candidates, machine, context, kv_type)


def memory_size(text: str) -> int:
    """16GB, 500M or a number of bytes. Raises click.BadParameter for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", text.strip().upper())
    if match is None or float(match[1]) <= 0:
        raise click.BadParameter(f"{text!r} is no size; as in 16GB", param_hint="--memory")
    return int(float(match[1]) * (UNITS[match[2]] if not match[3] else 1024 ** "_KMGT".index(match[2] or "_")))


# --- what is asked about ---------------------------------------------------------------------------------------------


def find_candidates(model: str) -> list[Candidate]:
    """The model at every recipe, largest file first; or a file, or NAME:RECIPE of one that is here, as it is."""
    path = Path(model).expanduser()
    if path.is_file() or model.partition(":")[0] == "demo" or (":" in model and not path.is_dir()):
        return [file_candidate(model)]
    return recipe_candidates(find_config(model, path))


def find_config(model: str, path: Path) -> dict[str, Any]:
    """The config of a folder, a catalogue row or a repository in the hub's cache. Raises CheckpointError."""
    from medlite.formats.onnx_folder import is_onnx_folder
    from medlite.models.catalog import find_model, hf_config, near_names
    from medlite.models.hub import REPOSITORY, cached_file
    from quantize.source.checkpoint import read_json_object

    if is_onnx_folder(path):
        raise CheckpointError(
            f"{model}: an ONNX folder; only llama.cpp's memory and speed are predicted",
            hint="medlite bench run measures both",
        )
    if path.is_dir():
        return read_json_object(path / "config.json")
    if (known := find_model(model)) is not None:
        return hf_config(known)
    if (match := REPOSITORY.fullmatch(model)) and (
        found := cached_file(match["repository"], "config.json", match["revision"])
    ):
        return read_json_object(found)
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


def file_candidate(model: str) -> Candidate:
    """A GGUF file as it is."""
    from medlite.engines.llamacpp.memory import read_shape
    from medlite.formats.artifact import describe
    from medlite.formats.gguf import read_header
    from medlite.models.registry import resolve_model

    path = resolve_model(model)
    header = read_header(path)
    artifact = describe(path, header)
    return Candidate(artifact.recipe, False, artifact.n_params, header, read_shape(header))


def recipe_candidates(config: Mapping[str, Any], names: Collection[str] = ()) -> list[Candidate]:
    """The model that `config` describes at every recipe (or those named), largest file first."""
    from medlite.engines.llamacpp.memory import read_shape
    from quantize.gguf.outline import Outline
    from quantize.gguf.recipes import RECIPES

    outline = Outline(config)
    found = []
    for recipe in (RECIPES[name] for name in names or RECIPES):
        header = outline.header(recipe)
        found.append(Candidate(recipe.name, recipe.needs_imatrix, outline.n_params, header, read_shape(header)))
    return sorted(found, key=lambda candidate: -candidate.n_file_bytes)


def wanted_contexts(n_context: int | None, trained: int) -> list[int]:
    """The context lengths to show. Raises click.BadParameter for one that the model was not trained for."""
    from medlite.fit.memory import STANDARD_CONTEXTS

    if n_context is not None:
        if trained and n_context > trained:
            raise click.BadParameter(f"{n_context} tokens, the model was trained for {trained}", param_hint="--context")
        return [n_context]
    usual = [n for n in STANDARD_CONTEXTS if not trained or n < trained] + ([trained] if trained else [])
    while len(usual) > SHOWN_CONTEXTS:
        usual.pop(1 if COMMON_CONTEXT not in usual[:2] else 2)
    return usual


def with_speeds(candidates: list[Candidate], machine: Machine, kv_type: str) -> list[Candidate]:
    """The candidates with their decode speed on this machine; none where it is another machine's memory."""
    from medlite.fit.memory import decode_tokens_per_second

    if machine.stated:
        return candidates
    speeds = measured_speeds(candidates, machine.n_threads, kv_type)
    return [
        replace(
            c,
            tokens_per_second=decode_tokens_per_second(c.header, c.shape, kv_type, speeds, n_threads=machine.n_threads),
        )
        for c in candidates
    ]


def measured_speeds(candidates: list[Candidate], n_threads: int, kv_type: str) -> dict[str, float]:
    """Bytes per second of what the candidates read, common ones first; empty where no engine loads."""
    from medlite.fit.memory import reading_names
    from medlite.fit.speed import bytes_per_second

    first = sorted(candidates, key=lambda c: (c.recipe != COMMON_RECIPE, not c.recommendable))
    names = [name for c in first for name in reading_names(c.header, c.shape, kv_type)]
    try:
        return bytes_per_second(dict.fromkeys(names), n_threads)
    except (MedliteError, AttributeError):  # AttributeError: a build of ggml without a function that the probe needs
        return {}


def predict(candidate: Candidate, contexts: list[int], kv_type: str) -> Candidate:
    """The candidate with its memory at each context."""
    from medlite.fit.memory import predict_memory

    return replace(candidate, memory={n: predict_memory(candidate.shape, n, kv_type) for n in contexts})


# --- the answer ------------------------------------------------------------------------------------------------------


def recommend(candidates: list[Candidate], machine: Machine, context: int) -> str:
    """One or two sentences: whether the common recipe fits, and the largest that does."""
    from medlite.files import format_bytes
    from medlite.fit.memory import fits

    one = next((c for c in candidates if c.recipe == COMMON_RECIPE), candidates[0])
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


def context_name(n: int) -> str:
    """8k for 8192, the number itself where it is no multiple of 1024."""
    return f"{n // 1024}k" if n % 1024 == 0 else f"{n:,}"


def speed_text(tokens_per_second: float | None) -> str:
    """Two digits below ten, whole numbers above, a dot where it is not known."""
    if tokens_per_second is None:
        return "·"
    return f"{tokens_per_second:.1f}" if tokens_per_second < 10 else f"{tokens_per_second:,.0f}"


def past_error(history: "list[Measured]", n_threads: int) -> str:
    """How far predictions were off on this machine, in a sentence; with as many threads where that was measured."""
    if not history:
        return "not compared with a load on this machine yet: python -m medlite.fit.check FILE.gguf"
    rows = [row for row in history if row.n_threads == n_threads] or history
    memory, speed = [row.memory_error for row in rows], [row.speed_error for row in rows]
    files = "1 file" if len(rows) == 1 else f"{len(rows)} files"
    return (
        f"past error here, {files}: memory {100 * min(memory):+.0f} to {100 * max(memory):+.0f} %, "
        f"decode {100 * min(speed):+.0f} to {100 * max(speed):+.0f} %"
    )


def gpu_line(candidates: list[Candidate], context: int, kv_type: str) -> str:
    """What goes on this machine's GPU, empty without one."""
    from medlite.devices import find_gpus
    from medlite.engines.llamacpp.memory import estimate, layers_that_fit
    from medlite.files import format_bytes
    from medlite.fit.memory import N_BATCH

    gpus = find_gpus()
    if not gpus:
        return ""
    one = next((c for c in candidates if c.recipe == COMMON_RECIPE), candidates[0])
    n = layers_that_fit(one.shape, estimate(one.shape, context, kv_type, N_BATCH), gpus[0].n_bytes_free)
    what = "the whole model" if n > one.shape.n_layer else f"{n} of {one.shape.n_layer} layers"
    return (
        f"{gpus[0].name}, {format_bytes(gpus[0].n_bytes_free)} free: takes {what} of {one.recipe} at "
        f"{context_name(context)}. Its speed is not predicted."
    )


def fit_table(candidates: list[Candidate], machine: Machine) -> "Table":
    """One row a recipe: file, bits, memory per context, speed."""
    from rich import box
    from rich.table import Table

    from medlite.files import format_bytes
    from medlite.fit.memory import fits

    contexts = list(candidates[0].memory)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("recipe", no_wrap=True)
    for name in ("file", "bits/\nweight", *(f"memory\n{context_name(n)}" for n in contexts), "decode\ntokens/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for candidate in candidates:
        cells = []
        for n in contexts:
            good = fits(candidate.memory[n], machine.n_bytes)
            cells.append(
                f"[{'green' if good else 'red'}]{format_bytes(candidate.memory[n].needed)}{' ' if good else '!'}[/]"
            )
        table.add_row(
            candidate.recipe + ("*" if candidate.needs_imatrix else ""),
            format_bytes(candidate.n_file_bytes),
            f"{candidate.bits_per_weight:.2f}",
            *cells,
            speed_text(candidate.tokens_per_second),
        )
    return table


def show(candidates: list[Candidate], machine: Machine, context: int, kv_type: str) -> None:
    """Print the table, the recommendation and how far to trust them."""
    from medlite.cli.display import stdout
    from medlite.files import format_bytes
    from medlite.fit.memory import USED_TOKENS, read_history, windowed_kv_bytes

    stdout.print(fit_table(candidates, machine))
    memory = format_bytes(machine.n_bytes)
    notes = [f"!: more than {memory}" + ("" if machine.stated else ", which is free here")]
    if any(c.needs_imatrix for c in candidates):
        notes.append("*: needs an importance matrix")
    stdout.print(" · ".join(notes), style="dim")
    stdout.print(recommend(candidates, machine, context), style="bold", soft_wrap=True)
    if line := gpu_line(candidates, context, kv_type):
        stdout.print(line, soft_wrap=True)
    one = candidates[0]
    if (short := windowed_kv_bytes(one.header, one.shape, context, kv_type)) is not None:
        stdout.print(
            f"The KV cache takes {format_bytes(one.memory[context].model.kv_cache)} of that; its sliding "
            f"windows alone would need {format_bytes(short)}, but could not continue an earlier turn.",
            style="dim",
            soft_wrap=True,
        )
    if not machine.stated:
        n_used = min(USED_TOKENS, one.shape.n_context_trained or USED_TOKENS)
        stdout.print(
            f"decode: {machine.n_threads} threads, {n_used:,} tokens in the cache, from a measured "
            "reading speed per type; prefill is not predicted",
            style="dim",
            soft_wrap=True,
        )
        if any(c.tokens_per_second is None for c in candidates):
            stdout.print("·: not measured yet; run again", style="dim")
        stdout.print(past_error(read_history(), machine.n_threads), style="dim", soft_wrap=True)


def as_data(
    model: str, candidates: list[Candidate], machine: Machine, context: int, kv_type: str, history: "list[Measured]"
) -> dict[str, Any]:
    """The answer for --json; sizes in bytes."""
    from medlite.fit.memory import fits

    return {
        "model": model,
        "n_params": candidates[0].n_params,
        "kv_type": kv_type,
        "memory_bytes": machine.n_bytes,
        "memory_stated": machine.stated,
        "n_threads": machine.n_threads,
        "recommendation": recommend(candidates, machine, context),
        "recipes": [
            {
                "recipe": c.recipe,
                "needs_imatrix": c.needs_imatrix,
                "n_file_bytes": c.n_file_bytes,
                "n_tensor_bytes": c.shape.n_weight_bytes,
                "bits_per_weight": c.bits_per_weight,
                "decode_tokens_per_second": c.tokens_per_second,
                "contexts": [
                    {
                        "n_context": n,
                        "needed_bytes": p.needed,
                        "peak_resident_bytes": p.peak_resident,
                        "fits": fits(p, machine.n_bytes),
                        **asdict(p.model),
                        "runtime": p.runtime,
                    }
                    for n, p in c.memory.items()
                ],
            }
            for c in candidates
        ],
        "past": [vars(row) | {"memory_error": row.memory_error, "speed_error": row.speed_error} for row in history],
    }
