"""How fast a loaded engine reads and writes, on prompts of random tokens, apart from the questions."""

import statistics
import time
from dataclasses import dataclass

import numpy as np

from medlite.engines.engine import GenerationSettings, LogitsEngine, LogitsRequest

PREFILL_TOKENS = 512  # as llama-bench's pp512
DECODE_TOKENS = 64
REPEATS = 3  # the median is taken
BUDGET_SECONDS = 2.0  # of each measurement, after which no further repeat begins
SETTLE_TOKENS = 16  # read once before the clock starts, so that file pages are in memory


@dataclass(frozen=True)
class Speed:
    """Prefill and decode in tokens per second, the first token's delay in seconds; 0 where it was not measured."""

    prefill_tokens_per_second: float = 0.0
    decode_tokens_per_second: float = 0.0
    first_token_seconds: float = 0.0


def measure_speed(engine: LogitsEngine, *, seed: int = 0) -> Speed:
    """Speed of one sequence. decode is 0 if the model ended every reply before its second token.

    Prefill: the prompt's tokens / seconds until the last position's logits are there. Decode: (n - 1) / seconds
    between the first and the last of n generated tokens, greedy.
    """
    rng = np.random.default_rng(seed)
    n_prompt = max(1, min(PREFILL_TOKENS, engine.info.n_context - DECODE_TOKENS))

    def random_prompt(n_tokens: int) -> tuple[int, ...]:
        return tuple(int(t) for t in rng.integers(0, engine.info.n_vocab, n_tokens))

    def read(prompt: tuple[int, ...]) -> float:
        started = time.perf_counter()
        for _ in engine.logits([LogitsRequest(prompt, (len(prompt) - 1,))]):
            pass
        return time.perf_counter() - started

    read(random_prompt(min(SETTLE_TOKENS, n_prompt)))
    seconds: list[float] = []
    while len(seconds) < REPEATS and sum(seconds) < BUDGET_SECONDS:
        seconds.append(read(random_prompt(n_prompt)))
    first, gaps, decoding = 0.0, 0, 0.0
    deadline = time.perf_counter() + BUDGET_SECONDS
    while gaps < DECODE_TOKENS - 1 and (not first or time.perf_counter() < deadline):
        times = _token_times(engine, random_prompt(n_prompt))
        first = first or times[1] - times[0]
        gaps += len(times) - 2
        decoding += times[-1] - times[1]
    return Speed(n_prompt / statistics.median(seconds), gaps / decoding if gaps else 0.0, first)


def _token_times(engine: LogitsEngine, prompt: tuple[int, ...]) -> list[float]:
    """The start, then the time of each generated token, in seconds."""
    times = [time.perf_counter()]
    for _ in engine.generate(prompt, GenerationSettings(max_tokens=DECODE_TOKENS, temperature=0.0)):
        times.append(time.perf_counter())
    return times
