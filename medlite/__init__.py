"""medlite: medical LLMs at low bits on the machine you have, with the loss measured. Not a medical device.

From Python:

    import medlite
    model = medlite.load("model.gguf")
    print(model.ask("What class of drug is metformin?"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medlite.version import __version__

if TYPE_CHECKING:
    from medlite.chat import load
    from medlite.engines import open_engine
    from medlite.engines.engine import OpenSettings

__all__ = ["OpenSettings", "__version__", "load", "open_engine"]

_HOMES = {"OpenSettings": "medlite.engines.engine", "load": "medlite.chat", "open_engine": "medlite.engines"}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: every `import medlite.x` runs this file."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
