"""`medlite fit`: will a model fit on this machine, and how fast will it be, for every recipe and context length?"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medlite.cli import print_json
from medlite.cli.params import SIZE, context_option, json_option, kv_type_option, threads_option

if TYPE_CHECKING:
    from rich.table import Table

    from medlite.fit.check import CheckSettings, Measured
    from medlite.fit.machine import Machine
    from medlite.fit.recommend import Candidate


@click.command(
    "fit",
    epilog="""\b
Examples:
  medlite fit llama3-med42-70b
  medlite fit llama3.2-3b-instruct --context 8192 --kv-type q8_0
  medlite fit ./Llama-3.1-8B-Instruct --memory 16GB
  medlite fit model-Q4_K_M.gguf --json
  medlite fit model-Q4_K_M.gguf --check

Needs neither weights nor network: the catalogue or a config.json is enough.""",
)
@click.argument("model", metavar="NAME|REPO|FOLDER|FILE")
@context_option("One context length (default: the usual ones up to the model's own).")
@kv_type_option("Type of the KV cache.")
@click.option("--memory", "n_bytes", type=SIZE, help="Memory of the machine in question (default: free here).")
@threads_option()
@click.option("--check", "checks", is_flag=True, help="Load FILE on the processor and compare it with its prediction.")
@json_option("Print the numbers as JSON.")
def command(
    model: str,
    n_context: int | None,
    kv_type: str,
    n_bytes: int | None,
    n_threads: int | None,
    checks: bool,
    as_json: bool,
) -> None:
    """Predict memory and decode speed of a model for every recipe.

    NAME: of `medlite models`. FOLDER: a checkpoint's, of which only config.json is read. FILE: a GGUF file. Memory is
    that of chat and generate with the context full. With --check the file is run for a moment, and later predictions
    say by how much this machine's were off.
    """
    from medlite.devices import physical_cores
    from medlite.fit.check import N_CONTEXT, CheckSettings
    from medlite.fit.machine import find_machine
    from medlite.fit.recommend import COMMON_CONTEXT, usual_contexts, with_memory, with_speeds

    if checks:
        if n_bytes is not None:
            raise click.UsageError("--check runs the file on this machine; --memory is for others")
        settings = CheckSettings(n_threads or physical_cores(), n_context or N_CONTEXT, kv_type)
        check(model, settings, as_json=as_json)
        return
    machine = find_machine(n_bytes, n_threads)
    candidates = find_candidates(model)
    trained = candidates[0].shape.n_context_trained
    if n_context and trained and n_context > trained:
        raise click.BadParameter(f"{n_context} tokens, the model was trained for {trained}", param_hint="--context")
    contexts = [n_context] if n_context else usual_contexts(trained)
    candidates = [with_memory(candidate, contexts, kv_type) for candidate in with_speeds(candidates, machine, kv_type)]
    context = n_context or max(n for n in contexts if n <= max(COMMON_CONTEXT, contexts[0]))
    if as_json:
        print_json(as_data(model, candidates, machine, context, kv_type))
        return
    show(candidates, machine, context, kv_type)


# --- what is asked about ---------------------------------------------------------------------------------------------


def find_candidates(model: str) -> "list[Candidate]":
    """The model at every recipe, largest file first; or a file, or NAME:RECIPE of one that is here, as it is."""
    from medlite.fit.recommend import file_candidate, find_config
    from medlite.models.registry import DEMO_NAME, resolve_model

    path = Path(model).expanduser()
    if path.is_file() or model.partition(":")[0] == DEMO_NAME or (":" in model and not path.is_dir()):
        return [file_candidate(resolve_model(model))]
    return recipe_candidates(find_config(model))


def recipe_candidates(config: Mapping[str, Any]) -> "list[Candidate]":
    """The model that `config` describes at every recipe, largest file first."""
    from medlite.engines.llamacpp.memory import read_shape
    from medlite.fit.recommend import Candidate
    from quantize.gguf.outline import Outline
    from quantize.gguf.recipes import RECIPES

    outline, found = Outline(config), []
    for recipe in RECIPES.values():
        header = outline.header(recipe)
        found.append(Candidate(recipe.name, recipe.needs_imatrix, outline.n_params, header, read_shape(header)))
    return sorted(found, key=lambda candidate: -candidate.n_file_bytes)


# --- the prediction --------------------------------------------------------------------------------------------------


def fit_table(candidates: "list[Candidate]", machine: "Machine") -> "Table":
    """One row a recipe: file, bits, memory per context, speed."""
    from medlite.cli.display import result_table
    from medlite.files import format_bytes
    from medlite.fit.memory import fits
    from medlite.fit.recommend import context_name, speed_text

    contexts = list(candidates[0].memory)
    memories = (f"memory\n{context_name(n)}" for n in contexts)
    table = result_table("recipe", "file", "bits/\nweight", *memories, "decode\ntokens/s")
    for candidate in candidates:
        cells = []
        for n in contexts:
            colour, mark = ("green", " ") if fits(candidate.memory[n], machine.n_bytes) else ("red", "!")
            cells.append(f"[{colour}]{format_bytes(candidate.memory[n].needed)}{mark}[/]")
        table.add_row(
            candidate.recipe + ("*" if candidate.needs_imatrix else ""),
            format_bytes(candidate.n_file_bytes),
            f"{candidate.bits_per_weight:.2f}",
            *cells,
            speed_text(candidate.tokens_per_second),
        )
    return table


def show(candidates: "list[Candidate]", machine: "Machine", context: int, kv_type: str) -> None:
    """Print the table, the recommendation and how far to trust them."""
    from medlite.cli.display import stdout
    from medlite.files import format_bytes
    from medlite.fit.check import past_error, read_history
    from medlite.fit.decode import USED_TOKENS
    from medlite.fit.memory import fits, windowed_kv_bytes
    from medlite.fit.recommend import gpu_advice, recommend

    stdout.print(fit_table(candidates, machine))
    memory = format_bytes(machine.n_bytes)
    notes = []
    if not all(fits(needed, machine.n_bytes) for candidate in candidates for needed in candidate.memory.values()):
        notes.append(f"!: more than {memory}" + ("" if machine.stated else ", which is free here"))
    if any(c.needs_imatrix for c in candidates):
        notes.append("*: needs an importance matrix")
    if notes:
        stdout.print(" · ".join(notes), style="dim")
    stdout.print(recommend(candidates, machine, context), style="bold", soft_wrap=True)
    if line := gpu_advice(candidates, machine, context, kv_type):
        stdout.print(line, soft_wrap=True)
    one = candidates[0]
    if (short := windowed_kv_bytes(one.header, one.shape, context, kv_type)) is not None:
        stdout.print(
            f"The KV cache takes {format_bytes(one.memory[context].kv_cache)} of that; its sliding "
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
    model: str, candidates: "list[Candidate]", machine: "Machine", context: int, kv_type: str
) -> dict[str, Any]:
    """The answer for --json; sizes in bytes."""
    from medlite.fit.check import read_history
    from medlite.fit.memory import fits
    from medlite.fit.recommend import recommend

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
                        "peak_resident_bytes": p.total,
                        "fits": fits(p, machine.n_bytes),
                        **asdict(p),
                    }
                    for n, p in c.memory.items()
                ],
            }
            for c in candidates
        ],
        "past": [row.to_json() for row in read_history()],
    }


# --- the comparison --------------------------------------------------------------------------------------------------


def check(model: str, settings: "CheckSettings", *, as_json: bool) -> None:
    """Run the file that `model` names, and print how far its prediction was off."""
    from medlite.cli.display import progress_bar
    from medlite.fit.check import N_STEPS, measure
    from medlite.fit.recommend import refuse_onnx
    from medlite.models.registry import resolve_model

    path = resolve_model(model)
    refuse_onnx(path)
    with progress_bar(f"check {path.stem}", N_STEPS, quiet=as_json) as on_step:
        row = measure(path, settings, on_step)
    if as_json:
        print_json(row.to_json())
        return
    show_check(row)


def show_check(row: "Measured") -> None:
    """Print one comparison."""
    from medlite.cli.display import result_table, stdout
    from medlite.files import format_bytes
    from medlite.fit.check import HISTORY
    from medlite.fit.recommend import speed_text

    threads = "1 thread" if row.n_threads == 1 else f"{row.n_threads} threads"
    stdout.print(f"{row.model}, context {row.n_context:,}, {threads}", style="bold", markup=False, soft_wrap=True)
    table = result_table("", "predicted", "measured", "off by")
    memory = (format_bytes(row.predicted_peak_bytes), format_bytes(row.measured_peak_bytes))
    speed = (speed_text(row.predicted_tokens_per_second), speed_text(row.measured_tokens_per_second))
    table.add_row("memory", *memory, f"{100 * row.memory_error:+.1f} %")
    table.add_row("decode, tokens/s", *speed, f"{100 * row.speed_error:+.0f} %")
    stdout.print(table)
    stdout.print(f"kept in {HISTORY.path} for later predictions", style="dim", markup=False, soft_wrap=True)
