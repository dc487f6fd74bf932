"""One model, many callers: who holds an engine, how a running call is cancelled, and when it is closed."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from medlite.errors import EngineError

CLOSE_SECONDS = 30.0


class Access:
    """The lock of an engine. Callers in other threads wait; a second call of the holder's own thread is an error,
    since it would wait forever. A generation holds the engine until its iterator is exhausted or closed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None  # the thread that holds the lock
        self._cancelled = threading.Event()
        self.closed = False

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the engine. Raises EngineError if this thread's own generation holds it, or if it is closed."""
        me = threading.get_ident()
        if self._holder == me:
            raise EngineError("a generation of this thread is still open", hint="exhaust or close its iterator first")
        with self._lock:
            self._holder = me
            try:
                self.check_open()
                self._cancelled.clear()
                yield
            finally:
                self._holder = None

    def check_open(self) -> None:
        """Raise EngineError if the engine is closed."""
        if self.closed:
            raise EngineError("the engine is closed")

    def cancel(self) -> None:
        """Ask the call that holds the engine to end early."""
        self._cancelled.set()

    def cancelled(self) -> bool:
        """Whether the call that holds the engine was asked to end."""
        return self._cancelled.is_set()

    def close(self, free: Callable[[], None]) -> None:
        """Cancel what runs, wait for it, and call `free` once. Raises EngineError if another thread does not let go."""
        if self.closed:
            return
        mine = self._holder == threading.get_ident()
        self.cancel()
        if not mine and not self._lock.acquire(timeout=CLOSE_SECONDS):
            raise EngineError("another thread still uses the engine", hint="close its iterator first")
        try:
            if not self.closed:
                self.closed = True
                free()
        finally:
            if not mine:
                self._lock.release()
