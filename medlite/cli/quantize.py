"""`medlite quantize`: from a checkpoint to GGUF files or ONNX folders, with a plan first and a receipt last."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medlite.cli.params import (
    PATH,
    SIZE,
    grouped,
    imatrix_option,
    json_option,
    pre_tokenizer_option,
    recipe_option,
    threads_option,
    value_option,
)
from medlite.errors import RecipeError
from medlite.files import make_folder

if TYPE_CHECKING:
    from quantize.onnx.recipes import OnnxRecipe
    from quantize.source.parity import ParityReport
    from quantize.stream.plan import Output, Plan
    from quantize.stream.writer import WriteSettings, Written

DEFAULT_RECIPES = ("Q4_K_M",)


@dataclass(frozen=True)
class Asked:
    """What the command line said. recipes: those of --recipe, or its default, which is GGUF's."""

    recipes: tuple[str, ...]
    out: Path | None
    wanted_format: str
    block: int | None
    device: str | None
    exporter: str | None
    exporter_python: Path | None
    dry_run: bool
    restart: bool
    n_threads: int | None
    imatrix: Path | None
    overrides: tuple[str, ...]
    max_shard_bytes: int | None
    pre_tokenizer: str | None
    allow_mismatch: bool
    no_measure: bool
    offline: bool
    force: bool
    as_json: bool


