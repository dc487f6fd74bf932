"""How long a conversion will take here, from a moment's measurement of this machine."""

import os
import time
from collections.abc import Sequence

import numpy as np

from medlite.formats.gguf import GGML_TYPES, GgmlType
from medlite.formats.safetensors import SourceTensor
from quantize.source.checkpoint import RowReader
from quantize.stream.encode import Rows, encode, measure_errors
from quantize.stream.plan import Output

SAMPLE_WEIGHTS = 1 << 17
SAMPLES = 3
SAMPLE_READ_BYTES = 1 << 26
HASH_BYTES_PER_SECOND = 1.2e9  # SHA-256 with the processor's instructions; twice over the output, once over the source


def predict_seconds(outputs: Sequence[Output], n_threads: int) -> float:
    """Wall seconds to write GGUF files of one checkpoint: encode and measure each type, read, hash.

    n_threads: 0 for all cores. A sample of each type is encoded and a piece of the source is read, so the answer
    takes a moment. It counts processor time, so other programs must leave the cores alone; writing is taken to be as
    fast as the page cache.
    """
    workers = n_threads or os.cpu_count() or 1
    weights: dict[str, int] = {}
    for output in outputs:
        for tensor in output.plan.tensors:
            weights[tensor.encoding.name] = weights.get(tensor.encoding.name, 0) + tensor.n_weights
    encode_seconds = sum(n / weights_per_second(GGML_TYPES[name]) for name, n in weights.items())
    checkpoint = outputs[0].plan.checkpoint
    read_seconds = checkpoint.n_bytes / read_bytes_per_second(list(checkpoint.tensors.values()))
    hashed = checkpoint.n_bytes + 2 * sum(output.plan.n_bytes for output in outputs)
    return (encode_seconds + hashed / HASH_BYTES_PER_SECOND) / workers + read_seconds


def weights_per_second(ggml_type: GgmlType) -> float:
    """Weights that one thread encodes and measures in a second, from a sample of normal bf16 weights."""
    sample = np.random.default_rng(0).standard_normal((SAMPLE_WEIGHTS // 4096, 4096), np.float32)
    rows = Rows("BF16", (sample.view(np.uint32) >> 16).astype(np.uint16))
    importance = np.ones(4096, np.float32) if ggml_type.name.startswith(("IQ1", "IQ2", "IQ3_XXS")) else None
    encode(ggml_type, Rows("BF16", rows.values[:1]), importance)  # builds ggml's lookup tables, once
    seconds = []
    for _ in range(SAMPLES):
        begin = time.thread_time()
        measure_errors(ggml_type, rows, encode(ggml_type, rows, importance))
        seconds.append(time.thread_time() - begin)
    return SAMPLE_WEIGHTS / min(seconds)


def read_bytes_per_second(tensors: list[SourceTensor]) -> float:
    """Speed of reading the source, from the middle of its largest tensor; faster where it is cached already."""
    largest = max(tensors, key=lambda tensor: tensor.n_bytes)
    n_rows = max(min(SAMPLE_READ_BYTES // largest.row_bytes, largest.n_rows), 1)
    buffer = memoryview(bytearray(n_rows * largest.row_bytes))
    with RowReader() as reader:
        reader.open({largest.name: largest})
        begin = time.perf_counter()
        reader.read_into(largest, (largest.n_rows - n_rows) // 2, buffer)
        return len(buffer) / (time.perf_counter() - begin)
