"""How `medlite quantize` shows plans, what was written, and its recipes: as tables, or as data."""

from typing import TYPE_CHECKING, Any

from rich.table import Table

from medlite.cli import print_json
from medlite.cli.display import stdout
from medlite.files import format_bytes
from medlite.formats.receipt import receipt_path

if TYPE_CHECKING:
    from quantize.stream.plan import Output, Plan
    from quantize.stream.writer import Written


def encoding_word(plan: "Plan") -> str:
    """What the format calls how a tensor is stored."""
    return "storage" if plan.is_folder else "type"


def plan_json(output: "Output") -> dict[str, Any]:
    """A plan as data: every tensor's type, size and reason."""
    plan = output.plan
    if plan.is_folder:
        own: dict[str, Any] = dict(plan.facts)
    else:
        own = {"files": list(map(str, output.paths)), "notes": list(plan.notes)}
    return {
        "path": str(output.path),
        "recipe": plan.recipe,
        "n_bytes": plan.n_bytes,
        "n_params": plan.n_params,
        "bits_per_weight": plan.bits_per_weight,
        **own,
        "tensors": [
            {
                "name": tensor.name,
                "source": tensor.source.name if tensor.source else None,
                encoding_word(plan): tensor.encoding.name,
                "shape": list(tensor.shape),
                "n_bytes": tensor.n_bytes,
                "reason": tensor.reason,
            }
            for tensor in plan.tensors
        ],
        "ignored": dict(plan.ignored),
    }


def show_plans(outputs: "list[Output]", n_threads: int, *, as_json: bool) -> None:
    """Print what would be written: every tensor, the files' exact size, of GGUF files the predicted time."""
    from quantize.stream.predict import predict_seconds

    seconds = None if outputs[0].plan.is_folder else predict_seconds(outputs, n_threads)
    if as_json:
        predicted = {} if seconds is None else {"predicted_seconds": seconds}
        print_json({**predicted, "plans": list(map(plan_json, outputs))})
        return
    for output in outputs:
        plan = output.plan
        columns = ("tensor", encoding_word(plan), "shape", "bytes", "why")
        table = Table(*columns, box=None, pad_edge=False, header_style="bold")
        table.columns[3].justify = "right"
        for tensor in plan.tensors:
            shape = " x ".join(map(str, tensor.shape))
            table.add_row(tensor.name, tensor.encoding.name, shape, f"{tensor.n_bytes:,}", tensor.reason)
        stdout.print(table)
        for name, reason in plan.ignored.items():
            stdout.print(f"ignored: {name}: {reason}", style="dim")
        size = f"{plan.n_bytes:,} bytes ({format_bytes(plan.n_bytes)})"
        size += " and the tokenizer" if plan.is_folder else ""
        stdout.print(f"[bold]{output.path}[/bold]: {size}, {plan.bits_per_weight:.2f} bits per weight", soft_wrap=True)
    print_notes(outputs)
    time = "" if seconds is None else f"about {seconds:.0f} s on this machine; "
    stdout.print(f"{time}nothing was written")


def print_notes(outputs: "list[Output]") -> None:
    """Print what a user must know of the result, once."""
    for note in dict.fromkeys(note for output in outputs for note in output.plan.notes):
        stdout.print(f"[yellow]note:[/yellow] {note}", soft_wrap=True)


def written_json(one: "Written") -> dict[str, Any]:
    """A finished artifact as data: where it is, and what its receipt sums up."""
    keys = ["recipe", "n_params", "bits_per_weight", "files", "total"]
    if one.output.plan.is_folder:
        where: dict[str, Any] = {"path": str(one.path)}
        keys += ["block", "device"]
    else:
        where = {"paths": list(map(str, one.output.paths)), "receipt": str(receipt_path(one.output.path))}
        keys.append("notes")
    return {**where, "n_resumed_bytes": one.n_resumed_bytes, **{key: one.receipt[key] for key in keys}}


def show_written(written: "list[Written]", *, as_json: bool) -> None:
    """Print the artifacts with their size, bits per weight and error."""
    if as_json:
        print_json(list(map(written_json, written)))
        return
    for one in written:
        sqnr = one.receipt["total"].get("sqnr_db")
        loss = f", SQNR {sqnr:.1f} dB" if sqnr is not None else ""
        resumed = f", {format_bytes(one.n_resumed_bytes)} from the interrupted run" if one.n_resumed_bytes else ""
        stdout.print(
            f"[bold]{one.path}[/bold]  {format_bytes(one.output.plan.n_bytes)}, "
            f"{one.output.plan.bits_per_weight:.2f} bits per weight{loss}{resumed}",
            soft_wrap=True,
        )
    print_notes([one.output for one in written])
    check = written[0].receipt.get("tokenizer_check") or {}
    for what in (*check.get("mismatches", ()), *check.get("not_checked", ())):
        stdout.print(f"[yellow]tokenizer:[/yellow] {what}", soft_wrap=True)
    stdout.print(f"next: medlite chat {written[0].path}", style="dim", soft_wrap=True)


def list_recipes() -> None:
    """Print the recipes of both formats."""
    from medlite.formats.gguf import GGML_TYPES
    from quantize.gguf.recipes import RECIPES
    from quantize.onnx.recipes import ONNX_RECIPES

    table = Table("recipe", "default type", "bits", "exceptions", "imatrix", box=None, pad_edge=False)
    for recipe in RECIPES.values():
        kind = GGML_TYPES[recipe.default]
        bits = f"{8 * kind.block_bytes / kind.block_weights:.2f}"
        rules = ", ".join(dict.fromkeys(f"{rule.category} {rule.type}" for rule in recipe.rules))
        table.add_row(recipe.name, kind.name, bits, rules, "needed" if recipe.needs_imatrix else "")
    stdout.print(table)
    onnx = Table("recipe", "bits", "exceptions", "with --format onnx", box=None, pad_edge=False)
    for row in ONNX_RECIPES.values():
        int8 = [f"{category} int8" for category in row.int8] + ["first layer int8"] * row.n_int8_layers
        onnx.add_row(row.name, str(row.bits), ", ".join(int8), row.summary)
    stdout.print(onnx)
