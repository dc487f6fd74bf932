"""The check of an artifact of either format."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medlite.errors import ArtifactError
from medlite.files import OnBytes
from medlite.formats.onnx_folder import is_onnx_folder
from quantize.gguf.verify import verify_gguf
from quantize.onnx.verify import verify_onnx
from quantize.source.checkpoint import Checkpoint
from quantize.stream.compare import Verification


def verify(
    path: Path,
    *,
    against: Checkpoint | None = None,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    on_bytes: OnBytes = lambda n: None,
) -> Verification:
    """The findings on the GGUF file or ONNX folder at `path`. What is wrong is in `problems`; damage never raises.

    against: the checkpoint that each tensor is compared with. importance: of a GGUF file, what it was made with.
    on_bytes hears bytes as they are checked (once over the tensors, once more with a receipt).
    """
    if not is_onnx_folder(path):
        return verify_gguf(path, against=against, importance=importance, on_bytes=on_bytes)
    if importance is not None:
        raise ArtifactError("--imatrix: only for GGUF files")
    return verify_onnx(path, against=against, on_bytes=on_bytes)
