"""The Pareto front: which artifacts no other beats in both accuracy and bytes."""

from collections.abc import Callable, Sequence

from bench.compare.compare import accuracy
from bench.run.record import RunRecord


def file_bytes(record: RunRecord) -> int:
    """Bytes on disk."""
    return record.artifact.n_bytes


def memory_bytes(record: RunRecord) -> int:
    """Peak of resident memory, and of GPU memory where it was measured; 0 where nothing was."""
    return record.performance.peak_rss_bytes + (record.performance.peak_vram_bytes or 0)


def on_front(records: Sequence[RunRecord], n_bytes: Callable[[RunRecord], int]) -> list[bool]:
    """For each record, whether no other is smaller and more accurate; False where n_bytes is not known (0)."""
    front = pareto([(float(n_bytes(r)), accuracy(r).value) for r in records if n_bytes(r)])
    return [bool(n_bytes(r)) and (float(n_bytes(r)), accuracy(r).value) in front for r in records]


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both (smaller size, greater accuracy), by size."""
    front: list[tuple[float, float]] = []
    for size, value in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or value > front[-1][1]:
            front.append((size, value))
    return front
