"""A plan of a GGUF file as an output to write, with what its receipt states of it alone."""

import hashlib
import json
from pathlib import Path

from quantize.gguf.plan import QuantizationPlan
from quantize.stream.plan import Output


def gguf_output(plan: QuantizationPlan, path: Path) -> Output:
    """`plan` under the name `path` (the first of several files under --max-shard-size takes its split name)."""
    importance = hashlib.sha256()
    for name, values in sorted((plan.importance or {}).items()):
        importance.update(name.encode() + values.tobytes())
    return Output(
        path,
        tuple(plan.paths(path)),
        plan.checkpoint,
        plan.model.family.gguf_name,
        plan.recipe.name,
        plan.tensors,
        plan.files,
        plan.model.ignored,
        {
            "imatrix_sha256": None if plan.importance is None else importance.hexdigest(),
            "tokenizer_sha256": _tokenizer_sha256(plan),
            "chat_template_sha256": _template_sha256(plan),
        },
        notes=plan.model.notes,
        stamp=importance.digest(),
    )


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
