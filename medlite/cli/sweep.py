"""The artifacts of a sweep: one checkpoint at several recipes, quantized in one pass where they are missing."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medlite.errors import RecipeError, RecordError

if TYPE_CHECKING:
    from bench.record import RunSettings


def make_artifacts(source: str, recipes: Sequence[str], out: Path | None, *, quiet: bool) -> list[Path]:
    """Paths of the GGUF files, in the order of `recipes`. A current file of an earlier sweep is kept."""
    from medlite.cli.quantize import write_with_progress
    from medlite.demo import checkpoint_path
    from medlite.hub import find_checkpoint
    from medlite.registry import DEMO_NAME
    from quantize.checkpoint import open_checkpoint
    from quantize.plan import make_plan
    from quantize.receipt import is_current
    from quantize.recipes import find_recipe
    from quantize.to_gguf import Output, WriteSettings

    if len(set(recipes)) < 2:
        raise RecipeError("a sweep needs two recipes at least", hint="--recipes BF16,Q4_K_M")
    folder = checkpoint_path() if source == DEMO_NAME else find_checkpoint(source)
    name = DEMO_NAME if source == DEMO_NAME else folder.name
    checkpoint = open_checkpoint(folder)
    target = out or Path(f"{name}-sweep")
    target.mkdir(parents=True, exist_ok=True)
    outputs = [Output(make_plan(checkpoint, recipe), target / f"{name}-{recipe.name}.gguf")
               for recipe in dict.fromkeys(find_recipe(name) for name in recipes)]
    missing = [output for output in outputs if not is_current(output.plan, output.path)]
    if missing:
        write_with_progress(missing, WriteSettings(force=True), quiet=quiet)
    return [output.path for output in outputs]


def holds_run(file: Path, artifact: Path, settings: "RunSettings") -> bool:
    """Whether `file` is a finished record of this artifact under these settings."""
    from bench.record import read_record
    from medlite.files import file_sha256

    if not file.exists():
        return False
    try:
        record = read_record(file)
    except RecordError:
        return False
    return record.complete and record.settings == settings and record.artifact.sha256 == file_sha256(artifact)
