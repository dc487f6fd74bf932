"""A plan's tensors as the header of their GGUF file describes them."""

from medlite.formats.gguf import GGML_TYPES, TensorInfo
from quantize.stream.plan import Plan


def tensor_infos(plan: Plan) -> tuple[TensorInfo, ...]:
    """Name, type, shape and the offset from where the file's tensors begin, in the plan's order."""
    return tuple(
        TensorInfo(
            tensor.name,
            GGML_TYPES[tensor.encoding.name],
            tensor.shape,
            tensor.parts[0].offset - len(plan.files[tensor.parts[0].file].header),
        )
        for tensor in plan.tensors
    )
