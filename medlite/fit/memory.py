"""Will it fit: the memory of a model, from the header of its file or of the file to come.

Pure arithmetic on what `medlite.engines.llamacpp.memory` estimates before a load. `medlite.fit.check` compares it with
a loaded model.
"""

from dataclasses import replace

from medlite.engines.context import RESERVE_BYTES
from medlite.engines.engine import N_BATCH
from medlite.engines.llamacpp.memory import (
    CELL_PADDING,
    MemoryEstimate,
    ModelShape,
    estimate,
    kv_bytes_per_token,
    n_cells_for,
)
from medlite.formats.gguf import Header

STANDARD_CONTEXTS = (2048, 4096, 8192, 16384, 32768, 131072)

# What a process holds besides the model: Python, numpy, and llama.cpp's libraries; 42 and 48 MB more than the model in
# two environments (`medlite fit --check` of the demo model, Q4_K_M). The screen of a chat takes some 20 MB more.
RUNTIME_BYTES = 44 << 20

# GGUF architectures with sliding windows: every so many layers one sees all tokens. Source: llama.cpp src/models/*.cpp,
# set_swa_pattern.
FULL_LAYER_PERIODS = {"gemma3": 6}


def predict_memory(shape: ModelShape, n_context: int, kv_type: str) -> MemoryEstimate:
    """What chat and generate take on the CPU with the context full. A question set's logits come on top."""
    return replace(estimate(shape, n_context, kv_type, N_BATCH), runtime=RUNTIME_BYTES)


def fits(prediction: MemoryEstimate, memory_bytes: int) -> bool:
    """Whether it can be loaded with `memory_bytes` to use; the engine leaves the same reserve to the system."""
    return prediction.needed <= memory_bytes - RESERVE_BYTES


def windowed_kv_bytes(header: Header, shape: ModelShape, n_context: int, kv_type: str) -> int | None:
    """What the KV cache would take if sliding-window layers kept only their window and a batch; None without windows.

    llama.cpp can do so; medlite keeps everything, since a cut cache cannot continue from an earlier turn.
    """
    architecture = str(header.get("general.architecture"))
    window = header.get(f"{architecture}.attention.sliding_window")
    if architecture not in FULL_LAYER_PERIODS or not isinstance(window, int) or window < 1:
        return None
    full = n_cells_for(n_context, N_BATCH)
    short = min(full, -(-(window + N_BATCH) // CELL_PADDING) * CELL_PADDING)
    n_full = shape.n_layer // FULL_LAYER_PERIODS[architecture]
    per_layer = kv_bytes_per_token(shape, kv_type) // shape.n_layer
    return per_layer * (n_full * full + (shape.n_layer - n_full) * short)
