"""`medlite quantize`: from a checkpoint to GGUF files, with a plan first and a receipt last."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medlite.cli import print_json
from medlite.errors import RecipeError

if TYPE_CHECKING:
    from quantize.gguf.plan import QuantizationPlan
    from quantize.stream.writer import Output, Written

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


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
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    default=("Q4_K_M",),
    show_default=True,
    help="What to make; several share one read of the checkpoint. See --list-recipes.",
)
@click.option("--out", type=click.Path(path_type=Path), help="A file, or a folder (default: this folder).")
@click.option(
    "--format",
    "wanted_format",
    type=click.Choice(["gguf", "onnx"]),
    default="gguf",
    show_default=True,
    help="llama.cpp's format, or a folder for ONNX Runtime (recipes q4m, q4, q8, fp16, fp32).",
)
@click.option("--block", type=int, help="ONNX: weights that share a scale: 32 (best), 64 or 128 (fastest).")
@click.option("--device", help="ONNX: where the graph will run, cpu or cuda (default: cpu).")
@click.option(
    "--exporter",
    type=click.Choice(["medlite", "optimum"]),
    help="ONNX: who makes the graph; optimum for BioGPT and the GPT-2 family (default: medlite).",
)
@click.option("--exporter-python", type=click.Path(path_type=Path), help="The python of an environment with optimum.")
@click.option("--dry-run", is_flag=True, help="Print the plan with exact sizes and write nothing.")
@click.option("--restart", is_flag=True, help="Do not continue an interrupted run.")
@click.option("--threads", type=click.IntRange(1), help="Worker threads (default: all cores).")
@click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix from llama-imatrix.")
@click.option(
    "--tensor-type",
    "overrides",
    multiple=True,
    metavar="REGEX=TYPE",
    help="Give matching tensors another type; the first match decides.",
)
@click.option("--max-shard-size", metavar="SIZE", help="Split into files of at most SIZE, as in 4GB.")
@click.option("--pre-tokenizer", metavar="NAME", help="llama.cpp's name for a pre-tokenizer medlite does not know.")
@click.option("--allow-mismatch", is_flag=True, help="Write it even if it would read text differently; recorded.")
@click.option("--no-measure", is_flag=True, help="Skip each tensor's error against the source.")
@click.option("--offline", is_flag=True, help="Open no socket: use the folder or the local cache only.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option(
    "--list-recipes",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    help="List the recipes and exit.",
    callback=lambda ctx, param, value: list_recipes(ctx) if value else None,
)
def command(
    source: str,
    recipes: tuple[str, ...],
    out: Path | None,
    wanted_format: str,
    block: int | None,
    device: str | None,
    exporter: str | None,
    exporter_python: Path | None,
    dry_run: bool,
    restart: bool,
    threads: int | None,
    imatrix: Path | None,
    overrides: tuple[str, ...],
    max_shard_size: str | None,
    pre_tokenizer: str | None,
    allow_mismatch: bool,
    no_measure: bool,
    offline: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Turn a Hugging Face checkpoint into low-bit GGUF files, or ONNX folders.

    SOURCE is a folder with config.json, *.safetensors and a tokenizer, or a repository on the hub. The weights are
    read once and written once; no 16-bit copy is made. The bytes equal llama-quantize's.
    """
    from dataclasses import replace

    from medlite.models.hub import find_checkpoint
    from quantize.gguf.imatrix import read_imatrix
    from quantize.gguf.plan import plan_gguf
    from quantize.gguf.recipes import find_recipe
    from quantize.match import match_checkpoint
    from quantize.source.checkpoint import open_checkpoint
    from quantize.source.parity import ParityReport, check_metadata
    from quantize.stream.writer import Output, WriteSettings

    settings = WriteSettings(n_threads=threads or 0, measure=not no_measure, force=force, restart=restart)
    if wanted_format == "onnx":
        from medlite.cli.quantize_onnx import OnnxOptions, quantize_onnx

        refuse_given(
            "--format gguf",
            {
                "--imatrix": imatrix,
                "--tensor-type": overrides,
                "--max-shard-size": max_shard_size,
                "--pre-tokenizer": pre_tokenizer,
            },
        )
        if exporter != "optimum":
            refuse_given("--exporter optimum", {"--exporter-python": exporter_python})
        stated = click.get_current_context().get_parameter_source("recipes") is not click.core.ParameterSource.DEFAULT
        quantize_onnx(
            source,
            OnnxOptions(
                recipes if stated else (),
                block or 0,
                device or "cpu",
                out,
                dry_run,
                offline,
                as_json,
                exporter or "medlite",
                exporter_python,
            ),
            settings,
        )
        return
    refuse_given(
        "--format onnx",
        {"--block": block, "--device": device, "--exporter": exporter, "--exporter-python": exporter_python},
    )
    model = match_checkpoint(open_checkpoint(find_checkpoint(source, offline=offline)))
    importance = read_imatrix(imatrix) if imatrix else None
    outputs = []
    for recipe in dict.fromkeys(find_recipe(name) for name in recipes):
        plan = plan_gguf(
            model,
            recipe,
            overrides=tuple(map(parse_override, overrides)),
            importance=importance,
            max_shard_bytes=parse_size(max_shard_size) if max_shard_size else None,
            pre_tokenizer=pre_tokenizer,
        )
        outputs.append(
            Output(plan, output_path(model.checkpoint.folder, recipe.name, out, several=len(set(recipes)) > 1))
        )
    if dry_run:
        show_plans(outputs, as_json=as_json)
        return

    def check() -> ParityReport:
        report = check_metadata(outputs[0].plan.metadata, model.checkpoint.files)
        if not allow_mismatch:
            report.require()
        return report

    settings = replace(settings, check=check)
    show_written(write_with_progress(outputs, settings, quiet=as_json), as_json=as_json)


