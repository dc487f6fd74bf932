"""What a user calls a model -> the file it means: a path, `demo`, a name of the catalogue, or a hub repository.

A name opens what is on this machine and nothing else; what is missing is said with the command that brings it. Looked
at are the current folder, the folders that medlite wrote artifacts to, and the hub's cache.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medlite.errors import ArtifactError, OutputError
from medlite.files import cache_folder
from medlite.formats.gguf import FILE_TYPES
from medlite.formats.hub_cache import snapshots_of
from medlite.formats.onnx_folder import is_onnx_folder, read_onnx_facts
from medlite.formats.receipt import source_name
from medlite.memo import Memo
from medlite.models.catalog import CatalogModel, find_model, near_names, recognise
from medlite.models.hub import REPOSITORY, hand_folder

DEMO_NAME = "demo"
COMMON_RECIPE = "Q4_K_M"
FOLDERS = Memo("folders", str, most=64)  # that artifacts were written to -> the latest artifact in it
LATER_PART = re.compile(r"-(?!00001-)\d{5}-of-\d{5}$")
FIRST_PART = re.compile(r"-00001-of-\d{5}$")
FILE_NAME = re.compile(
    rf"(?P<name>.+?)[-._](?P<recipe>{'|'.join(sorted(FILE_TYPES, key=len, reverse=True))})", re.IGNORECASE
)


@dataclass(frozen=True)
class LocalArtifact:
    """An artifact on this machine. name: of its model, as the file or its receipt has it; recipe: empty if unknown."""

    path: Path
    name: str
    recipe: str


def demo_artifact(recipe: str = COMMON_RECIPE) -> Path:
    """Where `medlite demo` keeps the demonstration model at a recipe."""
    return cache_folder() / DEMO_NAME / f"demo-{recipe}.gguf"


def resolve_model(text: str) -> Path:
    """The artifact that `text` names: a .gguf file, an ONNX folder, `demo`, a catalogue name or a repository.

    NAME:RECIPE chooses among several. Raises ArtifactError saying what to do, with the candidates where several fit.
    """
    path = Path(text).expanduser()
    if path.is_file() or is_onnx_folder(path):
        return path
    name, _, recipe = text.partition(":")
    if name == DEMO_NAME:
        path = demo_artifact(recipe.upper() or COMMON_RECIPE)
        if not path.is_file():
            raise ArtifactError(
                f"the demonstration model is not made {f'at {recipe}' if recipe else 'yet'}",
                hint="medlite demo makes BF16, Q8_0, Q4_K_M and Q2_K" if recipe else "medlite demo",
            )
        return path
    if path.is_dir():
        raise ArtifactError(
            f"{path}: is a folder, a GGUF file was needed",
            hint=f"medlite quantize {path} --recipe Q4_K_M makes one from a checkpoint folder",
        )
    if path.suffix == ".gguf":
        raise ArtifactError(f"{path}: no such file", hint="medlite models lists what is on this machine by name")
    if (known := find_model(name)) is not None:
        return only_one(known.name, artifacts_of(known), recipe, missing_artifact(known, recipe))
    if (match := REPOSITORY.fullmatch(name)) and not text.startswith((".", "~")):
        make = f"medlite pull {name}; if that brings a checkpoint: medlite quantize {name} --recipe {COMMON_RECIPE}"
        missing = ArtifactError(f"{name}: no GGUF file of it on this machine", hint=make)
        return only_one(name, list(in_hub_cache(match["repository"])), recipe, missing)
    near = near_names(name)
    raise ArtifactError(
        f"{text}: neither a file nor the name of a model",
        hint=f"did you mean {' or '.join(near)}?"
        if near
        else "a .gguf file, an ONNX folder, a name that medlite models lists, or demo (after medlite demo)",
    )


def only_one(name: str, found: list[LocalArtifact], recipe: str, missing: ArtifactError) -> Path:
    """The one artifact of `found` at `recipe`. Raises `missing` for none, ArtifactError listing them for several."""
    fitting = [one for one in found if not recipe or one.recipe.upper() == recipe.upper()]
    if not fitting:
        raise missing
    if len(fitting) > 1:
        alone = len({one.recipe.upper() for one in fitting}) == len(fitting)
        listed = [f"{name}:{one.recipe}" if alone and one.recipe else str(one.path) for one in fitting]
        raise ArtifactError(f"{name}: {len(fitting)} artifacts on this machine", hint=f"one of {', '.join(listed)}")
    return fitting[0].path


def missing_artifact(model: CatalogModel, recipe: str) -> ArtifactError:
    """The error for a catalogue model that is not here, or not at `recipe`: its hint is the command that makes it."""
    make = f"medlite quantize {model.name} --recipe {recipe.upper() or COMMON_RECIPE}"
    others = [one.recipe for one in artifacts_of(model) if one.recipe]
    if others:
        return ArtifactError(f"{model.name}: not at {recipe} on this machine, only at {', '.join(others)}", hint=make)
    if model.repository:
        files = [path for folder in snapshots_of(model.repository) for path in folder.iterdir()]
        is_here = any(path.suffix in (".safetensors", ".bin") for path in files)
    else:
        is_here = (hand_folder(model) / "config.json").is_file()
    if is_here:
        return ArtifactError(f"{model.name}: its checkpoint is here, no artifact yet", hint=make)
    if not model.repository:
        return ArtifactError(
            f"{model.name}: not on this machine, and credentialed: no program may download it",
            hint=f"sign the agreement at {model.where}, put the files into {hand_folder(model)}, then: {make}",
        )
    return ArtifactError(f"{model.name}: not on this machine", hint=f"medlite pull {model.name}, then: {make}")


# --- what is here ----------------------------------------------------------------------------------------------------


def artifacts_of(model: CatalogModel) -> list[LocalArtifact]:
    """The artifacts of `model` on this machine, each path once."""
    folders = dict.fromkeys((Path.cwd(), *remembered_folders()))
    found = [one for folder in folders for one in in_folder(folder) if recognise(one.name) is model]
    for repository in (model.repository, f"{model.repository}-GGUF") if model.repository else ():
        found += in_hub_cache(repository)
    return list({one.path.resolve(): one for one in found}.values())


def in_folder(folder: Path) -> Iterator[LocalArtifact]:
    """The artifacts that lie in `folder`; of a model in parts, the first part."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for path in entries:
        if path.suffix == ".gguf" and not LATER_PART.search(path.stem) and path.is_file():
            match = FILE_NAME.fullmatch(FIRST_PART.sub("", path.stem))
            name, recipe = (match["name"], match["recipe"]) if match else (path.stem, "")
            yield LocalArtifact(path, source_name(path) or name, recipe)
        elif is_onnx_folder(path):
            try:
                facts = read_onnx_facts(path)
            except ArtifactError:
                continue
            yield LocalArtifact(path, facts.name, facts.recipe)


def in_hub_cache(repository: str) -> Iterator[LocalArtifact]:
    """The GGUF files of `repository` in the hub's cache, each name from its newest snapshot."""
    newest = {one.path.name: one for folder in snapshots_of(repository) for one in in_folder(folder)}
    yield from newest.values()


# --- where medlite wrote ---------------------------------------------------------------------------------------------


def remembered_folders() -> list[Path]:
    """The folders that medlite wrote artifacts to and that are still there, the latest first."""
    return [folder for text in reversed(FOLDERS.read()) if (folder := Path(text)).is_dir()]


def remember_folders(paths: Iterable[Path]) -> None:
    """Remember where `paths` were written, so that a model's name finds them. A cache that cannot be written is no
    error: the files can still be opened by their paths.
    """
    with suppress(OutputError):
        FOLDERS.put({str(path.parent): path.name for path in reversed([path.resolve() for path in paths])})
