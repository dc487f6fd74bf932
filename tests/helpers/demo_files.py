"""The embedded demonstration model as GGUF files, made for one test module."""

from pathlib import Path

from medlite.demo import checkpoint_path
from quantize.gguf.plan import make_plan
from quantize.gguf.recipes import RECIPES
from quantize.gguf.write import gguf_output
from quantize.source.checkpoint import open_checkpoint
from quantize.stream.writer import WriteSettings, write


def write_demo(folder: Path, *recipes: str) -> list[Path]:
    """The files in `folder`, one for each recipe. Two seconds for two of them."""
    checkpoint = open_checkpoint(checkpoint_path())
    paths = [folder / f"demo-{recipe}.gguf" for recipe in recipes]
    write(
        [
            gguf_output(make_plan(checkpoint, RECIPES[recipe]), path)
            for recipe, path in zip(recipes, paths, strict=True)
        ],
        WriteSettings(),
    )
    return paths
