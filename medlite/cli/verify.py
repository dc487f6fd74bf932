"""`medlite verify`: is this file what it was, and is it the model it claims to be?"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medlite.cli import print_json
from medlite.cli.params import PATH, json_option

if TYPE_CHECKING:
    from quantize.stream.compare import Verification


@click.command(
    "verify",
    epilog="""\b
Examples:
  medlite verify model-Q4_K_M.gguf
  medlite verify model-Q4_K_M.gguf --against ./Llama-3.2-1B-Instruct
  medlite verify downloaded.gguf --json
  medlite verify model-q4m-onnx

Exit code 0: nothing wrong. 1: something is wrong, and named.""",
)
@click.argument("file", type=PATH)
@click.option("--against", metavar="SOURCE", help="Also encode the checkpoint again and compare every tensor.")
@click.option("--imatrix", type=PATH, help="The importance matrix it was made with.")
@json_option("Print the findings as JSON.")
def command(file: Path, against: str | None, imatrix: Path | None, as_json: bool) -> None:
    """Check a GGUF file or an ONNX folder, offline.

    Structure and impossible numbers always; every byte against the receipt beside the file where there is one;
    every tensor against the checkpoint with --against. Files made by other tools are accepted.
    """
    from medlite.cli.display import progress_bar
    from medlite.errors import ArtifactError
    from medlite.formats.onnx_folder import is_onnx_folder
    from medlite.models.hub import find_checkpoint
    from quantize.check import verify
    from quantize.gguf.imatrix import read_imatrix
    from quantize.source.checkpoint import open_checkpoint

    if not file.exists():
        raise ArtifactError(f"{file}: no such file")
    if file.is_dir() and not is_onnx_folder(file):
        raise ArtifactError(f"{file}: a folder without an ONNX model", hint="name a GGUF file in it")
    checkpoint = open_checkpoint(find_checkpoint(against)) if against else None
    importance = read_imatrix(imatrix) if imatrix else None
    with progress_bar("verify", bytes_to_check(file), unit="bytes", quiet=as_json) as on_bytes:
        found = verify(file, against=checkpoint, importance=importance, on_bytes=on_bytes)
    show(found, as_json=as_json)
    if not found.ok:
        sys.exit(1)


def bytes_to_check(file: Path) -> int:
    """Bytes of tensors that will be read: once, and once more with a receipt."""
    from medlite.formats.onnx_folder import DATA_NAME, is_onnx_folder
    from medlite.formats.receipt import receipt_path

    data = file / DATA_NAME if is_onnx_folder(file) else file
    n_bytes = data.stat().st_size if data.is_file() else 0
    return n_bytes * (2 if receipt_path(file).exists() else 1)


def show(found: "Verification", *, as_json: bool) -> None:
    """Print what was checked and what is wrong."""
    if as_json:
        from dataclasses import asdict

        print_json(
            {
                "path": str(found.path),
                "ok": found.ok,
                "checked": found.checked,
                "problems": found.problems,
                "comparisons": [asdict(one) for one in found.comparisons],
            }
        )
        return
    from medlite.cli.display import stdout
    from medlite.formats.receipt import receipt_path

    if found.comparisons:
        identical = sum(one.identical for one in found.comparisons)
        stdout.print(
            f"{identical} of {len(found.comparisons)} tensors are byte for byte what medlite makes of the source"
        )
        for one in sorted((c for c in found.comparisons if c.sqnr_db is not None), key=lambda c: c.sqnr_db or 0)[:3]:
            stdout.print(f"  furthest from the source: {one.name} {one.type} {one.sqnr_db:.1f} dB", style="dim")
    for problem in found.problems:
        stdout.print(f"[red]wrong:[/red] {problem}", soft_wrap=True)
    if found.ok:
        stdout.print(f"[green]sound:[/green] {found.path}", soft_wrap=True)
    stdout.print(f"checked: {', '.join(found.checked)}", style="dim", soft_wrap=True)
    if not receipt_path(found.path).exists():
        stdout.print("no receipt beside the file, so a changed weight that is still a number goes unseen", style="dim")