def refuse_given(where: str, options: dict[str, object]) -> None:
    """Raise RecipeError naming the options that were given and only mean something with `where`."""
    if given := [name for name, value in options.items() if value]:
        raise RecipeError(f"{', '.join(given)}: only with {where}")


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


def parse_size(text: str) -> int:
    """4GB, 500MB or a number of bytes. Raises RecipeError for anything else."""
    import re

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if match is None or float(match[1]) <= 0:
        raise RecipeError(f"--max-shard-size {text}: a size was needed", hint="--max-shard-size 4GB")
    return int(float(match[1]) * UNITS[match[2]])


def output_path(folder: Path, recipe: str, out: Path | None, *, several: bool) -> Path:
    """Where an artifact goes: <checkpoint>-<recipe>.gguf in a folder, or the file that --out names."""
    from medlite.formats.hub_cache import model_name

    name = f"{model_name(folder)}-{recipe}.gguf"
    if out is None:
        return Path(name)
    if out.is_dir() or out.suffix != ".gguf":
        out.mkdir(parents=True, exist_ok=True)
        return out / name
    if several:
        raise RecipeError(f"--out {out}: one file for several recipes", hint="--out names a folder")
    return out


def write_with_progress(outputs: "list[Output]", settings: Any, *, quiet: bool) -> "list[Written]":
    """Write the outputs under two progress bars: the conversion, then the read-back."""
    from dataclasses import replace

    from medlite.cli.display import progress_bar
    from medlite.models.registry import remember_folders
    from quantize.stream.writer import write_gguf

    total = sum(tensor.info.n_bytes for output in outputs for tensor in output.plan.tensors)
    names = outputs[0].plan.recipe.name if len(outputs) == 1 else f"{len(outputs)} recipes"
    with (
        progress_bar(f"quantize {names}", total, unit="bytes", quiet=quiet) as on_bytes,
        progress_bar("verify", total, unit="bytes", quiet=quiet) as on_verify,
    ):
        try:
            written = write_gguf(outputs, replace(settings, on_bytes=on_bytes, on_verify=on_verify))
        except KeyboardInterrupt:
            click.echo("stopped; run the same command again to continue, --restart to begin anew", err=True)
            raise
    remember_folders(output.path for output in outputs)
    return written


def plan_json(plan: "QuantizationPlan", path: Path) -> dict[str, Any]:
    """A plan as data: every tensor's type, size and reason."""
    return {
        "path": str(path),
        "recipe": plan.recipe.name,
        "n_bytes": plan.n_bytes,
        "n_params": plan.n_params,
        "bits_per_weight": plan.bits_per_weight,
        "files": [str(p) for p in plan.paths(path)],
        "tensors": [
            {
                "name": t.info.name,
                "source": t.source.name if t.source else None,
                "type": t.info.type.name,
                "shape": list(t.info.shape),
                "n_bytes": t.info.n_bytes,
                "reason": t.reason,
            }
            for t in plan.tensors
        ],
        "ignored": dict(plan.model.ignored),
        "notes": list(plan.model.notes),
    }


