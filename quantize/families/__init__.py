"""The table of model families, by config.architectures[0]. All that is known of one stands in its file.

To add a family: one file, and its row here.
"""

from medlite.errors import CheckpointError
from quantize.families.config import Config
from quantize.families.family import Family
from quantize.families.gemma3 import GEMMA3, GEMMA3_MULTIMODAL
from quantize.families.llama import LLAMA
from quantize.families.mistral import MISTRAL
from quantize.families.mllama import MLLAMA
from quantize.families.phi3 import PHI3
from quantize.families.qwen import QWEN2, QWEN3

FAMILIES: dict[str, Family] = {
    row.hf_name: row for row in (LLAMA, MISTRAL, MLLAMA, QWEN2, QWEN3, PHI3, GEMMA3, GEMMA3_MULTIMODAL)
}


def find_family(config: Config) -> Family:
    """The row for config.architectures[0]. Raises CheckpointError listing the known ones."""
    names = config.get("architectures")
    hint = (
        f"known: {', '.join(sorted(FAMILIES))}; --format onnx --exporter optimum exports BioGPT, the GPT-2 family and "
        "others"
    )
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        raise CheckpointError(f"config.json: architectures is {names!r}, a list with one name was needed", hint)
    if names[0] not in FAMILIES:
        raise CheckpointError(f"config.json: unknown architecture {names[0]}", hint)
    return FAMILIES[names[0]]
