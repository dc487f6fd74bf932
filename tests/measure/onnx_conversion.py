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
import sys
import tempfile
from datetime import date
from pathlib import Path

from tests.measure.sampler import Run, run


def convert(arguments: argparse.Namespace, home: Path) -> tuple[Run, int]:
    """Convert once into `home`: what it cost, and the bytes of the folder, which is removed."""
    out = home / "out"
    command = [sys.executable, "-m", "medlite", "quantize", str(arguments.source), "--format", "onnx"]
    command += ["--recipe", arguments.recipe, "--block", str(arguments.block), "--threads", str(arguments.threads)]
    command += ["--out", str(out), "--json", *(["--no-measure"] if arguments.no_measure else [])]
    done = run(command)
    n_bytes = sum(path.stat().st_size for path in out.iterdir())
    shutil.rmtree(out)
    return done, n_bytes


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
        rounds, n_bytes = [], 0
        for _ in range(arguments.rounds):
            done, n_bytes = convert(arguments, Path(name))
            rounds.append(done)
            print(f"{done.seconds:6.1f} s {done.peak_anonymous_bytes / 1e6:6.0f} MB anonymous", flush=True)
    print(
        f"median {statistics.median(one.seconds for one in rounds):.1f} s, most "
        f"{max(one.peak_anonymous_bytes for one in rounds) / 1e6:.0f} MB anonymous, wrote {n_bytes / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
