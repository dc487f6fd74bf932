"""How far predictions are off: a file is loaded, its memory and speed are compared, and the differences are kept.

The file is loaded in a process of its own, reads a prompt and writes tokens, on the CPU. Memory: the most that the
process held until the first token. Speed: rounds of tokens, and between them the speeds are measured from which a
prediction is made, since other programs and other guests of the same host change both; medians of the rounds. With one
thread processor time counts instead of wall time, so that work of this machine's other programs counts on neither side.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medlite.devices import process_memory
from medlite.engines import open_engine
from medlite.engines.engine import GeneratedToken, GenerationSettings, OpenSettings
from medlite.engines.llamacpp.memory import read_shape
from medlite.errors import EngineError, MedliteError
from medlite.fit.decode import USED_TOKENS, decode_tokens_per_second, reading_names
from medlite.fit.memory import predict_memory
from medlite.fit.speed import bytes_per_second, clock_for
from medlite.formats.artifact import describe
from medlite.formats.gguf import Header, read_header
from medlite.formats.json import decode_json
from medlite.memo import Memo

N_CONTEXT = 2048
N_ROUNDS = 5
N_STEPS = 1 + N_ROUNDS  # of which `measure` reports the end: the load, then each round


@dataclass(frozen=True)
class CheckSettings:
    """How a file is loaded and run. n_tokens: of each round."""

    n_threads: int
    n_context: int = N_CONTEXT
    kv_type: str = "f16"
    n_tokens: int = 8


@dataclass(frozen=True)
class Measured:
    """One comparison on this machine. Errors are measured / predicted - 1."""

    model: str
    n_bytes: int
    n_context: int
    n_threads: int
    predicted_peak_bytes: int
    measured_peak_bytes: int
    predicted_tokens_per_second: float
    measured_tokens_per_second: float

    @property
    def memory_error(self) -> float:
        return self.measured_peak_bytes / self.predicted_peak_bytes - 1

    @property
    def speed_error(self) -> float:
        return self.measured_tokens_per_second / self.predicted_tokens_per_second - 1

    def to_json(self) -> dict[str, Any]:
        """The comparison as data, with its errors."""
        return asdict(self) | {"memory_error": self.memory_error, "speed_error": self.speed_error}


# --- the comparison --------------------------------------------------------------------------------------------------


def measure(path: Path, settings: CheckSettings, on_step: Callable[[int], None] = lambda n: None) -> Measured:
    """The comparison for one file, which is kept. Raises EngineError if the model does not run.

    on_step: told 1 after each of N_STEPS steps.
    """
    header = read_header(path)
    shape = read_shape(header)
    settings = replace(settings, n_context=min(settings.n_context, shape.n_context_trained or settings.n_context))
    (peak_bytes,), *rounds = _answers_of_child(path, settings, on_step)
    predicted, measured = (statistics.median(column) for column in zip(*rounds, strict=True))
    artifact = describe(path, header)
    row = Measured(
        model=f"{artifact.name} {artifact.recipe}",
        n_bytes=artifact.n_bytes,
        n_context=settings.n_context,
        n_threads=settings.n_threads,
        predicted_peak_bytes=predict_memory(shape, settings.n_context, settings.kv_type).total,
        measured_peak_bytes=int(peak_bytes),
        predicted_tokens_per_second=predicted,
        measured_tokens_per_second=measured,
    )
    remember(row)
    return row


def _answers_of_child(path: Path, settings: CheckSettings, on_step: Callable[[int], None]) -> list[list[float]]:
    """What `run_model` yields, from a process of its own: one that imported a caller's tools would hold them too."""
    command = [sys.executable, "-m", "medlite.fit.check", str(path), json.dumps(asdict(settings))]
    answers: list[list[float]] = []
    with (
        tempfile.TemporaryFile("w+", errors="replace") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as child,
    ):
        assert child.stdout is not None
        try:
            for line in child.stdout:
                answers.append(decode_json(line, list[float], EngineError, where=str(path)))
                on_step(1)
        except BaseException:
            child.kill()
            raise
        if child.wait() != 0 or len(answers) != N_STEPS:
            stderr.seek(0)
            said = stderr.read().strip().splitlines() or [f"the process ended with code {child.returncode}"]
            raise EngineError(f"{path}: {said[-1]}")
    return answers


