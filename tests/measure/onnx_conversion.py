"""Time a conversion to ONNX and watch its memory.

    python -m tests.measure.onnx_conversion FOLDER [--recipe q4m] [--block 32]

The command runs as a whole process. Anonymous memory (what it allocated; pages of files that the kernel can drop are
not counted) is read from /proc every 20 ms, so Linux only. Every round is printed, then the medians.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Conversion:
    """One whole process. anonymous_bytes: the most it held at any poll. n_bytes: of the folder it wrote."""

    seconds: float
    anonymous_bytes: int
    n_bytes: int


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process, 0 once it is gone. Source: man 5 proc, /proc/PID/status."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def convert(arguments: argparse.Namespace, home: Path) -> Conversion:
    """Convert once into `home`, and remove what was written."""
    out = home / "out"
    command = [
        sys.executable,
        "-m",
        "medlite",
        "quantize",
        str(arguments.source),
        "--format",
        "onnx",
        "--recipe",
        arguments.recipe,
        "--block",
        str(arguments.block),
        "--threads",
        str(arguments.threads),
        "--out",
        str(out),
        "--json",
        *(["--no-measure"] if arguments.no_measure else []),
    ]
    with tempfile.TemporaryFile("w+") as log:
        begin, most = time.perf_counter(), 0
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            most = max(most, anonymous_bytes(process.pid))
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - begin
        if process.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(command)}\nexited with {process.returncode}\n{log.read()[-2000:]}")
    n_bytes = sum(path.stat().st_size for path in out.iterdir())
    shutil.rmtree(out)
    return Conversion(seconds, most, n_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--recipe", default="q4m")
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-measure", action="store_true", help="without each tensor's error")
    arguments = parser.parse_args()
    print(
        f"{arguments.source.name} to {arguments.recipe} b{arguments.block}, {arguments.threads} threads, "
        f"{platform.processor() or platform.machine()}, {date.today()}"
    )
    with tempfile.TemporaryDirectory(dir=arguments.source.resolve().parent) as name:
        rounds = []
        for _ in range(arguments.rounds):
            rounds.append(convert(arguments, Path(name)))
            print(f"{rounds[-1].seconds:6.1f} s {rounds[-1].anonymous_bytes / 1e6:6.0f} MB anonymous", flush=True)
    print(
        f"median {statistics.median(one.seconds for one in rounds):.1f} s, most "
        f"{max(one.anonymous_bytes for one in rounds) / 1e6:.0f} MB anonymous, wrote "
        f"{rounds[-1].n_bytes / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
