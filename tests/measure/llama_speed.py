"""Compare the llama.cpp engine with llama-bench, or guessing ahead with plain decoding, turn by turn in one run.

    python -m tests.measure.llama_speed FILE.gguf --llama-bench PROGRAM [--rounds 6] [--threads N]
    python -m tests.measure.llama_speed FILE.gguf --draft lookup|DRAFT.gguf [--prompts FILE] [--rounds 6]
    python -m tests.measure.llama_speed FILE.gguf --guesses 1,0.8,0.6 [--rounds 6]
    python -m tests.measure.llama_speed FILE.gguf --trial [--rounds 6]

llama-bench: both read the same number of random tokens and write as many, greedily, with their own defaults and the
same number of threads, in turn. The engine's figures hold all it does for a token: sampling, log-probability, text.
Two ratios: of the fastest measurements, which other programs disturb least, and the median of the rounds' ratios.
Draft: each prompt (a line; \\n in it is a line break) is answered plainly and with guesses, in turn; the ratio is of
tokens per second. Guesses: the same with guesses of which that share is right, taken from the plain reply: what reading
ahead gains on this machine by the quality of its guesses, whatever the text. Trial: what it costs to load a file
in a child first. Only ratios of one run mean something.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medlite.devices import cpu_name, physical_cores
from medlite.engines import open_engine
from medlite.engines.engine import Engine, GenerationSettings, OpenSettings, ReadsAhead
from medlite.engines.llamacpp.drafts import GuessLength
from medlite.engines.llamacpp.engine import LlamaCppEngine
from medlite.engines.llamacpp.guard import try_load
from medlite.errors import EngineError
from medlite.native import library

N_PROMPT, N_DECODE = 512, 128  # llama-bench's defaults
BENCH_SECONDS = 480


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.measure.llama_speed", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--llama-bench", type=Path, metavar="PROGRAM")
    parser.add_argument("--draft", metavar="FILE|lookup")
    parser.add_argument("--guesses", metavar="SHARES", help="shares of right guesses, with commas between")
    parser.add_argument("--trial", action="store_true")
    parser.add_argument("--prompts", type=Path, help="one prompt a line; default: two for the demo model")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--repeat", type=int, default=1, help="measurements of each within a round")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--prompt-tokens", type=int, default=N_PROMPT)
    few = "to write in one measurement; fewer find a quiet moment more easily"
    parser.add_argument("--tokens", type=int, default=N_DECODE, help=few)
    options = parser.parse_args()
    if not (options.llama_bench or options.draft or options.trial or options.guesses):
        parser.error("--llama-bench PROGRAM, --draft FILE|lookup, --guesses SHARES or --trial")
    if options.trial:
        trials(options.file, options.rounds)
        return
    settings = OpenSettings(device="cpu", n_threads=options.threads)
    with closing(open_engine(options.file, settings, engine="llamacpp")) as engine:
        print(f"{options.file.name}, {options.threads} threads, {cpu_name()}, {time.strftime('%Y-%m-%d')}")
        if options.llama_bench:
            sizes = options.threads, options.repeat, options.prompt_tokens, options.tokens
            against_llama_bench(engine, LlamaBench(options.llama_bench, options.file, *sizes), options.rounds)
        if options.guesses:
            shares = [float(share) for share in options.guesses.split(",")]
            by_quality_of_guesses(engine, shares, options.rounds, options.tokens)
        if options.draft:
            stated = options.prompts.read_text("utf-8").splitlines() if options.prompts else REPEATING
            texts = [text.replace("\\n", "\n") for text in stated if text.strip()]
            with_and_without_draft(engine, options.draft, texts, options.rounds, options.tokens)


# --- against llama-bench ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LlamaBench:
    """What llama-bench is asked, and the engine alike: n_repeat times n_prompt tokens to read and n_decode to write."""

    program: Path
    path: Path
    n_threads: int
    n_repeat: int
    n_prompt: int
    n_decode: int

    def run(self) -> tuple[list[float], list[float]]:
        """Tokens per second of each repetition, reading and writing. Raises EngineError if it fails."""
        command = [str(self.program), "-m", str(self.path), "-p", str(self.n_prompt), "-n", str(self.n_decode)]
        command += ["-r", str(self.n_repeat), "-t", str(self.n_threads), "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BENCH_SECONDS, check=False)
        if done.returncode:
            raise EngineError(f"{self.program}: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
        rows = {("prefill" if row["n_gen"] == 0 else "decode"): row["samples_ts"] for row in json.loads(done.stdout)}
        return rows["prefill"], rows["decode"]


def against_llama_bench(engine: Engine, bench: LlamaBench, n_rounds: int) -> None:
    """Print tokens per second of both and their ratio, for reading a prompt and for writing."""
    bench = replace(bench, n_prompt=min(bench.n_prompt, engine.info.n_context - 1))
    settle(engine)
    ours: list[tuple[list[float], list[float]]] = []
    theirs: list[tuple[list[float], list[float]]] = []
    for number in range(n_rounds):
        for turn in ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours"):
            if turn == "theirs":
                theirs.append(bench.run.run())
            else:
                seeds = range(number * bench.n_repeat, (number + 1) * bench.n_repeat)
                prefill = [prefill_speed(engine, bench.n_prompt, seed) for seed in seeds]
                ours.append((prefill, [decode_speed(engine, bench.n_decode, seed) for seed in seeds]))
    for i, name in enumerate((f"prefill {bench.n_prompt}", f"decode {bench.n_decode}")):
        ratios = [statistics.median(a[i]) / statistics.median(b[i]) for a, b in zip(ours, theirs, strict=True)]
        best, their_best = max(max(a[i]) for a in ours), max(max(b[i]) for b in theirs)
        print(
            f"{name}: medlite {best:.1f} tokens/s at best, llama-bench {their_best:.1f}, ratio "
            f"{best / their_best:.3f}; of {n_rounds} rounds: median ratio {statistics.median(ratios):.3f}, "
            f"{min(ratios):.3f} to {max(ratios):.3f}",
            flush=True,
        )


def settle(engine: Engine) -> None:
    """Read and write a little, so that pages and threads are there."""
    list(engine.generate(random_prompt(engine, 32, 0), GenerationSettings(max_tokens=8)))


def random_prompt(engine: Engine, n_tokens: int, seed: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, engine.info.n_vocab, n_tokens)]


def prefill_speed(engine: Engine, n_prompt: int, seed: int) -> float:
    """Tokens per second of reading a prompt up to its first token."""
    prompt = random_prompt(engine, n_prompt, seed)
    begin = time.perf_counter()
    list(engine.generate(prompt, GenerationSettings(max_tokens=1)))
    return n_prompt / (time.perf_counter() - begin)


def decode_speed(engine: Engine, n_decode: int, seed: int) -> float:
    """Tokens per second of writing n_decode tokens behind one token; short replies add up."""
    n_tokens, seconds, attempt = 0, 0.0, 0
    while n_tokens < n_decode and attempt < n_decode:
        prompt = random_prompt(engine, 1, 100_000 + 1000 * seed + attempt)
        times = [
            time.perf_counter() for _ in engine.generate(prompt, GenerationSettings(max_tokens=n_decode + 1 - n_tokens))
        ]
        n_tokens, seconds, attempt = n_tokens + len(times) - 1, seconds + times[-1] - times[0], attempt + 1
    if not n_tokens:
        raise EngineError("the model ends every reply at once: its speed cannot be measured")
    return n_tokens / seconds


# --- guessing ahead --------------------------------------------------------------------------------------------------

# Read as plain text, the demo model goes on with more questions and answers, which resemble each other.
REPEATING = ("What class of drug is metformin?", "Name the antidote for paracetamol.")


def with_and_without_draft(engine: Engine, draft: str, texts: Sequence[str], n_rounds: int, n_tokens: int) -> None:
    """Print each text's ratio of tokens per second, and the share of guesses that were right."""
    if not isinstance(engine, ReadsAhead):
        raise EngineError(f"the engine {engine.info.engine} does not guess ahead")
    settings = GenerationSettings(max_tokens=n_tokens)
    settle(engine)
    for text in texts:
        prompt = engine.tokenize(text)
        ratios, n_written = [], 0
        for _ in range(n_rounds):
            engine.set_draft(None)
            plain = reply_speed(engine, prompt, settings)
            engine.set_draft(draft if draft == "lookup" else Path(draft))
            ahead = reply_speed(engine, prompt, settings)
            n_written = len(ahead[1])
            ratios.append(ahead[0] / plain[0])
            same = "the same tokens" if ahead[1] == plain[1] else "other tokens"
        counts = engine.draft_counts
        print(
            f"{text[:40]!r}...: {n_written} tokens, {statistics.median(ratios):.2f} x plain "
            f"({min(ratios):.2f} to {max(ratios):.2f}), {counts.n_accepted} of {counts.n_drafted} guesses "
            f"right, {same}",
            flush=True,
        )


