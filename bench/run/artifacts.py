"""The facts of what is measured: an artifact, or a Hugging Face checkpoint folder for the reference engine."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bench.ask.chat_protocol import TemplateSource, template_of_header
from bench.run.record import ArtifactFacts
from medlite.engines.engine import ServedModel
from medlite.engines.llamacpp.memory import kv_bytes_per_token, read_shape
from medlite.errors import ArtifactError, EngineError, TaskError
from medlite.files import OnBytes, file_sha256
from medlite.formats.artifact import Artifact, open_artifact
from medlite.formats.gguf import Header, read_header
from medlite.formats.hub_cache import repository_or_folder
from medlite.formats.json import read_json
from medlite.formats.onnx_folder import read_onnx_facts
from medlite.formats.receipt import receipt_path, source_name
from medlite.formats.safetensors import read_safetensors_header


@dataclass(frozen=True)
class Measured:
    """What is measured. n_bytes: of all its files. artifact: None for a checkpoint folder. header: of a GGUF file."""

    path: Path
    n_bytes: int
    n_context_trained: int
    artifact: Artifact | None = None
    header: Header | None = None

    def kv_cache_bytes(self, n_context: int) -> int:
        """Bytes of keys and values for n_context tokens, of GGUF at float16; 0 if the shape is not known."""
        if self.artifact and self.artifact.format == "onnx":
            return read_onnx_facts(self.path).kv_bytes_per_token() * n_context
        if self.header is None:
            return 0
        try:
            return kv_bytes_per_token(read_shape(self.header), "f16") * n_context
        except EngineError:
            return 0


@dataclass(frozen=True)
class _Config:
    """What is read of a checkpoint's config.json."""

    max_position_embeddings: object = 0


def look_at(path: Path) -> Measured:
    """Size and context of the artifact at `path`, from its headers. Raises ArtifactError if it is none."""
    if any(path.glob("*.safetensors")):
        n_bytes = sum(file.stat().st_size for file in weight_files(path))
        trained = read_json(path / "config.json", _Config, ArtifactError).max_position_embeddings
        return Measured(path, n_bytes, trained if isinstance(trained, int) else 0)
    artifact = open_artifact(path)
    header = read_header(path) if path.is_file() else None
    return Measured(path, artifact.n_bytes, artifact.n_context_trained, artifact, header)


def template_of(measured: Measured) -> TemplateSource | None:
    """The chat template that the artifact carries, or None."""
    if measured.header:
        return template_of_header(measured.header)
    if measured.artifact and measured.artifact.format == "onnx":
        facts = read_onnx_facts(measured.path)
        return TemplateSource(facts.chat_template, facts.special_tokens) if facts.chat_template else None
    return None


def facts_of(measured: Measured, on_bytes: OnBytes) -> ArtifactFacts:
    """What the record says of the artifact, its hash included; on_bytes hears how much was read."""
    path = measured.path
    if artifact := measured.artifact:
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        kind, name, recipe = artifact.format, artifact.name, artifact.recipe
        n_params, bits_per_weight = artifact.n_params, artifact.bits_per_weight
    else:
        files = weight_files(path)
        tensors = [tensor for file in files for tensor in read_safetensors_header(file)]
        n_params = sum(math.prod(tensor.shape) for tensor in tensors)
        if not n_params:
            raise ArtifactError(f"{path}: its safetensors files hold no weights")
        kind, name, recipe = "safetensors", path.name, "+".join(sorted({tensor.dtype for tensor in tensors}))
        bits_per_weight = 8 * sum(tensor.n_bytes for tensor in tensors) / n_params
    return ArtifactFacts(
        file_name=path.name,
        sha256=files_sha256(files, on_bytes),
        format=kind,
        model_name=name,
        recipe=recipe,
        n_params=n_params,
        n_bytes=measured.n_bytes,
        bits_per_weight=bits_per_weight,
        source=source_of(path),
    )


def facts_of_server(served: ServedModel) -> ArtifactFacts:
    """What is known of the model: its weights are out of reach, so no hash, and sizes only where the server says."""
    return ArtifactFacts(
        file_name=PurePosixPath(served.name).name,
        sha256="",
        format="server",
        model_name=served.name,
        recipe=served.recipe or "unknown",
        n_params=served.n_params,
        n_bytes=served.n_bytes,
        bits_per_weight=8 * served.n_bytes / served.n_params if served.n_params else 0.0,
    )


def template_of_server(served: ServedModel) -> TemplateSource:
    """The model's chat template. Raises TaskError unless the server tells it (llama-server does)."""
    if not served.chat_template:
        raise TaskError(
            f"{served.server} does not tell the model's chat template, the chat protocol needs it",
            hint="--protocol letters",
        )
    return TemplateSource(served.chat_template, served.special_tokens)


def source_of(path: Path) -> str:
    """The checkpoint behind `path`: what the receipt of an artifact names; of a checkpoint in the hub's cache its
    repository, of another folder its name. Empty for an artifact without a receipt that can be read.
    """
    if path.is_dir() and not receipt_path(path).is_file():
        return repository_or_folder(path)
    return source_name(path)


def files_sha256(files: Sequence[Path], on_bytes: OnBytes) -> str:
    """The file's SHA-256; of several the SHA-256 of their names and digests."""
    if len(files) == 1:
        return file_sha256(files[0], on_bytes)
    lines = "".join(f"{file_sha256(file, on_bytes)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, by name. Raises ArtifactError if there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        raise ArtifactError(f"{folder}: no checkpoint: config.json and *.safetensors were needed")
    return files
