"""`medlite models`: the catalogue, and what of it is on this machine."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import msgspec

from medlite.cli import print_json
from medlite.cli.params import json_option

if TYPE_CHECKING:
    from medlite.models.catalog import CatalogModel
    from medlite.models.registry import LocalArtifact

SHOWN_RECIPES = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
TABLE_RECIPES = ("Q8_0", "Q4_K_M")
ACCESS_MARKS = {"open": "", "gated": "gated", "credentialed": "by hand"}


@click.command(
    "models",
    epilog="""\b
Examples:
  medlite models
  medlite models med42
  medlite models llama3-med42-8b
  medlite models --json""",
)
@click.argument("name", required=False)
@json_option("Print the catalogue as JSON.")
def command(name: str | None, as_json: bool) -> None:
    """List the models that medlite knows, with the size of their files at some recipes.

    NAME: show those whose name holds it; one alone is shown in full.
    """
    from medlite.errors import ArtifactError
    from medlite.models.catalog import read_catalog
    from medlite.models.hub import cached_bytes
    from medlite.models.registry import artifacts_of

    models = [model for model in read_catalog().values() if name is None or name.lower() in model.name]
    models = [model for model in models if model.name == name] or models
    if not models:
        raise ArtifactError(f"no model's name holds {name!r}", hint="medlite models lists them all")
    here = Here(cached_bytes(), {model.name: artifacts_of(model) for model in models})
    if as_json:
        print_json([as_data(model, here) for model in models])
    elif len(models) == 1:
        show_one(models[0], here)
    else:
        show_table(models, here)


def file_sizes(model: "CatalogModel", recipes: tuple[str, ...] = SHOWN_RECIPES) -> dict[str, int]:
    """Recipe -> bytes of the GGUF file."""
    from medlite.models.catalog import hf_config
    from quantize.gguf.outline import Outline
    from quantize.gguf.recipes import RECIPES

    outline = Outline(hf_config(model))
    return {name: outline.header(RECIPES[name]).n_file_bytes for name in recipes}


@dataclass(frozen=True)
class Here:
    """What is on this machine. cached: hub repository -> bytes in its cache. artifacts: by model, ready to run."""

    cached: "dict[str, int]"
    artifacts: "dict[str, list[LocalArtifact]]"

    def checkpoint_bytes(self, model: "CatalogModel") -> int:
        """Bytes of the model's checkpoint, or of what was pulled of it; 0 if it is not here."""
        from medlite.models.hub import hand_folder

        if model.repository:
            return self.cached.get(model.repository, 0)
        folder = hand_folder(model)
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0

    def recipes(self, model: "CatalogModel") -> list[str]:
        """The recipes of its artifacts."""
        return [one.recipe or one.path.name for one in self.artifacts[model.name]]


def as_data(model: "CatalogModel", here: Here) -> dict[str, Any]:
    """A row for --json; sizes in bytes."""
    return {
        **msgspec.to_builtins(model),
        "page": model.where,
        "file_bytes": file_sizes(model),
        "local_bytes": here.checkpoint_bytes(model),
        "artifacts": [{"path": str(one.path), "recipe": one.recipe} for one in here.artifacts[model.name]],
    }


def show_table(models: "list[CatalogModel]", here: Here) -> None:
    """One row a model."""
    from medlite.cli.display import result_table, stdout
    from medlite.files import format_bytes

    table = result_table("model", "params", "context", *TABLE_RECIPES, "access", "here", words=("access",))
    for model in models:
        sizes, n_bytes = file_sizes(model, TABLE_RECIPES), here.checkpoint_bytes(model)
        ready = [*([format_bytes(n_bytes)] if n_bytes else []), *here.recipes(model)]
        table.add_row(
            model.name,
            f"{model.n_params / 1e9:.1f} B",
            f"{model.context // 1024}k",
            *(format_bytes(sizes[recipe]) for recipe in TABLE_RECIPES),
            ACCESS_MARKS[model.access],
            " ".join(ready),
        )
    stdout.print(table)
    for line in (
        "sizes of GGUF files by recipe · gated: accept a licence first · by hand: no program may download it",
        "here: bytes of the checkpoint, recipes that are ready to run",
        "more of one: medlite models NAME · will it fit: medlite fit NAME · get it: medlite pull NAME",
    ):
        stdout.print(line, style="dim", soft_wrap=True)


def show_one(model: "CatalogModel", here: Here) -> None:
    """Everything that the catalogue says of one model."""
    from rich.markup import escape
    from rich.table import Table

    from medlite.cli.display import stdout
    from medlite.files import format_bytes

    n_bytes, shape = here.checkpoint_bytes(model), model.shape
    rows = {
        "model": model.name,
        "where": model.where,
        "revision": model.revision or "not known: pull takes the newest",
        "base": model.base,
        "parameters": f"{model.n_params:,}",
        "shape": f"{shape.layers} layers of {shape.hidden}, {shape.heads} heads ({shape.kv_heads} for keys, values), "
        f"vocabulary {model.vocabulary:,}",
        "context": f"{model.context:,} tokens",
        "licence": model.licence,
        "access": model.access,
        "files": ", ".join(f"{recipe} {format_bytes(n)}" for recipe, n in file_sizes(model).items()),
        "prompt": f"{model.prompt}: {model.prompt_format.user!r}",
        "published": ", ".join(f"{task} {value:g} %" for task, value in model.accuracy.items()),
        "source": model.accuracy_source,
        "note": model.note,
        "checkpoint": f"{format_bytes(n_bytes)} on this machine" if n_bytes else "not on this machine",
        "ready": "\n".join(str(one.path) for one in here.artifacts[model.name]),
    }
    if not model.repository:
        del rows["revision"]
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        if value:
            table.add_row(key, escape(value))
    stdout.print(table)
