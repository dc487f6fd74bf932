"""What a user calls a model -> the file it means."""

from pathlib import Path

from medlite.errors import ArtifactError
from medlite.files import cache_folder
from medlite.onnx_format import is_onnx_folder

DEMO_NAME = "demo"


def demo_artifact(recipe: str = "Q4_K_M") -> Path:
    """Where `medlite demo` keeps the demonstration model at a recipe."""
    return cache_folder() / DEMO_NAME / f"demo-{recipe}.gguf"


def resolve_model(text: str) -> Path:
    """The artifact that `text` names: a .gguf file, an ONNX folder, or `demo`. Raises ArtifactError with what to do."""
    path = Path(text).expanduser()
    if path.is_file() or is_onnx_folder(path):
        return path
    if text == DEMO_NAME:
        path = demo_artifact()
        if not path.is_file():
            raise ArtifactError("the demonstration model is not made yet", hint="medlite demo")
        return path
    if path.is_dir():
        raise ArtifactError(f"{path}: is a folder, a GGUF file was needed",
                            hint=f"medlite quantize {path} --recipe Q4_K_M makes one from a checkpoint folder")
    if path.suffix == ".gguf":
        raise ArtifactError(f"{path}: no such file")
    raise ArtifactError(f"{text}: neither a file nor the name of a model",
                        hint="give the path of a .gguf file, or: medlite demo, then medlite chat demo")
