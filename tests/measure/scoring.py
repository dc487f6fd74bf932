"""How fast questions are scored, against the runtime's own reading speed and against lm-evaluation-harness.

    python -m tests.measure.scoring gguf FILE.gguf --data MEDQA.jsonl --llama-bench PROGRAM [--limit 100] [--threads N]
        [--shots MMLU_DEV.jsonl --n-shots 5]  [--harness-url URL --harness-python PYTHON --harness-items 5]
    python -m tests.measure.scoring torch CHECKPOINT --data MEDQA.jsonl [--limit 40] [--threads N]

gguf: the wall time of scoring against (tokens that remain when every shared beginning is read once) / (llama-bench's
prefill speed); the target is a ratio of at most 1/0.85. A machine's speed drifts, so scoring is halted --pauses times
for llama-bench to run, and the mean of its seconds a token counts. With --harness-url the harness's model `gguf` asks a
running llama-cpp-python server (--logits_all true) over the same file the first few of the same prompts.
torch: our torch engine and the harness's `hf` on the same prompts, in turn. Files are in medlite's common form.
Only ratios of one run mean something.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from bench.ask.question import Prompt, Sample
from bench.run.artifacts import look_at
from bench.run.measure import draw, score
from bench.score.scoring import encode, plan_requests
from bench.settings import CONTEXT_TOKENS, RunSettings
from bench.tasks import find_task
from bench.tasks.fetch import first_of_each_subject
from bench.tasks.local import read_samples
from medlite.devices import cpu_name, physical_cores
from medlite.engines import open_engine
from medlite.engines.engine import Engine, OpenSettings

TARGET_RATIO = 1 / 0.85
N_PREFILL = 512  # llama-bench's default
Items = list[tuple[Sample, Prompt]]

# Runs in the harness's own environment: prompts on stdin, seconds on stdout.
HARNESS_GGUF = """
import json, sys, time, types
from lm_eval.models.gguf import GGUFLM
pairs = json.load(sys.stdin)
model = GGUFLM(base_url=sys.argv[1])
started = time.perf_counter()
found = model.loglikelihood([types.SimpleNamespace(args=tuple(pair)) for pair in pairs], disable_tqdm=True)
print(json.dumps({"seconds": time.perf_counter() - started, "n": len(found)}))
"""


def read_items(data: Path, shots: Path | None, n_shots: int, limit: int, seed: int) -> Items:
    """`limit` questions with their prompts: medqa_4options' form, or mmlu's with n_shots solved ones of the subject."""
    drawn = draw(read_samples(data, duplicate_options="kept"), limit, seed)
    if shots is None:
        build = find_task("medqa").build_prompt
        return [(sample, build(sample, [])) for sample in drawn]
    build = find_task("mmlu_medical").build_prompt
    solved = first_of_each_subject(read_samples(shots, duplicate_options="kept"), n_shots)
    return [(sample, build(sample, [one for one in solved if one.subject == sample.subject])) for sample in drawn]


def tokens_left(engine: Engine, items: Items) -> tuple[int, int]:
    """Tokens of all sequences that scoring needs, and how many remain if every shared beginning is read once."""
    sequences = sorted(
        {request.tokens for _, prompt in items for request in plan_requests(encode(engine.tokenize, prompt)).requests}
    )
    n_all = sum(len(sequence) for sequence in sequences)
    n_left = len(sequences[0])
    for before, sequence in itertools.pairwise(sequences):
        shared = next(
            (i for i, (a, b) in enumerate(zip(before, sequence, strict=False)) if a != b),
            min(len(before), len(sequence)),
        )
        n_left += len(sequence) - shared
    return n_all, n_left


def prefill_seconds(program: Path, path: Path, n_threads: int) -> float:
    """Seconds a token that llama-bench takes to read."""
    command = [str(program), "-m", str(path), "-p", str(N_PREFILL), "-n", "0", "-t", str(n_threads)]
    done = subprocess.run([*command, "-r", "1", "-o", "json"], capture_output=True, text=True, check=True)
    return 1 / float(json.loads(done.stdout)[0]["avg_ts"])


def timed_with_pauses(
    steps: Iterator[object], n_steps: int, n_pauses: int, pause: Callable[[], float]
) -> tuple[float, list[float]]:
    """Seconds that `steps` take, and what `pause` gives at the start and after each n_pauses-th of them."""
    found, seconds = [pause()], 0.0
    for number in range(1, n_steps + 1):
        started = time.perf_counter()
        next(steps)
        seconds += time.perf_counter() - started
        if number % max(1, n_steps // n_pauses) == 0:
            found.append(pause())
    return seconds, found


def timed(action: Callable[[], object]) -> float:
    """Seconds that `action` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measure_gguf(options: argparse.Namespace) -> None:
    """Print scoring's seconds, the runtime's, their ratio; and the harness's seconds a question."""
    items = read_items(options.data, options.shots, options.n_shots, options.limit, options.seed)
    n_context = min(CONTEXT_TOKENS, look_at(options.file).n_context_trained or CONTEXT_TOKENS)
    settings = OpenSettings(device="cpu", n_threads=options.threads, n_context=n_context)
    with closing(open_engine(options.file, settings)) as engine:
        n_all, n_left = tokens_left(engine, items)
        seconds, per_token = timed_with_pauses(
            score(engine, items, RunSettings()),
            len(items),
            options.pauses,
            lambda: prefill_seconds(options.llama_bench, options.file, options.threads),
        )
    expected = n_left * statistics.mean(per_token)
    speeds = ", ".join(f"{1 / one:.0f}" for one in per_token)
    print(f"{len(items)} questions: {n_all:,} tokens, {n_left:,} when shared beginnings are read once")
    print(f"llama-bench reads {speeds} tok/s: {expected:.1f} s")
    print(f"scoring takes {seconds:.1f} s: ratio {seconds / expected:.3f}, target at most {TARGET_RATIO:.3f}")
    if options.harness_url:
        pairs = [[prompt.context, one] for _, prompt in items[: options.harness_items] for one in prompt.continuations]
        command = [options.harness_python, "-c", HARNESS_GGUF, options.harness_url]
        done = subprocess.run(command, input=json.dumps(pairs), capture_output=True, text=True, check=True)
        theirs = json.loads(done.stdout.splitlines()[-1])["seconds"] / min(options.harness_items, len(items))
        print(
            f"lm_eval gguf: {theirs:.2f} s a question over {options.harness_items}; here {seconds / len(items):.3f}: "
            f"{theirs * len(items) / seconds:.0f} times as fast"
        )


