"""`medlite quantize --format onnx`: from a checkpoint to ONNX folders, with a plan first and a receipt last."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medlite.cli import print_json
from medlite.errors import RecipeError

if TYPE_CHECKING:
    from quantize.onnx.plan import FolderPlan
    from quantize.onnx.recipes import OnnxRecipe
    from quantize.onnx.write import OnnxWritten
    from quantize.stream.writer import WriteSettings


@dataclass(frozen=True)
class OnnxOptions:
    """What the command line said. recipes: empty for the default one. block: 0 for the default one.

    exporter: medlite or optimum. exporter_python: the interpreter that has optimum, None for this one.
    """

    recipes: tuple[str, ...]
    block: int
    device: str
    out: Path | None
    dry_run: bool
    offline: bool
    as_json: bool
    exporter: str = "medlite"
    exporter_python: Path | None = None


def quantize_onnx(source: str, options: OnnxOptions, settings: "WriteSettings") -> None:
    """Write an ONNX folder for each recipe, or show their plans."""
    from medlite.models.hub import find_checkpoint
    from medlite.models.registry import remember_folders
    from quantize.onnx.recipes import DEFAULT_RECIPE, find_onnx_recipe

    folder = find_checkpoint(source, offline=options.offline)
    recipes = list(dict.fromkeys(find_onnx_recipe(name) for name in options.recipes or (DEFAULT_RECIPE,)))
    if options.block and not any(recipe.is_quantized for recipe in recipes):
        raise RecipeError(f"--block has no effect on {recipes[0].name}", hint="--recipe q4m, q4 or q8")
    paths = [output_folder(folder, recipe.name, options.out, several=len(recipes) > 1) for recipe in recipes]
    with plans_of(folder, recipes, paths[0].parent, options) as plans:
        if options.dry_run:
            show_plans(list(zip(plans, paths, strict=True)), as_json=options.as_json)
            return
        written = [
            write_with_progress(plan, path, settings, quiet=options.as_json)
            for plan, path in zip(plans, paths, strict=True)
        ]
    remember_folders(paths)
    show_written(written, as_json=options.as_json)


@contextmanager
def plans_of(
    folder: Path, recipes: "list[OnnxRecipe]", beside: Path, options: OnnxOptions
) -> "Iterator[list[FolderPlan]]":
    """A plan for each recipe. With --exporter optimum its float32 export lies under `beside` meanwhile."""
    from quantize.match import match_checkpoint
    from quantize.onnx.plan import plan_onnx
    from quantize.onnx.recipes import DEFAULT_BLOCK
    from quantize.source.checkpoint import open_checkpoint

    block = options.block or DEFAULT_BLOCK
    if options.exporter == "medlite":
        model = match_checkpoint(open_checkpoint(folder))
        yield [plan_onnx(model, recipe, block=block, device=options.device) for recipe in recipes]
        return
    from quantize.onnx.exported import open_source, plan_export
    from quantize.onnx.optimum import exported

    if options.device != "cpu":
        raise RecipeError(
            f"--exporter optimum --device {options.device}: its graphs are made for the CPU",
            hint="leave --device out, or --exporter medlite where it knows the architecture",
        )
    source = open_source(folder)
    if not options.as_json:
        click.echo(
            f"optimum exports {folder.name} in float32 first, which takes minutes and about five times the "
            "checkpoint's size in memory",
            err=True,
        )
    with exported(folder, beside, options.exporter_python) as export:
        yield [plan_export(source, export, recipe, block) for recipe in recipes]


def output_folder(folder: Path, recipe: str, out: Path | None, *, several: bool) -> Path:
    """Where an artifact goes: <checkpoint>-<recipe>-onnx in a folder that exists, or the new folder --out names."""
    from medlite.formats.hub_cache import model_name
    from medlite.formats.onnx_folder import is_onnx_folder

    name = model_name(folder)
    if out is None:
        return Path(f"{name}-{recipe}-onnx")
    if several or (out.is_dir() and not is_onnx_folder(out)):
        out.mkdir(parents=True, exist_ok=True)
        return out / f"{name}-{recipe}-onnx"
    return out


def write_with_progress(plan: "FolderPlan", path: Path, settings: "WriteSettings", *, quiet: bool) -> "OnnxWritten":
    """Write one folder under two progress bars: the conversion, then the read-back."""
    from dataclasses import replace

    from medlite.cli.display import progress_bar
    from quantize.onnx.write import write_onnx

    total = sum(tensor.n_bytes for tensor in plan.tensors)
    with (
        progress_bar(f"quantize {plan.recipe.name}", total, unit="bytes", quiet=quiet) as on_bytes,
        progress_bar("verify", total, unit="bytes", quiet=quiet) as on_verify,
    ):
        try:
            return write_onnx(plan, path, replace(settings, on_bytes=on_bytes, on_verify=on_verify))
        except KeyboardInterrupt:
            click.echo("stopped; run the same command again to continue, --restart to begin anew", err=True)
            raise


def plan_json(plan: "FolderPlan", path: Path) -> dict[str, Any]:
    """A plan as data: every tensor's storage, size and reason."""
    return {
        "path": str(path),
        "recipe": plan.recipe.name,
        "block": plan.block,
        "device": plan.device,
        "n_bytes": plan.n_bytes,
        "n_params": plan.n_params,
        "bits_per_weight": plan.bits_per_weight,
        "tensors": [
            {
                "name": tensor.name,
                "storage": tensor.storage.name,
                "shape": list(tensor.shape),
                "n_bytes": tensor.n_bytes,
                "reason": tensor.storage.reason,
            }
            for tensor in plan.tensors
        ],
        "ignored": dict(plan.ignored),
    }