def reply_speed(engine: Engine, prompt: list[int], settings: GenerationSettings) -> tuple[float, list[int]]:
    """Tokens per second behind the first token of a greedy reply, and the reply."""
    found = [(time.perf_counter(), step.token) for step in engine.generate(prompt, settings)]
    seconds = found[-1][0] - found[0][0]
    return (len(found) - 1) / seconds if seconds else 0.0, [token for _, token in found]


class Replay:
    """Guesses from a reply that is known, each right with the same probability: a drafter of a known quality."""

    def __init__(self, n_prompt: int, reply: Sequence[int], share: float) -> None:
        self._n_prompt, self._reply, self._share = n_prompt, reply, share
        self._length, self._random = GuessLength(), np.random.default_rng(0)

    def propose(self, tokens: Sequence[int], n_most: int) -> list[int]:
        n = self._length.before(tokens, n_most)
        known = self._reply[len(tokens) - self._n_prompt :][:n]
        right = self._random.random(len(known)) < self._share
        return self._length.after(
            tokens, [token if ok else (token + 1) % 256 for token, ok in zip(known, right, strict=True)]
        )

    def free(self) -> None:
        pass


def by_quality_of_guesses(engine: Engine, shares: Sequence[float], n_rounds: int, n_tokens: int) -> None:
    """Print the gain over plain decoding for guesses of each quality."""
    if not isinstance(engine, LlamaCppEngine):
        raise EngineError(f"the engine {engine.info.engine} does not guess ahead")
    settle(engine)
    prompt, settings = random_prompt(engine, 16, 0), GenerationSettings(max_tokens=n_tokens)
    plain: list[float] = []
    ahead: dict[float, list[float]] = {share: [] for share in shares}
    counts = {}
    for _ in range(n_rounds):
        engine.set_draft(None)
        speed, reply = reply_speed(engine, prompt, settings)
        plain.append(speed)
        for share in shares:
            engine.set_draft(Replay(len(prompt), reply, share))
            ahead[share].append(reply_speed(engine, prompt, settings)[0])
            counts[share] = engine.draft_counts
    for share in shares:
        ratios = [a / b for a, b in zip(ahead[share], plain, strict=True)]
        n_right, n_guessed = counts[share].n_accepted, counts[share].n_drafted
        print(
            f"{share:.0%} of guesses right: {max(ahead[share]) / max(plain):.2f} x plain at best, median "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); {n_right} of {n_guessed} "
            f"guesses kept, {len(reply)} tokens",
            flush=True,
        )


# --- loading ---------------------------------------------------------------------------------------------------------


def trials(path: Path, n_rounds: int) -> None:
    """Print what the trial of a file in a child costs."""
    library()
    seconds = []
    for _ in range(n_rounds):
        begin = time.perf_counter()
        try_load(path)
        seconds.append(time.perf_counter() - begin)
    print(f"{path.name}: tried in a child in {statistics.median(seconds):.3f} s, once for each file")


if __name__ == "__main__":
    main()