def show_recipes(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print the recipe tables and exit, where --list-recipes was given."""
    from medlite.cli.plans import list_recipes

    if value:
        list_recipes()
        ctx.exit()


quantize_options = grouped(
    "asked",
    Asked,
    recipe_option("What to make; several share one read of the checkpoint. See --list-recipes.", DEFAULT_RECIPES),
    click.option("--out", type=PATH, help="A file, or a folder (default: this folder)."),
    value_option(
        "--format",
        click.Choice(["gguf", "onnx"]),
        "gguf",
        "llama.cpp's format, or a folder for ONNX Runtime; --list-recipes lists the recipes of both.",
        as_name="wanted_format",
    ),
    click.option("--block", type=int, help="ONNX: weights that share a scale: 32 (best), 64 or 128 (fastest)."),
    click.option("--device", type=click.Choice(["cpu", "cuda"]), help="ONNX: where the graph will run (default: cpu)."),
    click.option(
        "--exporter",
        type=click.Choice(["medlite", "optimum"]),
        help="ONNX: who makes the graph; optimum for BioGPT and the GPT-2 family (default: medlite).",
    ),
    click.option("--exporter-python", type=PATH, help="The python of an environment with optimum."),
    click.option("--dry-run", is_flag=True, help="Print the plan with exact sizes and write nothing."),
    click.option("--restart", is_flag=True, help="Do not continue an interrupted run."),
    threads_option("Worker threads (default: all cores)."),
    imatrix_option,
    click.option(
        "--tensor-type",
        "overrides",
        multiple=True,
        metavar="REGEX=TYPE",
        help="Give matching tensors another type; the first match decides.",
    ),
    click.option(
        "--max-shard-size",
        "max_shard_bytes",
        type=SIZE,
        metavar="SIZE",
        help="Split into files of at most SIZE, for example 4GB.",
    ),
    pre_tokenizer_option,
    click.option("--allow-mismatch", is_flag=True, help="Write it even if it would read text differently; recorded."),
    click.option("--no-measure", is_flag=True, help="Skip each tensor's error against the source."),
    click.option("--offline", is_flag=True, help="Open no socket: use the folder or the local cache only."),
    click.option("--force", is_flag=True, help="Replace files that exist."),
    json_option(),
    click.option(
        "--list-recipes",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        help="List the recipes and exit.",
        callback=show_recipes,
    ),
)


@click.command(
    "quantize",
    epilog="""\b
Examples:
  medlite quantize ./Llama-3.2-1B-Instruct --recipe Q4_K_M
  medlite quantize meta-llama/Llama-3.1-8B-Instruct --recipe Q4_K_M --recipe Q8_0 --out models/
  medlite quantize ./Meditron-70B --recipe Q3_K_M --dry-run
  medlite quantize ./Med42-8B --recipe Q4_K_M --tensor-type 'ffn_down=Q6_K'
  medlite quantize ./Med42-8B --recipe IQ2_M --imatrix clinical.gguf
  medlite quantize ./Llama-3.2-1B-Instruct --format onnx --recipe q4m

A conversion that was interrupted continues when the same command is run again.""",
)
@click.argument("source")
@quantize_options
def command(source: str, asked: Asked) -> None:
    """Turn a Hugging Face checkpoint into low-bit GGUF files, or ONNX folders.

    SOURCE is a folder with config.json, *.safetensors and a tokenizer, or a repository on the hub. The weights are
    read once and written once; no 16-bit copy is made. The bytes equal llama-quantize's.
    """
    from medlite.cli.plans import show_plans, show_written
    from medlite.models.hub import find_checkpoint

    refuse_options_of_the_other_format(asked)
    folder = find_checkpoint(source, offline=asked.offline)
    is_onnx = asked.wanted_format == "onnx"
    with onnx_outputs(folder, asked) if is_onnx else gguf_outputs(folder, asked) as (outputs, settings):
        if asked.dry_run:
            show_plans(outputs, settings.n_threads, as_json=asked.as_json)
        else:
            if asked.out == outputs[0].path.parent:
                make_folder(asked.out)
            show_written(write_with_progress(outputs, settings, quiet=asked.as_json), as_json=asked.as_json)


def refuse_options_of_the_other_format(asked: Asked) -> None:
    """Raise RecipeError naming the options that were given and mean nothing here."""
    gguf_only = {
        "--imatrix": asked.imatrix,
        "--tensor-type": asked.overrides,
        "--max-shard-size": asked.max_shard_bytes,
        "--pre-tokenizer": asked.pre_tokenizer,
    }
    onnx_only = {
        "--block": asked.block,
        "--device": asked.device,
        "--exporter": asked.exporter,
        "--exporter-python": asked.exporter_python,
    }
    if asked.wanted_format == "gguf":
        refuse_given("--format onnx", onnx_only)
        return
    refuse_given("--format gguf", gguf_only)
    if asked.exporter != "optimum":
        refuse_given("--exporter optimum", {"--exporter-python": asked.exporter_python})


def refuse_given(where: str, options: Mapping[str, object]) -> None:
    """Raise RecipeError naming the options that were given and only mean something with `where`."""
    if given := [name for name, value in options.items() if value]:
        raise RecipeError(f"{', '.join(given)}: only with {where}", hint=f"add {where}, or leave it out")


def write_settings(asked: Asked) -> "WriteSettings":
    from quantize.stream.writer import WriteSettings

    return WriteSettings(
        n_threads=asked.n_threads or 0, measure=not asked.no_measure, force=asked.force, restart=asked.restart
    )


# --- GGUF ------------------------------------------------------------------------------------------------------------


@contextmanager
def gguf_outputs(folder: Path, asked: Asked) -> "Iterator[tuple[list[Output], WriteSettings]]":
    """A GGUF file for each recipe, and settings that check its tokenizer."""
    from dataclasses import replace

    from quantize.gguf.imatrix import read_imatrix
    from quantize.gguf.plan import plan_gguf
    from quantize.gguf.recipes import RECIPES, find_recipe
    from quantize.match import match_checkpoint
    from quantize.onnx.recipes import ONNX_RECIPES
    from quantize.source.checkpoint import open_checkpoint
    from quantize.source.parity import check_metadata

    if of_onnx := [name for name in asked.recipes if name.upper() not in RECIPES and name.lower() in ONNX_RECIPES]:
        raise RecipeError(f"{of_onnx[0]}: not a recipe of a GGUF file", hint=f"--format onnx --recipe {of_onnx[0]}")
    recipes = list(dict.fromkeys(find_recipe(name) for name in asked.recipes))
    paths = [output_path(folder, recipe.name, asked.out, several=len(recipes) > 1) for recipe in recipes]
    checkpoint = open_checkpoint(folder)
    model = match_checkpoint(checkpoint, asked.pre_tokenizer)
    importance = read_imatrix(asked.imatrix) if asked.imatrix else None
    overrides = tuple(map(parse_override, asked.overrides))
    plans = [
        plan_gguf(model, recipe, overrides=overrides, importance=importance, max_shard_bytes=asked.max_shard_bytes)
        for recipe in recipes
    ]

    def check() -> "ParityReport":
        report = check_metadata(plans[0].metadata, checkpoint.files)
        if not asked.allow_mismatch:
            report.require()
        return report

    outputs = [plan.output(path) for plan, path in zip(plans, paths, strict=True)]
    yield outputs, replace(write_settings(asked), check=check)


def parse_override(text: str) -> tuple[str, str]:
    """REGEX=TYPE as (regex, TYPE). Raises RecipeError where it is neither."""
    import re

    pattern, _, name = text.rpartition("=")
    try:
        re.compile(pattern)
    except re.error as error:
        raise RecipeError(f"--tensor-type {text}: {pattern!r} is no regular expression: {error}") from error
    if not pattern or not name:
        raise RecipeError(f"--tensor-type {text}: REGEX=TYPE was needed", hint="--tensor-type 'ffn_down=Q6_K'")
    return pattern, name.upper()


def output_path(folder: Path, recipe: str, out: Path | None, *, several: bool) -> Path:
    """Where an artifact goes: <checkpoint>-<recipe>.gguf in a folder, or the file that --out names."""
    from medlite.formats.hub_cache import model_name

    name = f"{model_name(folder)}-{recipe}.gguf"
    if out is None:
        return Path(name)
    if out.is_dir() or out.suffix != ".gguf":
        return out / name
    if several:
        raise RecipeError(f"--out {out}: one file for several recipes", hint="--out names a folder")
    return out


# --- ONNX ------------------------------------------------------------------------------------------------------------


@contextmanager
def onnx_outputs(folder: Path, asked: Asked) -> "Iterator[tuple[list[Output], WriteSettings]]":
    """An ONNX folder for each recipe. With --exporter optimum its float32 export lies beside them meanwhile."""
    from quantize.onnx.recipes import DEFAULT_RECIPE, ONNX_RECIPES, find_onnx_recipe

    stated = click.get_current_context().get_parameter_source("recipes") is not click.core.ParameterSource.DEFAULT
    names = asked.recipes if stated else (DEFAULT_RECIPE,)
    recipes = list(dict.fromkeys(map(find_onnx_recipe, names)))
    if asked.block and not any(recipe.is_quantized for recipe in recipes):
        blocks = ", ".join(row.name for row in ONNX_RECIPES.values() if row.is_quantized)
        raise RecipeError(f"--block has no effect on {recipes[0].name}", hint=f"--recipe, one of {blocks}")
    paths = [output_folder(folder, recipe.name, asked.out, several=len(recipes) > 1) for recipe in recipes]
    with onnx_plans(folder, recipes, paths[0].parent, asked) as plans:
        yield [plan.output(path) for plan, path in zip(plans, paths, strict=True)], write_settings(asked)


@contextmanager
def onnx_plans(folder: Path, recipes: "list[OnnxRecipe]", beside: Path, asked: Asked) -> "Iterator[list[Plan]]":
    """A plan for each recipe. With --exporter optimum its float32 export lies under `beside` meanwhile."""
    from quantize.match import match_checkpoint
    from quantize.onnx.plan import plan_onnx
    from quantize.onnx.recipes import DEFAULT_BLOCK
    from quantize.source.checkpoint import open_checkpoint

    block, device = asked.block or DEFAULT_BLOCK, asked.device or "cpu"
    if asked.exporter != "optimum":
        model = match_checkpoint(open_checkpoint(folder))
        yield [plan_onnx(model, recipe, block=block, device=device) for recipe in recipes]
        return
    from quantize.onnx.exported import open_source, plan_export
    from quantize.onnx.optimum import exported

    if device != "cpu":
        raise RecipeError(
            f"--exporter optimum --device {device}: its graphs are made for the CPU",
            hint="leave --device out, or --exporter medlite where it knows the architecture",
        )
    source = open_source(folder)
    if not asked.as_json:
        click.echo(
            f"optimum exports {folder.name} in float32 first, which takes minutes and about five times the "
            "checkpoint's size in memory",
            err=True,
        )
    with exported(folder, beside, asked.exporter_python) as export:
        yield [plan_export(source, export, recipe, block) for recipe in recipes]


def output_folder(folder: Path, recipe: str, out: Path | None, *, several: bool) -> Path:
    """Where an artifact goes: <checkpoint>-<recipe>-onnx in a folder that exists, or the new folder --out names."""
    from medlite.formats.hub_cache import model_name
    from medlite.formats.onnx_folder import is_onnx_folder

    name = f"{model_name(folder)}-{recipe}-onnx"
    if out is None:
        return Path(name)
    if several or (out.is_dir() and not is_onnx_folder(out)):
        return out / name
    return out


# --- both ------------------------------------------------------------------------------------------------------------


def write_with_progress(outputs: "list[Output]", settings: "WriteSettings", *, quiet: bool) -> "list[Written]":
    """Write the outputs under two progress bars: the conversion, then the read-back."""
    from dataclasses import replace

    from medlite.cli.display import progress_bar
    from medlite.models.registry import remember_folders
    from quantize.stream.writer import write

    total = sum(output.plan.n_tensor_bytes for output in outputs)
    names = outputs[0].plan.recipe if len(outputs) == 1 else f"{len(outputs)} recipes"
    with (
        progress_bar(f"quantize {names}", total, unit="bytes", quiet=quiet) as on_bytes,
        progress_bar("verify", total, unit="bytes", quiet=quiet) as on_verify,
    ):
        try:
            written = write(outputs, replace(settings, on_bytes=on_bytes, on_verify=on_verify))
        except KeyboardInterrupt:
            click.echo("stopped; run the same command again to continue, --restart to begin anew", err=True)
            raise
    remember_folders(output.path for output in outputs)
    return written
