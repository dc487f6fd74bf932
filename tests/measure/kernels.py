"""One table: every type on every instruction set, weights per second of one thread, ratio to ggml, bits equal or not.

    python -m tests.measure.kernels [--json] [--types Q4_K,IQ3_S] [--repeats 7]

The ratio is the median over repeats of ggml's time divided by the kernel's in the same repeat; the order alternates.
Times are processor seconds of the calling thread, so other programs on the machine disturb them less.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medlite.formats.gguf import GGML_TYPES, GgmlType
from quantize import kernels
from quantize.stream import ggml

N_PER_ROW = 2048
SHORTEST_SECONDS = 0.02  # of ggml in one repeat: sets the number of rows, and of calls where the rows are enough
MOST_ROWS = 256
PLAIN = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Measurement:
    """One type on one instruction set. Rates: weights per second of a thread. Ratio: ggml's time over the kernel's."""

    ggml_type: str
    importance: bool
    isa: str
    n_weights: int
    ggml_weights_per_second: float
    weights_per_second: float
    ratio: float
    lowest_ratio: float
    highest_ratio: float
    equal: bool


def thread_seconds(work: Callable[[], object], n_times: int = 1) -> float:
    """Processor seconds of this thread for one call of `work`."""
    start = time.thread_time()
    for _ in range(n_times):
        work()
    return (time.thread_time() - start) / n_times


def measure_type(
    loaded: kernels.Kernels, row: GgmlType, importance: NDArray[np.float32] | None, n_repeats: int
) -> Iterator[Measurement]:
    """All instruction sets on one type, side by side with ggml in every repeat."""

    def rows_of(n_rows: int) -> NDArray[np.float32]:
        random = np.random.default_rng(0)
        return (random.standard_normal((n_rows, N_PER_ROW)) * 0.02).astype(np.float32)

    x = rows_of(2)
    out = np.empty(len(x) * row.row_bytes(N_PER_ROW), np.uint8)
    ggml.quantize_rows(row, x, out, importance)  # builds ggml's tables
    seconds = max(thread_seconds(lambda: ggml.quantize_rows(row, x, out, importance)), 1e-6)
    x = rows_of(int(min(MOST_ROWS, max(16, 2 * SHORTEST_SECONDS / seconds))) // 16 * 16)
    n_times = max(1, int(SHORTEST_SECONDS / (seconds / 2 * len(x))))
    expected, got = (np.empty(len(x) * row.row_bytes(N_PER_ROW), np.uint8) for _ in range(2))

    def encode(isa: str) -> None:
        loaded.encode(row.id, GGML_TYPES["F32"].id, x, got, (len(x), N_PER_ROW), importance, isa)

    times: dict[str, list[float]] = {isa: [] for isa in ("ggml", *loaded.isas)}
    equal = {}
    ggml.quantize_rows(row, x, expected, importance)
    for isa in loaded.isas:
        got[:] = 255
        encode(isa)
        equal[isa] = bool(np.array_equal(got, expected))
    for repeat in range(n_repeats):
        for isa in loaded.isas if repeat % 2 else loaded.isas[::-1]:
            times[isa].append(thread_seconds(lambda isa=isa: encode(isa), n_times))  # type: ignore[misc]
        times["ggml"].append(thread_seconds(lambda: ggml.quantize_rows(row, x, expected, importance), n_times))
    for isa in loaded.isas:
        ratios = [reference / ours for reference, ours in zip(times["ggml"], times[isa], strict=True)]
        yield Measurement(
            row.name,
            importance is not None,
            isa,
            x.size,
            x.size / statistics.median(times["ggml"]),
            x.size / statistics.median(times[isa]),
            statistics.median(ratios),
            min(ratios),
            max(ratios),
            equal[isa],
        )


def measure_all(loaded: kernels.Kernels, names: list[str], n_repeats: int) -> Iterator[Measurement]:
    weights = (np.random.default_rng(1).random(N_PER_ROW) + 0.01).astype(np.float32)
    for name in names:
        row = GGML_TYPES[name]
        if loaded.supports(row.id, False):
            yield from measure_type(loaded, row, None, n_repeats)
        if loaded.supports(row.id, True) and name not in PLAIN:
            yield from measure_type(loaded, row, weights, n_repeats)


def processor() -> str:
    """The processor's name and number of cores."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    facts = {key.strip(): value.strip() for line in lines for key, _, value in [line.partition(":")]}
    family = f" family {facts['cpu family']}" if "cpu family" in facts else ""
    return f"{facts.get('model name', platform.processor())}{family}, {os.cpu_count()} cores"


def table(measurements: list[Measurement], isas: tuple[str, ...]) -> str:
    """The measurements as a Markdown table: a row per type, two columns per instruction set."""
    head = ["type", "importance", "ggml, M/s", *(f"{isa}, M/s | ratio" for isa in isas), "equal"]
    lines = [" | ".join(head), " | ".join(["---"] * (len(head) + len(isas)))]
    for first in range(0, len(measurements), len(isas)):
        group = measurements[first : first + len(isas)]
        reference = group[0].ggml_weights_per_second
        cells = [group[0].ggml_type, "yes" if group[0].importance else "", f"{reference / 1e6:.1f}"]
        cells += [f"{one.weights_per_second / 1e6:.1f} | {one.ratio:.1f}x" for one in group]
        lines.append(" | ".join([*cells, "yes" if all(one.equal for one in group) else "NO"]))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.measure.kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--types", help="comma-separated; default: all that the kernels encode")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    loaded = kernels.load()
    if loaded is None:
        print(f"no kernels: {kernels.missing_reason()}", file=sys.stderr)
        return 1
    names = arguments.types.split(",") if arguments.types else list(GGML_TYPES)
    measurements = list(measure_all(loaded, names, arguments.repeats))
    when, where = datetime.now(UTC).strftime("%Y-%m-%d"), processor()
    if arguments.json:
        rows = [asdict(one) for one in measurements]
        print(json.dumps({"date": when, "processor": where, "measurements": rows}, indent=1))
    else:
        print(f"{when}, {where}, one thread, float32 rows of {N_PER_ROW} normal weights\n")
        print(table(measurements, loaded.isas))
    return 0 if all(one.equal for one in measurements) else 1


if __name__ == "__main__":
    sys.exit(main())
