"""What a whole process costs: its time, its memory, the bytes that it read and wrote.

Source: man 5 proc, /proc/PID/status and /proc/PID/io.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Run:
    """One whole process. cpu_seconds: user and system. peak_rss_bytes: file-mapped pages counted.

    peak_anonymous_bytes: without them. Both are sampled every 20 ms: the peak that wait4 reports is never below its
    parent's size, whose pages a child has until its program is loaded. n_bytes_read, n_bytes_written: through system
    calls, cached or not; a source that is hashed during its conversion is read twice. All but the times are 0 where
    there is no /proc.
    """

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    peak_anonymous_bytes: int
    n_bytes_read: int
    n_bytes_written: int


class Sampler:
    """Samples a process in a thread until `stop`; its fields hold what it saw."""

    def __init__(self, pid: int) -> None:
        self.folder = Path(f"/proc/{pid}")
        self.peak_rss_bytes = self.peak_anonymous_bytes = self.n_bytes_read = self.n_bytes_written = 0
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
            self.peak_rss_bytes = 1024 * status.get("VmHWM", self.peak_rss_bytes // 1024)  # absent once it has ended
            self.peak_anonymous_bytes = max(self.peak_anonymous_bytes, 1024 * status.get("RssAnon", 0))
            self.n_bytes_read, self.n_bytes_written = calls.get("rchar", 0), calls.get("wchar", 0)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


def _numbers(path: Path) -> dict[str, int]:
    """The lines `name: number ...` of a file of /proc."""
    pairs = (line.partition(":")[::2] for line in path.read_text().splitlines())
    return {name: int(rest.split()[0]) for name, rest in pairs if rest.split()[:1] and rest.split()[0].isdigit()}


def run(command: list[str], environment: Mapping[str, str] | None = None) -> Run:
    """Run `command` to its end; its output is kept and shown only if it fails."""
    with tempfile.TemporaryFile("w+") as log:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(environment or {})})
        sampler = Sampler(process.pid)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        seconds = time.perf_counter() - begin
        sampler.stop()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(command)}\nexited with {process.returncode}\n{log.read()[-2000:]}")
    return Run(
        seconds,
        usage.ru_utime + usage.ru_stime,
        sampler.peak_rss_bytes,
        sampler.peak_anonymous_bytes,
        sampler.n_bytes_read,
        sampler.n_bytes_written,
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
