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
import threading
import time
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path

SAMPLE_SECONDS = 0.02
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


@dataclass(frozen=True)
class Run:
    """One whole process. cpu_seconds: user and system. peak_rss_bytes: file-mapped pages counted.

    peak_anonymous_bytes: without them, sampled every 20 ms. n_bytes_read, n_bytes_written: through system calls, cached
    or not; a source that is hashed beside its conversion is read twice. All three are 0 where there is no /proc.
    """

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    peak_anonymous_bytes: int
    n_bytes_read: int
    n_bytes_written: int


class Watch:
    """Samples a process in a thread until `stop`; what it saw stands in its fields."""

    def __init__(self, pid: int) -> None:
        self.folder = Path(f"/proc/{pid}")
        self.peak_anonymous_bytes = self.n_bytes_read = self.n_bytes_written = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stopped.wait(SAMPLE_SECONDS):
            try:
                status = _numbers(self.folder / "status")
                calls = _numbers(self.folder / "io")
            except OSError:
                return
            self.peak_anonymous_bytes = max(self.peak_anonymous_bytes, 1024 * status.get("RssAnon", 0))
            self.n_bytes_read, self.n_bytes_written = calls.get("rchar", 0), calls.get("wchar", 0)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


def _numbers(path: Path) -> dict[str, int]:
    """The lines `name: number ...` of a file of /proc."""
    pairs = (line.partition(":")[::2] for line in path.read_text().splitlines())
    return {name: int(rest.split()[0]) for name, rest in pairs if rest.split()[:1] and rest.split()[0].isdigit()}


def run(command: list[str], environment: dict[str, str]) -> Run:
    """Run `command` to its end; its output is kept and shown only if it fails."""
    with tempfile.TemporaryFile("w+") as log:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment})
        watch = Watch(process.pid)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        seconds = time.perf_counter() - begin
        watch.stop()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(command)}\nexited with {process.returncode}\n{log.read()[-2000:]}")
    return Run(
        seconds,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024,
        watch.peak_anonymous_bytes,
        watch.n_bytes_read,
        watch.n_bytes_written,
    )


def in_turn(runs: list[Run]) -> Run:
    """Processes that ran one after the other, as one: times and bytes add up, peaks do not."""
    return Run(
        sum(r.seconds for r in runs),
        sum(r.cpu_seconds for r in runs),
        max(r.peak_rss_bytes for r in runs),
        max(r.peak_anonymous_bytes for r in runs),
        sum(r.n_bytes_read for r in runs),
        sum(r.n_bytes_written for r in runs),
    )


def contestants(arguments: argparse.Namespace, folder: Path) -> dict[str, list[list[str]]]:
    """Name -> the commands that make it up, run one after the other."""
    source, recipe, threads = str(arguments.source), arguments.recipe, str(arguments.threads)
    ours = [
        sys.executable,
        "-m",
        "medlite",
        "quantize",
        source,
        "--recipe",
        recipe,
        "--threads",
        threads,
        "--force",
        "--out",
        str(folder / "ours.gguf"),
        "--json",
    ]
    plan = json.loads(subprocess.run([*ours, "--dry-run"], capture_output=True, text=True, check=True).stdout)
    shards = sorted(Path(source).glob("*.safetensors"))
    rows = {
        "medlite": [ours],
        "medlite --no-measure": [[*ours, "--no-measure"]],
        "bare copy": [
            [
                sys.executable,
                "-c",
                COPY,
                str(shard),
                str(folder / "copy"),
                str(plan["plans"][0]["n_bytes"] // len(shards)),
            ]
            for shard in shards
        ],
    }
    if arguments.llama_cpp:
        wide = str(folder / "bf16.gguf")
        convert = [
            arguments.python,
            str(arguments.llama_cpp / "convert_hf_to_gguf.py"),
            source,
            "--outtype",
            "bf16",
            "--outfile",
            wide,
        ]
        rows["converter + llama-quantize"] = [
            convert,
            [str(arguments.quantize), wide, str(folder / "theirs.gguf"), recipe, threads],
        ]
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
