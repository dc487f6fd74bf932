"""`medlite pull`: a checkpoint or a ready GGUF file from the hub into its local cache, whole or not at all."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medlite.cli import print_json
from medlite.cli.params import json_option, recipe_option
from medlite.errors import CheckpointError

if TYPE_CHECKING:
    from medlite.models.hub import RemoteFile, RemoteRepository


@click.command(
    "pull",
    epilog="""\b
Examples:
  medlite pull llama3-med42-8b
  medlite pull meta-llama/Llama-3.2-1B-Instruct@main
  medlite pull qvac/MedPsy-4B-GGUF --recipe Q4_K_M --recipe Q8_0
  medlite pull llama3.1-70b-instruct --dry-run
  medlite pull some/repository --config

Run again after an interruption: files that are whole are kept.""",
)
@click.argument("model", metavar="NAME|REPO[@REVISION]")
@recipe_option("Of a repository of GGUF files: which one; may be repeated.")
@click.option("--config", "config_only", is_flag=True, help="Only config.json, which is all that medlite fit needs.")
@click.option("--dry-run", is_flag=True, help="Say what would be downloaded, and whether the disk has room.")
@click.option("--offline", is_flag=True, help="Open no socket: only say what the local cache holds.")
@json_option()
def command(
    model: str, recipes: tuple[str, ...], config_only: bool, dry_run: bool, offline: bool, as_json: bool
) -> None:
    """Download a model into the hub's local cache.

    NAME: of `medlite models`. The disk is checked before the first byte, the revision is pinned to its commit, and what
    arrives is compared with the hub's checksums. Gated models need an account that accepted their licence.
    """
    from medlite.cli.display import progress_bar
    from medlite.models.catalog import find_model
    from medlite.models.hub import check_space, download_checkpoint, hand_fetched, is_offline, parse_repository, pull

    known = find_model(model)
    if known is not None and not known.repository:
        show([hand_fetched(known)], known.name, "", 0, as_json=as_json)
        return
    repository, revision = parse_repository(model)
    if offline or is_offline():
        show([download_checkpoint(repository, revision, offline=True)], repository, revision or "", 0, as_json=as_json)
        return
    remote = config_of(repository, revision) if config_only else wanted_files(repository, revision, recipes)
    n_bytes = check_space(remote)
    if dry_run:
        show_plan(remote, n_bytes, as_json=as_json)
        return
    with progress_bar(f"pull {repository}", n_bytes, unit="bytes", quiet=as_json or not n_bytes) as on_bytes:
        folder = pull(remote, on_bytes)
    show(wanted_paths(folder, remote), repository, remote.commit, n_bytes, as_json=as_json)


def config_of(repository: str, revision: str | None) -> "RemoteRepository":
    """The checkpoint's config.json alone. Raises CheckpointError where there is none."""
    from medlite.models.hub import list_repository

    remote = list_repository(repository, revision, ["config.json"])
    if not remote.files:
        raise CheckpointError(f"{repository}: has no config.json")
    return remote


def wanted_files(repository: str, revision: str | None, recipes: Sequence[str]) -> "RemoteRepository":
    """The checkpoint's files, or the GGUF files at `recipes`. Raises CheckpointError where there is neither."""
    from medlite.models.hub import CHECKPOINT_FILES, checkpoint_of, list_repository

    remote = list_repository(repository, revision, [*CHECKPOINT_FILES, "*.gguf", "*.bin", "*.bin.index.json", "*.pth"])
    by_kind: dict[str, list[RemoteFile]] = {}
    for file in remote.files:
        by_kind.setdefault(Path(file.name).suffix, []).append(file)
    ready = by_kind.get(".gguf", [])
    if recipes or (ready and ".safetensors" not in by_kind):
        chosen = [file for recipe in recipes or ("",) for file in files_at(repository, ready, recipe)]
        return replace(remote, files=tuple(dict.fromkeys(chosen)))
    remote = checkpoint_of(remote)
    if not any(file.name.endswith((".safetensors", ".bin")) for file in remote.files):
        pickled = ".bin" in by_kind or ".pth" in by_kind
        raise CheckpointError(
            f"{repository}: holds {'pickled weights of an unknown layout only' if pickled else 'no weights'}",
            hint="convert them to safetensors in a place you trust, then: medlite quantize FOLDER" if pickled else None,
        )
    return remote


