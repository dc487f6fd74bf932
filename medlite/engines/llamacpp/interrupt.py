"""Ctrl-C while native code runs: noted at once, so that the code can be aborted, and raised afterwards.

Python runs a signal handler only between bytecodes. If that moment falls into a ctypes callback, the exception it
raises is printed and lost. So while native code runs, the handler only notes the signal, a callback polls the note,
and the original handler is called when Python is back in charge.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def noted_interrupt() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C was pressed in this block; the interrupt is raised at its end.

    Only the main thread can hold a signal handler; elsewhere the function always says no.
    """
    noted: list[tuple[int, FrameType | None]] = []
    previous: Any = signal.getsignal(signal.SIGINT)  # not callable: ignored, or set outside Python
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield lambda: False
        return
    signal.signal(signal.SIGINT, lambda number, frame: noted.append((number, frame)))
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, previous)
        if noted:
            previous(*noted[0])