def show_plans(outputs: "list[tuple[FolderPlan, Path]]", *, as_json: bool) -> None:
    """Print what would be written: every tensor, the exact size of graph and weights."""
    if as_json:
        print_json({"plans": [plan_json(plan, path) for plan, path in outputs]})
        return
    from rich.table import Table

    from medlite.cli.display import stdout
    from medlite.files import format_bytes

    for plan, path in outputs:
        table = Table("tensor", "storage", "shape", "bytes", "why", box=None, pad_edge=False, header_style="bold")
        table.columns[3].justify = "right"
        for tensor in plan.tensors:
            table.add_row(
                tensor.name,
                tensor.storage.name,
                " x ".join(map(str, tensor.shape)),
                f"{tensor.n_bytes:,}",
                tensor.storage.reason,
            )
        stdout.print(table)
        for name, reason in plan.ignored.items():
            stdout.print(f"ignored: {name}: {reason}", style="dim")
        stdout.print(
            f"[bold]{path}[/bold]: {plan.n_bytes:,} bytes ({format_bytes(plan.n_bytes)}) and the tokenizer, "
            f"{plan.bits_per_weight:.2f} bits per weight",
            soft_wrap=True,
        )
    stdout.print("nothing was written")


def show_written(written: "list[OnnxWritten]", *, as_json: bool) -> None:
    """Print the folders with their size, bits per weight and error."""
    from medlite.formats.receipt import read_onnx_receipt

    receipts = [read_onnx_receipt(one.path) for one in written]
    if as_json:
        print_json(
            [
                {
                    "path": str(one.path),
                    "n_resumed_bytes": one.n_resumed_bytes,
                    "recipe": receipt.recipe,
                    "block": receipt.block,
                    "device": receipt.device,
                    "n_params": receipt.n_params,
                    "bits_per_weight": receipt.bits_per_weight,
                    "files": [asdict(file) for file in receipt.files],
                    "total": receipt.total,
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
        stdout.print(
            f"[bold]{one.path}[/bold]  {format_bytes(one.plan.n_bytes)}, "
            f"{receipt.bits_per_weight:.2f} bits per weight{loss}{resumed}",
            soft_wrap=True,
        )
    stdout.print(f"next: medlite chat {written[0].path}", style="dim", soft_wrap=True)
