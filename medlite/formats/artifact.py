"""One quantized model on disk: what it is, how large, how many bits a weight costs."""

from dataclasses import dataclass
from pathlib import Path

from medlite.errors import ArtifactError
from medlite.formats.gguf import FILE_TYPES_BY_ID, GGML_TYPES, Header, read_header
from medlite.formats.onnx_folder import folder_bytes, is_onnx_folder, read_onnx_facts

RECIPE_KEY = "medlite.recipe"
FILE_TYPE_KEY = "general.file_type"


@dataclass(frozen=True)
class Artifact:
    """A model file or folder with its facts. n_bytes: of the whole. bits_per_weight: tensor data bits / n_params."""

    path: Path
    format: str
    name: str
    architecture: str
    recipe: str
    n_params: int
    n_bytes: int
    bits_per_weight: float
    n_context_trained: int
    n_vocab: int
    chat_template: str | None


def artifact_format(path: Path) -> str:
    """ "onnx" for a folder with an ONNX graph, else "gguf"."""
    return "onnx" if is_onnx_folder(path) else "gguf"


def open_artifact(path: Path) -> Artifact:
    """The artifact at `path`, from its header alone. Raises ArtifactError if it is neither GGUF nor an ONNX folder."""
    if is_onnx_folder(path):
        return describe_onnx(path)
    if path.is_dir():
        raise ArtifactError(
            f"{path}: is a folder, a GGUF file was needed",
            hint=f"medlite quantize {path} --recipe Q4_K_M makes one from a checkpoint folder",
        )
    return describe(path, read_header(path))


def describe(path: Path, header: Header) -> Artifact:
    """The artifact that `header` describes."""
    architecture = header.get("general.architecture")
    if not isinstance(architecture, str):
        raise ArtifactError(f"{path}: no general.architecture in the metadata")
    integer_types = {GGML_TYPES[name].id for name in ("I8", "I16", "I32", "I64")}
    weights = [t for t in header.tensors if t.type.id not in integer_types and not t.name.startswith("rope_")]
    n_params = sum(t.n_weights for t in weights)
    if n_params == 0:
        raise ArtifactError(f"{path}: holds no weights", hint="a vocabulary-only file cannot run")
    tokens, template = header.get("tokenizer.ggml.tokens"), header.get("tokenizer.chat_template")
    return Artifact(
        path=path,
        format="gguf",
        name=str(header.get("general.name", path.stem)),
        architecture=architecture,
        recipe=str(header.get(RECIPE_KEY) or FILE_TYPES_BY_ID.get(_count(path, header, FILE_TYPE_KEY, -1), "unknown")),
        n_params=n_params,
        n_bytes=header.n_file_bytes,
        bits_per_weight=8 * sum(t.n_bytes for t in weights) / n_params,
        n_context_trained=_count(path, header, f"{architecture}.context_length"),
        n_vocab=_count(path, header, f"{architecture}.vocab_size") or (len(tokens) if isinstance(tokens, list) else 0),
        chat_template=template if isinstance(template, str) else None,
    )


def _count(path: Path, header: Header, key: str, missing: int = 0) -> int:
    value = header.get(key, missing)
    if not isinstance(value, int):
        raise ArtifactError(f"{path}: {key} is a {type(value).__name__}, expected a whole number")
    return value


def describe_onnx(folder: Path) -> Artifact:
    """The artifact in the ONNX folder, from its medlite.json."""
    facts = read_onnx_facts(folder)
    return Artifact(
        path=folder,
        format="onnx",
        name=facts.name,
        architecture=facts.architecture,
        recipe=facts.recipe,
        n_params=facts.n_params,
        n_bytes=folder_bytes(folder, facts),
        bits_per_weight=facts.bits_per_weight,
        n_context_trained=facts.n_context_trained,
        n_vocab=facts.n_vocab,
        chat_template=facts.chat_template,
    )
