"""A measurement in a process of its own: what parent and child say to each other, and both ends of the pipe.

The parent writes one request, a line of JSON. The child answers in lines of JSON: `Progress` as it goes, then `Done` or
`Failed`. What native libraries print on the child's stdout goes to stderr.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import IO, Any, TypeVar

import msgspec

from medlite import errors
from medlite.errors import EngineError, MedliteError
from medlite.formats.json import decode_json

STDERR_LINES_SHOWN = 5
STOP_SECONDS = 10
PROGRESS_SECONDS = 0.1  # between two reports of one phase

Request = TypeVar("Request")


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far a run is. phase: "hash" and "load" count bytes, "speed" steps, "score" samples."""

    phase: str
    done: int
    total: int


class Failed(msgspec.Struct, frozen=True, tag="error"):
    """A MedliteError of the child: its class, message and hint."""

    kind: str
    message: str
    hint: str | None = None


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The measurement is over. result: JSON of whatever it returned."""

    result: msgspec.Raw


Answer: Any = Progress | Failed | Done  # a type for the decoder, which mypy does not call one
OnProgress = Callable[[Progress], None]


def encode(value: object) -> bytes:
    """`value` as one line of JSON, paths as text."""
    return msgspec.json.encode(value, enc_hook=str)


# --- the parent's end ------------------------------------------------------------------------------------------------


def ask_child(request: object, worker: str, on_progress: OnProgress | None = None) -> bytes:
    """What the module `worker` answers to `request`, run in a fresh Python process: its result as JSON.

    Raises the child's error as it was raised there, or EngineError if the child died.
    """
    with tempfile.TemporaryFile() as stderr:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", worker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=_environment(),
        )
        done: Done | None = None
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(encode(request) + b"\n")
            child.stdin.flush()
            for line in child.stdout:
                match decode_json(line, Answer, EngineError, where="the measuring process"):
                    case Progress() as progress:
                        if on_progress:
                            on_progress(progress)
                    case Failed() as failed:
                        raise _error(failed)
                    case Done() as done:
                        pass
            child.wait()
        finally:
            _stop(child)
        if done is None:
            stderr.seek(0)
            raise _death(child.returncode, stderr.read().decode(errors="replace"))
        return bytes(done.result)


def _environment() -> dict[str, str]:
    """The parent's environment, with the parent's import path: the child runs this code, not another's of that name."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _stop(child: "subprocess.Popen[bytes]") -> None:
    """End the child if it still runs, and wait for it."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe:
            pipe.close()


def _error(failed: Failed) -> MedliteError:
    """The child's error, of the same class where that class takes a message and a hint."""
    kind = getattr(errors, failed.kind, MedliteError)
    if not issubclass(kind, MedliteError) or kind is errors.MissingExtraError:
        kind = MedliteError
    return kind(failed.message, hint=failed.hint)


def _death(code: int, stderr: str) -> EngineError:
    """Why a child that said nothing is gone."""
    if code == -signal.SIGKILL:
        why = "was killed (SIGKILL): the system may have run out of memory"
    elif code < 0:
        why = f"died of {signal.Signals(-code).name}"
    else:
        why = f"ended with exit code {code}"
    last = "\n".join(stderr.strip().splitlines()[-STDERR_LINES_SHOWN:])
    return EngineError(
        f"the measuring process {why}" + (f"\n{last}" if last else ""), hint="--resume continues where it stopped"
    )


# --- the child's end -------------------------------------------------------------------------------------------------


class Reporter:
    """Writes answers as JSON lines; progress no more often than every PROGRESS_SECONDS, first and last always."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.last = ("", 0.0)

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        phase, at = self.last
        if progress.phase == phase and now - at < PROGRESS_SECONDS and progress.done < progress.total:
            return
        self.last = (progress.phase, now)
        self.say(progress)

    def say(self, answer: Progress | Failed | Done) -> None:
        """One answer."""
        self.stream.write(encode(answer) + b"\n")
        self.stream.flush()

    def counter(self, phase: str, total: int) -> Callable[[int], None]:
        """A function that adds up bytes and reports them as progress of `phase`."""
        done = 0

        def on_bytes(n: int) -> None:
            nonlocal done
            done += n
            self(Progress(phase, done, total))

        return on_bytes


def answer_parent(kind: type[Request], work: Callable[[Request, Reporter], object]) -> None:
    """Read the request, free stdout from whatever native code prints, do the work. A MedliteError becomes an answer."""
    request = decode_json(sys.stdin.buffer.readline(), kind, EngineError, where="the request")
    reporter = Reporter(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    try:
        reporter.say(Done(msgspec.Raw(encode(work(request, reporter)))))
    except MedliteError as error:
        reporter.say(Failed(type(error).__name__, str(error), error.hint))
    except KeyboardInterrupt:
        sys.exit(130)
