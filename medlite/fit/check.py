"""Compare the predictions of `medlite fit` with loaded models, and keep the differences for it to print.

    python -m medlite.fit.check FILE.gguf ... [--context 2048] [--threads N] [--tokens 8]

Each file is loaded in a process of its own, reads a prompt and writes tokens, on the CPU. Memory: the most that the
process held until the first tokens stood. Speed: rounds of tokens, and between them the speeds are measured from which
a prediction is made, since other programs and other guests of the same host change both; medians of the rounds.
--threads 1 counts processor time instead of wall time, so that work of this machine's other programs counts on neither
side.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from medlite.devices import physical_cores, process_memory
from medlite.engines import open_engine
from medlite.engines.engine import GeneratedToken, GenerationSettings
from medlite.engines.llamacpp.memory import read_shape
from medlite.errors import EngineError
from medlite.files import format_bytes
from medlite.fit.memory import (
    HISTORY,
    USED_TOKENS,
    Measured,
    decode_tokens_per_second,
    predict_memory,
    reading_names,
    remember,
)
from medlite.fit.speed import bytes_per_second, clock_for
from medlite.formats.artifact import describe
from medlite.formats.gguf import Header, read_header

CHILD_SECONDS = 1800
ROUNDS = 5


def main() -> None:
    """Measure the files named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m medlite.fit.check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--tokens", type=int, default=8, help=f"of each of {ROUNDS} rounds")
    parser.add_argument("--kv", default="f16")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run_model(options.files[0], options.context, options.threads, options.tokens, options.kv)))
        return
    for path in options.files:
        print(line(measure(path, options.context, options.threads, options.tokens, options.kv)), flush=True)
    print(f"kept in {HISTORY.path}")


def run_model(path: Path, n_context: int, n_threads: int, n_tokens: int, kv_type: str) -> dict[str, Any]:
    """Peak bytes of this process, and for each round the predicted and the measured tokens per second."""
    with closing(open_engine(path, device="cpu", n_context=n_context, n_threads=n_threads, kv_type=kv_type)) as engine:
        n_prompt = max(1, min(USED_TOKENS, n_context - ROUNDS * n_tokens - 2))
        prompt = [(37 * i + 11) % (engine.info.n_vocab // 2) for i in range(n_prompt)]
        # Greedy, the default: drawing from 128,000 tokens takes time that is no decoding.
        steps = engine.generate(prompt, GenerationSettings(max_tokens=ROUNDS * n_tokens + 1))
        next(steps)
        peak, header = process_memory().peak, read_header(path)
        rounds = []
        before = predicted_now(header, n_threads, kv_type, n_prompt)
        for _ in range(ROUNDS):
            measured = tokens_per_second(steps, n_tokens, n_threads)
            after = predicted_now(header, n_threads, kv_type, n_prompt)
            rounds.append((statistics.geometric_mean((before, after)), measured))
            before = after
    return {"peak_bytes": peak, "rounds": rounds}


def tokens_per_second(steps: Iterator[GeneratedToken], n_tokens: int, n_threads: int) -> float:
    """The speed of the next `n_tokens`, by the median. Raises EngineError if the text ends before."""
    clock, seconds = clock_for(n_threads), []
    for _ in range(n_tokens):
        begin = clock()
        step = next(steps, None)
        seconds.append(clock() - begin)
        if step is None or step.finish == "stop":
            raise EngineError("the model ended its text", hint="fewer --tokens")
    return 1 / statistics.median(seconds)


def predicted_now(header: Header, n_threads: int, kv_type: str, n_used: int) -> float:
    """Tokens per second as `medlite fit` predicts them, from speeds measured at this moment."""
    shape = read_shape(header)
    reading = bytes_per_second(reading_names(header, shape, kv_type), n_threads, fresh=True)
    return decode_tokens_per_second(header, shape, kv_type, reading, n_used, n_threads) or 0.0


def measure(path: Path, n_context: int, n_threads: int, n_tokens: int, kv_type: str) -> Measured:
    """The comparison for one file, which is remembered. Raises EngineError if the model does not run."""
    header = read_header(path)
    n_context = min(n_context, read_shape(header).n_context_trained or n_context)
    command = [
        sys.executable,
        "-m",
        "medlite.fit.check",
        str(path),
        "--child",
        "--context",
        str(n_context),
        "--threads",
        str(n_threads),
        "--tokens",
        str(n_tokens),
        "--kv",
        kv_type,
    ]
    child = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_SECONDS, check=False)
    if child.returncode != 0:
        raise EngineError(f"{path}: {child.stderr.strip().splitlines()[-1]}")
    found = json.loads(child.stdout.splitlines()[-1])
    predicted, measured = (statistics.median(column) for column in zip(*found["rounds"], strict=True))
    artifact = describe(path, header)
    row = Measured(
        model=f"{artifact.name} {artifact.recipe}",
        n_bytes=artifact.n_bytes,
        n_context=n_context,
        n_threads=n_threads,
        predicted_peak_bytes=predict_memory(read_shape(header), n_context, kv_type).peak_resident,
        measured_peak_bytes=int(found["peak_bytes"]),
        predicted_tokens_per_second=predicted,
        measured_tokens_per_second=measured,
    )
    remember(row)
    return row


def line(row: Measured) -> str:
    """One comparison as a line of text."""
    return (
        f"{row.model}, context {row.n_context:,}, {row.n_threads} threads: memory predicted "
        f"{format_bytes(row.predicted_peak_bytes)}, measured {format_bytes(row.measured_peak_bytes)} "
        f"({100 * row.memory_error:+.1f} %); decode predicted {row.predicted_tokens_per_second:.1f} tokens/s, "
        f"measured {row.measured_tokens_per_second:.1f} ({100 * row.speed_error:+.0f} %)"
    )


if __name__ == "__main__":
    main()
