"""medlite: medical LLMs at low bits on the machine you have, with the loss measured. Not a medical device.

import medlite
model = medlite.load("model.gguf")
print(model.ask("What class of drug is metformin?"))
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medlite.chat import LoadedModel

__version__ = "0.1.0"


def load(
    model: str,
    *,
    device: str = "auto",
    n_context: int | None = None,
    n_threads: int | None = None,
    kv_type: str = "f16",
    prompt_format: str = "",
) -> "LoadedModel":
    """The model named or stored at `model`, ready to answer; options as in `medlite.chat.load`.

    model: the path of a .gguf file or an ONNX folder, "demo", or a name that `medlite models` lists, if an artifact of
    it is on this machine.

    The import waits until here, because every `import medlite.x` runs this file.
    """
    from medlite.chat import load as load_model

    return load_model(
        model, device=device, n_context=n_context, n_threads=n_threads, kv_type=kv_type, prompt_format=prompt_format
    )