def files_at(repository: str, ready: "Sequence[RemoteFile]", recipe: str) -> "list[RemoteFile]":
    """The GGUF file of `ready` whose name holds `recipe`, or its parts. Raises CheckpointError for none or several."""
    from medlite.files import format_bytes

    chosen = [file for file in ready if recipe and recipe.lower() in file.name.lower()]
    parts = {file.name.rsplit("-of-", 1)[-1] for file in chosen}
    if not chosen or (len(chosen) > 1 and not all("-of-" in file.name for file in chosen)) or len(parts) > 1:
        listed = ", ".join(f"{file.name} ({format_bytes(file.n_bytes)})" for file in chosen or ready)
        raise CheckpointError(
            f"{repository}: {'several files fit' if chosen else 'choose one of its GGUF files'}",
            hint=f"--recipe, for one of: {listed}" if ready else "it holds no GGUF file",
        )
    return chosen


def wanted_paths(folder: Path, remote: "RemoteRepository") -> list[Path]:
    """What a user opens of it: config.json, each GGUF file (its first part), or the checkpoint's folder."""
    from medlite.models.registry import LATER_PART

    names = [file.name for file in remote.files]
    if names == ["config.json"]:
        return [folder / names[0]]
    ready = [name for name in names if name.endswith(".gguf") and not LATER_PART.search(Path(name).stem)]
    return [folder / name for name in ready] or [folder]


def show_plan(remote: "RemoteRepository", n_bytes: int, *, as_json: bool) -> None:
    """Print what a download would bring."""
    if as_json:
        missing = {file.name for file in remote.missing}
        print_json(
            {
                "repository": remote.name,
                "revision": remote.commit,
                "n_bytes": n_bytes,
                "files": [
                    {
                        "name": file.name,
                        "n_bytes": file.n_bytes,
                        "sha256": file.sha256,
                        "cached": file.name not in missing,
                    }
                    for file in remote.files
                ],
            }
        )
        return
    from medlite.cli.display import stdout
    from medlite.files import format_bytes

    for file in remote.files:
        stdout.print(f"{format_bytes(file.n_bytes):>9}  {file.name}", soft_wrap=True)
    stdout.print(
        f"{format_bytes(n_bytes)} to download of {remote.name}@{remote.commit[:12]}; the disk has room", soft_wrap=True
    )


def show(paths: Sequence[Path], name: str, commit: str, n_bytes: int, *, as_json: bool) -> None:
    """Print where the model is and what to do next."""
    path = paths[0]
    if as_json:
        print_json(
            {
                "name": name,
                "path": str(path),
                "paths": [str(one) for one in paths],
                "revision": commit,
                "n_downloaded_bytes": n_bytes,
            }
        )
        return
    from medlite.cli.display import stdout
    from medlite.files import format_bytes

    at = f"@{commit[:12]}" if commit else ""
    got = f"{format_bytes(n_bytes)} downloaded" if n_bytes else "was here already"
    stdout.print(f"[bold]{name}[/bold]{at}: {got}", soft_wrap=True)
    for one in paths:
        stdout.print(str(one), soft_wrap=True)
    if path.is_dir() and next(path.glob("*.bin"), None) is not None:
        line = "pickled weights: quantize reads them with torch, weights only (pip install 'medlite[torch]')"
        stdout.print(line, style="dim", soft_wrap=True, markup=False)
    following = {".gguf": f"medlite chat {path}", ".json": f"medlite fit {name}"}.get(
        path.suffix, f"medlite quantize {path} --recipe Q4_K_M"
    )
    stdout.print(f"next: {following}", style="dim", soft_wrap=True)
