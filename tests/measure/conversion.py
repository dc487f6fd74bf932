"""Time a conversion against llama.cpp's two steps and against a bare copy.

    python -m tests.measure.conversion ./shape-1b --llama-cpp ~/llama.cpp \\
        --quantize ~/llama.cpp/build/bin/llama-quantize

Every command runs as a whole process, in turn, so that a noisy machine is noisy for all; medians and ratios are
printed. The converter of llama.cpp needs torch and transformers: --python names an interpreter that has them.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import fields
from datetime import date
from pathlib import Path

from tests.measure.sampler import Run, in_turn, run

COPY = """
import os, sys
source, target, n_out = sys.argv[1], sys.argv[2], int(sys.argv[3])
block = bytearray(1 << 22)
with open(source, 'rb', buffering=0) as f:
    while f.readinto(block): pass
with open(target, 'wb', buffering=0) as f:
    done = 0
    while done < n_out: done += f.write(memoryview(block)[:min(len(block), n_out - done)])
    os.fsync(f.fileno())
"""


def contestants(arguments: argparse.Namespace, folder: Path) -> dict[str, list[list[str]]]:
    """Name -> the commands that make it up, run one after the other."""
    source, recipe, threads = str(arguments.source), arguments.recipe, str(arguments.threads)
    ours = [sys.executable, "-m", "medlite", "quantize", source, "--recipe", recipe, "--threads", threads]
    ours += ["--force", "--out", str(folder / "ours.gguf"), "--json"]
    plan = json.loads(subprocess.run([*ours, "--dry-run"], capture_output=True, text=True, check=True).stdout)
    shards = sorted(Path(source).glob("*.safetensors"))
    copy, n_bytes = str(folder / "copy"), str(plan["plans"][0]["n_bytes"] // len(shards))
    rows = {
        "medlite": [ours],
        "medlite --no-measure": [[*ours, "--no-measure"]],
        "bare copy": [[sys.executable, "-c", COPY, str(shard), copy, n_bytes] for shard in shards],
    }
    if arguments.llama_cpp:
        wide, converter = str(folder / "bf16.gguf"), str(arguments.llama_cpp / "convert_hf_to_gguf.py")
        convert = [arguments.python, converter, source, "--outtype", "bf16", "--outfile", wide]
        quantize = [str(arguments.quantize), wide, str(folder / "theirs.gguf"), recipe, threads]
        rows["converter + llama-quantize"] = [convert, quantize]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--recipe", default="Q4_K_M")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama-cpp", type=Path, help="source of llama.cpp, for its converter")
    parser.add_argument("--quantize", type=Path, help="the llama-quantize program")
    parser.add_argument("--python", default=sys.executable, help="interpreter with torch, for the converter")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.source.parent) as name:
        rows = contestants(arguments, Path(name))
        gguf_path = {"PYTHONPATH": str(arguments.llama_cpp / "gguf-py")} if arguments.llama_cpp else {}
        times: dict[str, list[Run]] = {key: [] for key in rows}
        for _ in range(arguments.rounds):
            for key, commands in rows.items():
                runs = [
                    run(command, gguf_path if "convert_hf_to_gguf.py" in " ".join(command) else {})
                    for command in commands
                ]
                times[key].append(in_turn(runs))
    medians = {
        key: Run(*(statistics.median(getattr(r, field.name) for r in runs) for field in fields(Run)))
        for key, runs in times.items()
    }
    if arguments.json:
        print(json.dumps({key: vars(value) for key, value in medians.items()}, indent=1))
        return
    print(
        f"{arguments.source.name} to {arguments.recipe}, {arguments.threads} threads, {arguments.rounds} rounds, "
        f"{platform.processor() or platform.machine()}, {date.today()}"
    )
    base = medians["medlite"].seconds
    for key, value in medians.items():
        print(
            f"{key:28} {value.seconds:8.1f} s {value.cpu_seconds:8.1f} CPU s {value.peak_rss_bytes / 1e6:6.0f} MB "
            f"{value.peak_anonymous_bytes / 1e6:6.0f} MB anonymous, read {value.n_bytes_read / 1e9:6.2f} GB, "
            f"wrote {value.n_bytes_written / 1e9:6.2f} GB  x{value.seconds / base:5.2f}"
        )


if __name__ == "__main__":
    main()
