"""The receipt of an ONNX folder, as quantize.gguf.receipt makes a GGUF file's: what it was made from, what it lost."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medlite.files import file_sha256
from medlite.formats.onnx_folder import DATA_NAME
from medlite.formats.receipt import ONNX_RECEIPT_NAME, ONNX_SCHEMA
from quantize.gguf.receipt import errors_row, made_by, range_sha256, source_facts
from quantize.onnx.plan import FolderPlan, OnnxSlab, OnnxTensor
from quantize.stream.encode import RowErrors


def make_onnx_receipt(
    plan: FolderPlan,
    part: Path,
    slabs: Sequence[OnnxSlab],
    errors: Mapping[int, RowErrors] | None,
    shard_hashes: Mapping[Path, str],
    on_bytes: Callable[[int], None],
) -> dict[str, Any]:
    """The receipt of a folder that is whole under its .part name; every byte is read again for its hash.

    errors: by slab number, None if not measured. on_bytes hears bytes of the data file as they are hashed.
    """
    by_tensor: dict[int, list[RowErrors]] = {}
    for slab in slabs if errors is not None else ():
        by_tensor.setdefault(slab.tensor, []).append((errors or {})[slab.number])
    files = sorted(path for path in part.iterdir() if path.name != ONNX_RECEIPT_NAME)
    data = part / DATA_NAME
    weights = [row for i, rows in by_tensor.items() if plan.tensors[i].cache is None for row in rows]
    return {
        "schema": ONNX_SCHEMA,
        "made_by": {**made_by(), **plan.made_by},
        "source": source_facts(plan.checkpoint, shard_hashes),
        "recipe": plan.recipe.name,
        "block": plan.block,
        "device": plan.device,
        "architecture": plan.architecture,
        "n_params": plan.n_params,
        "bits_per_weight": round(plan.bits_per_weight, 6),
        "files": [{"name": path.name, "n_bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files],
        "ignored": dict(plan.ignored),
        "tensors": [_tensor_row(tensor, data, by_tensor.get(i), on_bytes) for i, tensor in enumerate(plan.tensors)],
        "total": errors_row(weights, with_worst=False),
    }


def _tensor_row(
    tensor: OnnxTensor, data: Path, errors: Sequence[RowErrors] | None, on_bytes: Callable[[int], None]
) -> dict[str, Any]:
    source = tensor.tensor.source if tensor.tensor else None
    return {
        "name": tensor.name,
        "source": source.name if source else None,
        "storage": tensor.storage.name,
        "reason": tensor.storage.reason,
        "shape": list(tensor.shape),
        "n_bytes": tensor.n_bytes,
        "pieces": [
            {
                "name": piece.name,
                "offset": piece.offset,
                "n_bytes": piece.n_bytes,
                "sha256": range_sha256(data, piece.offset, piece.n_bytes, on_bytes),
            }
            for piece in tensor.pieces
        ],
        **errors_row(errors or [], with_worst=True, n_weights=tensor.n_weights),
    }