def measure_torch(options: argparse.Namespace) -> None:
    """Print seconds of our torch engine and of the harness's `hf`, two rounds in turn."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from medlite.engines.torch import open_torch_reference

    torch.set_num_threads(options.threads)
    items = read_items(options.data, options.shots, options.n_shots, options.limit, options.seed)
    instances = [
        Instance("loglikelihood", {}, (prompt.context, one), i)
        for i, (_, prompt) in enumerate(items)
        for one in prompt.continuations
    ]
    model = HFLM(pretrained=str(options.file), device="cpu", dtype="float32", batch_size=options.batch)
    engine = open_torch_reference(options.file, OpenSettings(device="cpu", dtype="float32", n_threads=options.threads))
    ours, theirs = [], []
    for _ in range(options.rounds):
        ours.append(timed(lambda: list(score(engine, items, RunSettings()))))
        theirs.append(timed(lambda: model.loglikelihood(instances, disable_tqdm=True)))
    print(
        f"{len(items)} questions: torch engine {min(ours):.1f} s, lm_eval hf (batch {options.batch}) "
        f"{min(theirs):.1f} s: {min(theirs) / min(ours):.2f} times as fast (best of {options.rounds} in turn)"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.measure.scoring",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name, action in (("gguf", measure_gguf), ("torch", measure_torch)):
        kind = kinds.add_parser(name)
        kind.set_defaults(action=action)
        kind.add_argument("file", type=Path)
        kind.add_argument("--data", type=Path, required=True)
        kind.add_argument("--shots", type=Path)
        kind.add_argument("--n-shots", type=int, default=5)
        kind.add_argument("--limit", type=int, default=100)
        kind.add_argument("--seed", type=int, default=0)
        kind.add_argument("--threads", type=int, default=physical_cores())
        if name == "gguf":
            kind.add_argument("--llama-bench", type=Path, required=True)
            kind.add_argument("--pauses", type=int, default=8)
            kind.add_argument("--harness-url")
            kind.add_argument("--harness-python", default="python3")
            kind.add_argument("--harness-items", type=int, default=5)
        else:
            kind.add_argument("--batch", type=int, default=8)
            kind.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args(arguments)
    print(f"{options.file.name}, {options.threads} threads, {cpu_name()}, {time.strftime('%Y-%m-%d')}")
    options.action(options)


if __name__ == "__main__":
    main()
