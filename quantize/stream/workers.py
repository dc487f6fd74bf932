"""Slabs through worker threads; the first error or Ctrl-C stops them all."""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

Slab = TypeVar("Slab")
Found = TypeVar("Found")


def run_slabs(
    slabs: Iterable[Slab], workers: Sequence[Callable[[Slab], None]], beside: Callable[[], Found] | None = None
) -> Found | None:
    """Give the slabs in order to `workers`, each in a thread of its own, and run `beside` in one more.

    Returns what `beside` returned. Raises what it or a worker raised, once every thread has come to rest.
    """
    rest = iter(slabs)
    lock, stop = threading.Lock(), threading.Event()

    def next_slab() -> Slab | None:
        with lock:
            return None if stop.is_set() else next(rest, None)

    def work(worker: Callable[[Slab], None]) -> None:
        while (slab := next_slab()) is not None:
            worker(slab)

    with ThreadPoolExecutor(len(workers) + 1) as pool:
        aside = pool.submit(beside) if beside else None
        running: list[Future[Any]] = [*([aside] if aside else []), *(pool.submit(work, worker) for worker in workers)]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
        for one in running:
            one.result()
        return aside.result() if aside else None
