"""Compare the predictions of `medlite fit` with loaded models, and keep the differences for it to print.

    python -m medlite.measure_fit FILE.gguf ... [--context 2048] [--threads N] [--tokens 32]

Each file is loaded in a process of its own, reads a prompt and writes tokens, on the CPU. Memory: the most that the
process ever held. Speed: of the fastest token, against the fastest reading of each weight type, timed before and after;
the median tells of other programs. --threads 1 counts processor time instead of wall time, so that a comparison on a
machine that does other work is still one of like with like.
"""

import argparse
import json
import statistics
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from medlite.artifact import describe
from medlite.devices import physical_cores, process_memory
from medlite.engines import open_engine
from medlite.engines.decode_speed import bytes_per_second, clock_for
from medlite.engines.engine import GenerationSettings
from medlite.engines.llama_memory import read_shape
from medlite.errors import EngineError
from medlite.files import format_bytes
from medlite.fit import (
    USED_TOKENS,
    Measured,
    decode_tokens_per_second,
    history_path,
    predict_memory,
    remember,
)
from medlite.gguf_format import Header, read_header

CHILD_SECONDS = 1800


def main() -> None:
    """Measure the files named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m medlite.measure_fit", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--kv", default="f16")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run_model(options.files[0], options.context, options.threads, options.tokens, options.kv)))
        return
    for path in options.files:
        print(line(*measure(path, options.context, options.threads, options.tokens, options.kv)), flush=True)
    print(f"kept in {history_path()}")


def run_model(path: Path, n_context: int, n_threads: int, n_tokens: int, kv_type: str) -> dict[str, float]:
    """Peak bytes, and tokens per second of the fastest and of the median token, of this process."""
    with closing(open_engine(path, device="cpu", n_context=n_context, n_threads=n_threads, kv_type=kv_type)) as engine:
        n_prompt = max(1, min(USED_TOKENS, n_context - n_tokens - 1))
        prompt = [(37 * i + 11) % (engine.info.n_vocab // 2) for i in range(n_prompt)]
        clock, seconds = clock_for(n_threads), []
        begin = clock()
        # Greedy, the default: drawing from 128,000 tokens takes 20 ms of Python, which is no decoding.
        for step in engine.generate(prompt, GenerationSettings(max_tokens=n_tokens)):
            seconds.append(clock() - begin)
            begin = clock()
            if step.finish is not None:
                break
    if len(seconds) < 3:
        raise EngineError(f"{path}: the model ended its text after {len(seconds)} tokens", hint="run again")
    return {"peak_bytes": process_memory().peak, "fastest": 1 / min(seconds[1:]),
            "median": 1 / statistics.median(seconds[1:]), "n_prompt": n_prompt}


def measure(path: Path, n_context: int, n_threads: int, n_tokens: int, kv_type: str) -> tuple[Measured, float]:
    """The comparison for one file, and the median token's speed. Raises EngineError if the model does not run."""
    header = read_header(path)
    n_context = min(n_context, read_shape(header).n_context_trained or n_context)
    before = speeds(header, n_threads)
    command = [sys.executable, "-m", "medlite.measure_fit", str(path), "--child", "--context", str(n_context),
               "--threads", str(n_threads), "--tokens", str(n_tokens), "--kv", kv_type]
    child = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_SECONDS, check=False)
    if child.returncode != 0:
        raise EngineError(f"{path}: {child.stderr.strip().splitlines()[-1]}")
    found = json.loads(child.stdout.splitlines()[-1])
    after = speeds(header, n_threads)
    best = {name: max(speed, after[name]) for name, speed in before.items()}
    artifact, shape = describe(path, header), read_shape(header)
    predicted = decode_tokens_per_second(header, shape, kv_type, best, n_used=int(found["n_prompt"]))
    measured = Measured(
        model=f"{artifact.name} {artifact.recipe}", n_bytes=artifact.n_bytes, n_context=n_context, n_threads=n_threads,
        predicted_peak_bytes=predict_memory(shape, n_context, kv_type).peak_resident,
        measured_peak_bytes=int(found["peak_bytes"]), predicted_tokens_per_second=predicted or 0.0,
        measured_tokens_per_second=found["fastest"])
    remember(measured)
    return measured, found["median"]


def speeds(header: Header, n_threads: int) -> dict[str, float]:
    """Reading speeds of the file's types, measured now."""
    return bytes_per_second(["F16", *(t.type.name for t in header.tensors if len(t.shape) > 1)], n_threads, fresh=True)


def line(row: Measured, median: float) -> str:
    """One comparison as a line of text."""
    return (f"{row.model}, context {row.n_context:,}, {row.n_threads} threads: memory predicted "
            f"{format_bytes(row.predicted_peak_bytes)}, measured {format_bytes(row.measured_peak_bytes)} "
            f"({100 * row.memory_error:+.1f} %); decode predicted {row.predicted_tokens_per_second:.1f} tokens/s, "
            f"fastest {row.measured_tokens_per_second:.1f} ({100 * row.speed_error:+.0f} %), median {median:.1f}")


if __name__ == "__main__":
    main()
