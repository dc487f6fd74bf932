"""The last words of llama.cpp: when it gives up, it ends the process, and this says at what work.

A library must not print, but here the process ends in the same moment and nobody else can say why.
"""

import ctypes
import os
from pathlib import Path
from typing import Any

_work = ["starting"]
_callback: Any = None


def now(work: str) -> None:
    """Remember what llama.cpp is about to do: "loading FILE"."""
    _work[0] = work


def install(folder: Path) -> None:
    """Take over the message of abort of ggml, whose loaded library lies in `folder`. Where it cannot, nothing changes.

    A wheel holds the library as three files of different names and no links, of which one is loaded.
    """
    global _callback
    if _callback is None:
        _callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_say)  # ggml.h, ggml_abort_callback_t
    for path in sorted(folder.glob("*ggml-base.*")):
        try:
            loaded = ctypes.CDLL(str(path), mode=getattr(os, "RTLD_NOLOAD", 0) | getattr(os, "RTLD_NOW", 0))
        except OSError:
            continue
        if hasattr(loaded, "ggml_set_abort_callback"):
            loaded.ggml_set_abort_callback(_callback)


def _say(message: bytes) -> None:
    reason = message.rsplit(b"/", 1)[-1].decode("utf-8", "replace")
    os.write(2, f"medlite: llama.cpp gave up while {_work[0]}: {reason}\n".encode())
