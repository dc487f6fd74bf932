"""The receipt of an artifact: what it was made from, with what, and what each tensor lost. JSON beside the file.

Anyone can check the artifact against it later, offline (`medlite verify`), and a hospital can sign it.
"""

import hashlib
import json
import math
import platform
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from medlite.errors import ArtifactError
from medlite.files import file_sha256
from medlite.formats.hub_cache import blob_sha256, repository_or_folder, snapshot_at
from medlite.formats.receipt import GGUF_SCHEMA, read_gguf_receipt
from medlite.version import __version__
from quantize.gguf.plan import PlannedTensor, QuantizationPlan
from quantize.source.checkpoint import Checkpoint
from quantize.source.parity import ParityReport
from quantize.stream.encode import RowErrors
from quantize.stream.slabs import Slab

READ_BYTES = 1 << 22


def is_current(plan: QuantizationPlan, path: Path) -> bool:
    """True if the artifact at `path` is what `plan` would write from this source, by its receipt and sizes."""
    try:
        receipt = read_gguf_receipt(path)
        sizes = [one.stat().st_size for one in plan.paths(path)]
    except (ArtifactError, OSError):
        return False
    shards = sorted({tensor.path for tensor in plan.checkpoint.tensors.values()})
    return (
        receipt.made_by == made_by()
        and receipt.imatrix_sha256 == _importance_sha256(plan)
        and [file.header_sha256 for file in receipt.files]
        == [hashlib.sha256(file.header).hexdigest() for file in plan.files]
        and sizes == [file.n_bytes for file in plan.files]
        and [shard.sha256 for shard in receipt.source.shards] == [file_sha256(shard) for shard in shards]
    )


@dataclass(frozen=True)
class WrittenFacts:
    """What the conversion learned. errors: by slab number, None if not measured. Hashes: hex SHA-256, in the plan's
    order of files and tensors.
    """

    slabs: Sequence[Slab]
    errors: Mapping[int, RowErrors] | None
    shard_hashes: Mapping[Path, str]
    file_hashes: Sequence[str]
    tensor_hashes: Sequence[str]
    parity: ParityReport | None = None


class SourceHasher:
    """SHA-256 of the source's shards, in one thread beside the conversion. A context manager; leaving it stops it.

    A shard in a hub cache is a link to a blob named by its SHA-256, so it is not read.
    """

    def __init__(self, checkpoint: Checkpoint, *, enabled: bool) -> None:
        shards = sorted({tensor.path for tensor in checkpoint.tensors.values()}) if enabled else []
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self._hashes = {shard: self._pool.submit(self._hash, shard) for shard in shards}

    def _hash(self, shard: Path) -> str:
        return blob_sha256(shard) or file_sha256(shard, self._check_stop)

    def _check_stop(self, n_bytes: int) -> None:
        if self._stop.is_set():
            raise CancelledError

    def result(self) -> dict[Path, str]:
        """Shard -> SHA-256; waits for the last one."""
        return {shard: digest.result() for shard, digest in self._hashes.items()}

    def __enter__(self) -> "SourceHasher":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)


def make_receipt(plan: QuantizationPlan, paths: Sequence[Path], facts: WrittenFacts) -> dict[str, Any]:
    """The receipt of an artifact that was read back whole. paths: the final names of its files."""
    files = [
        {
            "name": path.name,
            "n_bytes": file.n_bytes,
            "sha256": digest,
            "header_sha256": hashlib.sha256(file.header).hexdigest(),
            "n_header_bytes": len(file.header),
        }
        for path, file, digest in zip(paths, plan.files, facts.file_hashes, strict=True)
    ]
    by_tensor: dict[int, list[RowErrors]] = {}
    if facts.errors is not None:
        for slab in facts.slabs:
            by_tensor.setdefault(slab.tensor, []).append(facts.errors[slab.number])
    return {
        "schema": GGUF_SCHEMA,
        "made_by": made_by(),
        "source": source_facts(plan.checkpoint, facts.shard_hashes),
        "recipe": plan.recipe.name,
        "imatrix_sha256": _importance_sha256(plan),
        "architecture": plan.model.family.gguf_name,
        "n_params": plan.n_params,
        "bits_per_weight": round(plan.bits_per_weight, 6),
        "files": files,
        "ignored": dict(plan.model.ignored),
        "notes": list(plan.model.notes),
        "tokenizer_sha256": _tokenizer_sha256(plan),
        "tokenizer_check": asdict(facts.parity) if facts.parity else None,
        "chat_template_sha256": _template_sha256(plan),
        "tensors": [
            _tensor_row(tensor, digest, by_tensor.get(i))
            for i, (tensor, digest) in enumerate(zip(plan.tensors, facts.tensor_hashes, strict=True))
        ],
        "total": errors_row([row for rows in by_tensor.values() for row in rows], with_worst=False),
    }