def show_plans(outputs: "list[Output]", *, as_json: bool) -> None:
    """Print what would be written: every tensor, the file's exact size, the predicted time."""
    from quantize.stream.predict import predict_seconds

    seconds = predict_seconds([output.plan for output in outputs])
    if as_json:
        print_json({"predicted_seconds": seconds, "plans": [plan_json(output.plan, output.path) for output in outputs]})
        return
    from rich.table import Table

    from medlite.cli.display import stdout
    from medlite.files import format_bytes

    for output in outputs:
        table = Table("tensor", "type", "shape", "bytes", "why", box=None, pad_edge=False, header_style="bold")
        table.columns[3].justify = "right"
        for tensor in output.plan.tensors:
            table.add_row(
                tensor.info.name,
                tensor.info.type.name,
                " x ".join(map(str, tensor.info.shape)),
                f"{tensor.info.n_bytes:,}",
                tensor.reason,
            )
        stdout.print(table)
        for name, reason in output.plan.model.ignored.items():
            stdout.print(f"ignored: {name}: {reason}", style="dim")
        size = f"{output.plan.n_bytes:,} bytes ({format_bytes(output.plan.n_bytes)})"
        stdout.print(
            f"[bold]{output.path}[/bold]: {size}, {output.plan.bits_per_weight:.2f} bits per weight", soft_wrap=True
        )
    print_notes(outputs)
    stdout.print(f"about {seconds:.0f} s on this machine; nothing was written")


def print_notes(outputs: "list[Output]") -> None:
    """Print what a user must know of the result, once."""
    from medlite.cli.display import stdout

    for note in dict.fromkeys(note for output in outputs for note in output.plan.model.notes):
        stdout.print(f"[yellow]note:[/yellow] {note}", soft_wrap=True)


def show_written(written: "list[Written]", *, as_json: bool) -> None:
    """Print the artifacts with their size, bits per weight and error."""
    from medlite.formats.receipt import read_gguf_receipt

    receipts = [read_gguf_receipt(one.output.path) for one in written]
    if as_json:
        print_json(
            [
                {
                    "paths": [str(p) for p in one.paths],
                    "receipt": str(one.receipt),
                    "n_resumed_bytes": one.n_resumed_bytes,
                    "recipe": receipt.recipe,
                    "n_params": receipt.n_params,
                    "bits_per_weight": receipt.bits_per_weight,
                    "files": [asdict(file) for file in receipt.files],
                    "total": receipt.total,
                    "notes": receipt.notes,
                }
                for one, receipt in zip(written, receipts, strict=True)
            ]
        )
        return
    from medlite.cli.display import stdout
    from medlite.files import format_bytes

    for one, receipt in zip(written, receipts, strict=True):
        sqnr = receipt.total.get("sqnr_db")
        loss = f", SQNR {sqnr:.1f} dB" if sqnr is not None else ""
        resumed = f", {format_bytes(one.n_resumed_bytes)} from the interrupted run" if one.n_resumed_bytes else ""
        n_bytes = sum(file.n_bytes for file in receipt.files)
        stdout.print(
            f"[bold]{one.paths[0]}[/bold]  {format_bytes(n_bytes)}, "
            f"{receipt.bits_per_weight:.2f} bits per weight{loss}{resumed}",
            soft_wrap=True,
        )
    print_notes([one.output for one in written])
    check = receipts[0].tokenizer_check
    for what in (*check.mismatches, *check.not_checked) if check else ():
        stdout.print(f"[yellow]tokenizer:[/yellow] {what}", soft_wrap=True)
    stdout.print(f"next: medlite chat {written[0].paths[0]}", style="dim", soft_wrap=True)


def list_recipes(ctx: click.Context) -> None:
    """Print the recipe table and exit."""
    from rich.table import Table

    from medlite.cli.display import stdout
    from medlite.formats.gguf import GGML_TYPES
    from quantize.gguf.recipes import RECIPES
    from quantize.onnx.recipes import ONNX_RECIPES

    table = Table("recipe", "default type", "bits", "exceptions", "imatrix", box=None, pad_edge=False)
    for recipe in RECIPES.values():
        kind = GGML_TYPES[recipe.default]
        rules = ", ".join(dict.fromkeys(f"{rule.category} {rule.type}" for rule in recipe.rules))
        table.add_row(
            recipe.name,
            kind.name,
            f"{8 * kind.block_bytes / kind.block_weights:.2f}",
            rules,
            "needed" if recipe.needs_imatrix else "",
        )
    stdout.print(table)
    onnx = Table("recipe", "bits", "exceptions", "with --format onnx", box=None, pad_edge=False)
    for row in ONNX_RECIPES.values():
        onnx.add_row(
            row.name,
            str(row.bits),
            ", ".join([f"{category} int8" for category in row.int8] + ["first layer int8"] * row.n_int8_layers),
            row.summary,
        )
    stdout.print(onnx)
    ctx.exit()
