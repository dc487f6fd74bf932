"""The embedded demonstration model as GGUF files, made for one test module."""

from pathlib import Path

from medlite.demo import checkpoint_path
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.match import match_checkpoint
from quantize.source.checkpoint import open_checkpoint
from quantize.stream.writer import WriteSettings, write


def write_demo(folder: Path, *recipes: str) -> list[Path]:
    """The files in `folder`, one for each recipe. Two seconds for two of them."""
    model = match_checkpoint(open_checkpoint(checkpoint_path()))
    paths = [folder / f"demo-{recipe}.gguf" for recipe in recipes]
    write(
        [plan_gguf(model, RECIPES[recipe]).output(path) for recipe, path in zip(recipes, paths, strict=True)],
        WriteSettings(),
    )
    return paths