def made_by() -> dict[str, str]:
    """The versions that decide the bytes."""
    versions = {name: metadata.version(name) for name in ("llama-cpp-python", "gguf", "numpy")}
    return {"medlite": __version__, **versions, "python": platform.python_version(), "machine": platform.machine()}


def source_facts(checkpoint: Checkpoint, shard_hashes: Mapping[Path, str]) -> dict[str, Any]:
    """The checkpoint: its folder's name, its hub revision where it lies in a hub cache, its files' hashes."""
    snapshot = snapshot_at(checkpoint.folder)
    shards = sorted({tensor.path for tensor in checkpoint.tensors.values()})
    return {
        "name": repository_or_folder(checkpoint.folder),
        "revision": snapshot.commit if snapshot else None,
        "config_sha256": file_sha256(checkpoint.folder / "config.json"),
        "shards": [
            {"name": shard.name, "n_bytes": shard.stat().st_size, "sha256": shard_hashes.get(shard)} for shard in shards
        ],
    }


def range_sha256(path: Path, start: int, n_bytes: int, on_bytes: Callable[[int], None] = lambda n: None) -> str:
    """SHA-256 of n_bytes of the file from byte `start`. Raises ArtifactError if the file ends early."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as handle:
        handle.seek(start)
        while n_bytes:
            block = handle.read(min(READ_BYTES, n_bytes))
            if not block:
                raise ArtifactError(f"{path}: ends {n_bytes} bytes early")
            digest.update(block)
            on_bytes(len(block))
            n_bytes -= len(block)
    return digest.hexdigest()


def _tensor_row(tensor: PlannedTensor, digest: str, errors: list[RowErrors] | None) -> dict[str, Any]:
    row = {
        "name": tensor.info.name,
        "source": tensor.source.name if tensor.source else None,
        "type": tensor.info.type.name,
        "reason": tensor.reason,
        "shape": list(tensor.info.shape),
        "n_bytes": tensor.info.n_bytes,
        "file": tensor.file,
        "sha256": digest,
    }
    return row | errors_row(errors or [], with_worst=True, n_weights=tensor.info.n_weights)


def errors_row(errors: Sequence[RowErrors], *, with_worst: bool, n_weights: int = 0) -> dict[str, Any]:
    """RMSE and SQNR in dB (null where there is no error at all), and the row that lost most."""
    if not errors:
        return {}
    squared_error = math.fsum(row.squared_error for row in errors)
    squared_weight = math.fsum(row.squared_weight for row in errors)
    result: dict[str, Any] = {"sqnr_db": sqnr_db(squared_weight, squared_error)}
    if with_worst:
        worst = max(errors, key=lambda row: row.worst_ratio)
        result["rmse"] = math.sqrt(squared_error / n_weights)
        result["worst_row"] = worst.worst_row
        result["worst_row_sqnr_db"] = sqnr_db(1.0, worst.worst_ratio)
    return result


def sqnr_db(squared_weight: float, squared_error: float) -> float | None:
    """Signal to quantization noise, 10 log10(sum w^2 / sum e^2) in dB; None where nothing was lost."""
    return round(10 * math.log10(squared_weight / squared_error), 4) if squared_error > 0 < squared_weight else None


def _importance_sha256(plan: QuantizationPlan) -> str | None:
    if plan.importance is None:
        return None
    digest = hashlib.sha256()
    for name, values in sorted(plan.importance.items()):
        digest.update(name.encode() + values.tobytes())
    return digest.hexdigest()


def _tokenizer_sha256(plan: QuantizationPlan) -> str:
    """Over tokens, types, scores and merges as they stand in the metadata."""
    digest = hashlib.sha256()
    for key in ("tokens", "token_type", "scores", "merges"):
        value = plan.metadata.get(f"tokenizer.ggml.{key}")
        digest.update(json.dumps([key, value.value if value else None]).encode())
    return digest.hexdigest()


def _template_sha256(plan: QuantizationPlan) -> str | None:
    template = plan.metadata.get("tokenizer.chat_template")
    return hashlib.sha256(template.value.encode()).hexdigest() if template else None