def run_model(path: Path, settings: CheckSettings) -> Iterator[list[float]]:
    """The peak bytes of this process, then for each round the predicted and the measured tokens per second."""
    n_context, n_threads, kv_type = settings.n_context, settings.n_threads, settings.kv_type
    with closing(open_engine(path, OpenSettings("cpu", n_context, n_threads, kv_type))) as engine:
        n_prompt = max(1, min(USED_TOKENS, n_context - N_ROUNDS * settings.n_tokens - 2))
        prompt = [(37 * i + 11) % (engine.info.n_vocab // 2) for i in range(n_prompt)]
        # Greedy, the default: drawing from 128,000 tokens takes time that is not decoding.
        n_tokens = N_ROUNDS * settings.n_tokens + 1
        steps = engine.generate(prompt, GenerationSettings(max_tokens=n_tokens, ignore_end=True))
        next(steps)
        peak, header = process_memory().peak, read_header(path)
        yield [peak]
        before = predicted_now(header, settings, n_prompt)
        for _ in range(N_ROUNDS):
            measured = tokens_per_second(steps, settings)
            after = predicted_now(header, settings, n_prompt)
            yield [statistics.geometric_mean((before, after)), measured]
            before = after


def tokens_per_second(steps: Iterator[GeneratedToken], settings: CheckSettings) -> float:
    """The speed of the next tokens, by the median."""
    clock, seconds = clock_for(settings.n_threads), []
    for _ in range(settings.n_tokens):
        begin = clock()
        next(steps)
        seconds.append(clock() - begin)
    return 1 / statistics.median(seconds)


def predicted_now(header: Header, settings: CheckSettings, n_used: int) -> float:
    """Tokens per second as `medlite fit` predicts them, from speeds measured at this moment."""
    shape = read_shape(header)
    reading = bytes_per_second(reading_names(header, shape, settings.kv_type), settings.n_threads, fresh=True)
    return decode_tokens_per_second(header, shape, settings.kv_type, reading, n_used, settings.n_threads) or 0.0


# --- past error ------------------------------------------------------------------------------------------------------


HISTORY = Memo("fit", Measured)  # the comparisons of this machine, by what was measured


def read_history() -> list[Measured]:
    """The kept comparisons, oldest first."""
    return list(HISTORY.read().values())


def remember(measured: Measured) -> None:
    """Keep a comparison in place of an earlier one of the same file, context and threads."""
    key = f"{measured.model}; {measured.n_bytes} bytes; {measured.n_context} tokens; {measured.n_threads} threads"
    HISTORY.put({key: measured})


def past_error(history: Sequence[Measured], n_threads: int) -> str:
    """How far predictions were off on this machine, in a sentence; with as many threads where that was measured."""
    if not history:
        return "not compared with a load on this machine yet: medlite fit FILE --check"
    rows = [row for row in history if row.n_threads == n_threads] or history
    memory, speed = [row.memory_error for row in rows], [row.speed_error for row in rows]
    files = "1 file" if len(rows) == 1 else f"{len(rows)} files"
    return (
        f"past error here, {files}: memory {100 * min(memory):+.0f} to {100 * max(memory):+.0f} %, "
        f"decode {100 * min(speed):+.0f} to {100 * max(speed):+.0f} %"
    )


def child(path: str, settings: str) -> None:
    """The process that `measure` starts: a line of JSON on stdout for each answer, what is wrong on stderr."""
    try:
        for answer in run_model(Path(path), decode_json(settings, CheckSettings, EngineError, where="settings")):
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
    except MedliteError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    child(*sys.argv[1:])
