"""python3 watch.py LOG COMMAND...: run COMMAND with its output in LOG, and say meanwhile how far it is.

For the one long step of an installation, which pip keeps silent about: llama-cpp-python compiles llama.cpp. Knows pip's
and ninja's lines; needs nothing but Python. On a terminal one line is kept up to date, elsewhere one is added every
half minute. Exits with COMMAND's code; if that is not 0, with the end of the log on stderr.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

TAIL_BYTES = 1 << 16
LAST_LINES = 25
SECONDS_BETWEEN_LINES = 30
NINJA = re.compile(r"\[(\d+)/(\d+)\] ")
PIP = re.compile(
    r"^ *((?:Collecting|Building|Preparing|Getting) [^\n]{1,60}|Installing collected packages)", re.MULTILINE
)


def tail(log: Path) -> str:
    """The last TAIL_BYTES of the log."""
    with log.open("rb") as handle:
        handle.seek(max(0, log.stat().st_size - TAIL_BYTES))
        return handle.read().decode("utf-8", "replace")


def stage(text: str) -> str:
    """What the end of a log says is going on; empty if it does not say."""
    steps, words = list(NINJA.finditer(text)), list(PIP.finditer(text))
    if steps and (not words or steps[-1].start() > words[-1].start()):
        return f"compiling, step {steps[-1][1]} of {steps[-1][2]}"
    return words[-1][1] if words else ""


def watch(child: "subprocess.Popen[bytes]", log: Path) -> int:
    """Report until `child` ends; its exit code."""
    start, terminal, next_line = time.monotonic(), sys.stdout.isatty(), 0.0
    while True:
        try:
            code = child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            code = None
        seconds = time.monotonic() - start
        if terminal:
            print(f"\r\x1b[K{seconds:5.0f} s  {stage(tail(log))}"[:100], end="", flush=True)
        elif code is None and seconds >= next_line:
            print(f"{seconds:5.0f} s  {stage(tail(log))}", flush=True)
            next_line = seconds + SECONDS_BETWEEN_LINES
        if code is not None:
            print("\n" * terminal + f"{seconds:5.0f} s  {'done' if code == 0 else f'failed with exit code {code}'}")
            return code


def main() -> int:
    log, command = Path(sys.argv[1]), sys.argv[2:]
    with log.open("wb") as sink, subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT) as child:
        try:
            code = watch(child, log)
        except KeyboardInterrupt:  # the terminal has sent it to the child too
            return 130
    if code != 0:
        print(*tail(log).splitlines()[-LAST_LINES:], f"The whole output: {log}", sep="\n", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
