"""Time decode and prefill of an ONNX folder against onnxruntime-genai: python -m tests.measure.ort_speed FOLDER

    python -m tests.measure.ort_speed FOLDER --genai-python PYTHON [--threads 2] [--prompt 64]
        [--tokens 20] [--rounds 20]

Each runtime has the folder open in a process of its own; they take turns, so that a noisy machine is noisy for both.
Prefill: from the prompt to the first token. Decode: milliseconds a token, median of all; the ratio is the median over
the rounds of one round's medians, above 1 where medlite is faster. --genai-python names an interpreter that has
onnxruntime-genai.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from medlite.devices import physical_cores
from medlite.engines import open_engine
from medlite.engines.engine import GenerationSettings, LogitsRequest, OpenSettings

FIRST_ID, LAST_ID = 3, 300  # of the random prompt
GENAI = """
import json, os, sys, time
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np, onnxruntime_genai as genai
folder, n_threads, n_new = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
config = genai.Config(folder)
config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": n_threads}}}}))
model = genai.Model(config)
for line in sys.stdin:
    ids = np.array(json.loads(line), np.int32)
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + n_new + 2, do_sample=False)
    generator = genai.Generator(model, parameters)
    times = [time.perf_counter()]
    generator.append_tokens(ids)
    for _ in range(n_new + 1):
        generator.generate_next_token()
        times.append(time.perf_counter())
    del generator
    print(json.dumps([b - a for a, b in zip(times, times[1:])]), flush=True)
"""


@dataclass(frozen=True)
class Round:
    """Seconds to the first token, and of each token behind it."""

    prefill: float
    tokens: list[float]

    @property
    def token(self) -> float:
        return statistics.median(self.tokens)


class Contestant:
    """A runtime with the folder open, waiting for prompts on its standard input."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, ids: list[int]) -> Round:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(ids) + "\n")
        self.process.stdin.flush()
        if not (answer := self.process.stdout.readline()):
            sys.exit(f"{' '.join(self.command[:2])} ended with {self.process.wait()}")
        first, *rest = json.loads(answer)
        return Round(first, rest)

    def close(self) -> None:
        self.process.communicate()


def serve(folder: Path, n_threads: int, n_prompt: int, n_new: int) -> None:
    """Our side: a prompt a line in, seconds of each step out."""
    settings = OpenSettings(device="cpu", n_threads=n_threads, n_context=n_prompt + n_new + 2)
    with closing(open_engine(folder, settings)) as engine:
        for line in sys.stdin:
            ids = json.loads(line)
            next(engine.logits([LogitsRequest((ids[0],), (0,))]))  # forgets the last prompt
            print(json.dumps(list(steps(engine, ids, n_new + 1))), flush=True)


def steps(engine: Any, ids: list[int], n_tokens: int) -> Iterator[float]:
    """Seconds of each step. An end token does not end it, so that both runtimes write as many."""
    settings = GenerationSettings(max_tokens=n_tokens, ignore_end=True)
    begin = time.perf_counter()
    for _ in engine.generate(ids, settings):
        now = time.perf_counter()
        yield now - begin
        begin = time.perf_counter()


def main() -> None:
    """Measure the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--genai-python", default="")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.folder, options.threads, options.prompt, options.tokens)
        return
    command = [sys.executable, "-m", "tests.measure.ort_speed", str(options.folder), "--serve"]
    for name in ("threads", "prompt", "tokens"):
        command += [f"--{name}", str(getattr(options, name))]
    runtimes = {"medlite": Contestant(command)}
    if options.genai_python:
        sizes = [str(options.threads), str(options.tokens)]
        runtimes["onnxruntime-genai"] = Contestant([options.genai_python, "-c", GENAI, str(options.folder), *sizes])
    rng = np.random.default_rng(0)
    rounds: dict[str, list[Round]] = {name: [] for name in runtimes}
    for number in range(options.rounds + 1):  # the first round warms up
        ids = rng.integers(FIRST_ID, LAST_ID, options.prompt).tolist()
        for name, runtime in runtimes.items():
            found = runtime(ids)
            if number:
                rounds[name].append(found)
    for runtime in runtimes.values():
        runtime.close()
    report(options, rounds)


def report(options: argparse.Namespace, rounds: dict[str, list[Round]]) -> None:
    """Print the medians and the ratios."""
    print(
        f"{options.folder.name}, {options.threads} threads, prompts of {options.prompt} tokens, "
        f"{options.tokens} new, {options.rounds} rounds, {platform.machine()}, {date.today()}"
    )
    for name, found in rounds.items():
        token = statistics.median(second for one in found for second in one.tokens)
        prefill = statistics.median(one.prefill for one in found)
        print(
            f"{name:18} prefill {options.prompt / prefill:7.1f} tokens/s, decode {1e3 * token:6.2f} ms a token "
            f"({1 / token:.1f} tokens/s)"
        )
    if len(rounds) == 2:
        ours, theirs = rounds.values()
        ratios = {
            "prefill": [b.prefill / a.prefill for a, b in zip(ours, theirs, strict=True)],
            "decode": [b.token / a.token for a, b in zip(ours, theirs, strict=True)],
        }
        print(
            "medlite's speed over onnxruntime-genai's: "
            + ", ".join(f"{name} {statistics.median(values):.3f}" for name, values in ratios.items())
        )


if __name__ == "__main__":
    main()
