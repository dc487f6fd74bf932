"""Measure one open engine on one question set. `bench.run.run.run_task` does this in a process of its own."""

import hashlib
import json
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from bench.ask import chat_protocol
from bench.ask.orders import check_shown, in_orders
from bench.ask.prompts import PROTOCOLS
from bench.ask.question import Prompt, Sample, Task, samples_sha256
from bench.run import memory
from bench.run.child import OnProgress, Progress
from bench.run.meters import Costs, Meters
from bench.run.record import ArtifactFacts, Performance, RecordWriter, RunRecord, TaskFacts
from bench.run.speed import Speed, measure_speed
from bench.score.chat import score_chat
from bench.score.scoring import ScoredSample, score_samples
from bench.score.server import score_on_server
from bench.settings import Prompting, RunSettings
from medlite.devices import process_memory
from medlite.engines.engine import AnswersEngine, EngineInfo, LogitsEngine
from medlite.errors import TaskError
from medlite.version import __version__


@dataclass(frozen=True)
class Questions:
    """What will be asked: the drawn samples with their prompts, and the facts for the record."""

    items: tuple[tuple[Sample, Prompt], ...]
    facts: TaskFacts
    prompts_sha256: str


def prepare(
    task: Task,
    samples: Sequence[Sample],
    shots: Sequence[Sample],
    prompting: Prompting,
    template: chat_protocol.TemplateSource | None = None,
) -> Questions:
    """The questions of a run. template: of the model, which the chat protocol needs.

    Raises TaskError if the set has another size than the task's row says.
    """
    if task.n_samples and len(samples) != task.n_samples:
        raise TaskError(f"{task.name}: {len(samples)} samples, the published set has {task.n_samples}")
    if prompting.protocol not in PROTOCOLS:
        raise TaskError(f"{prompting.protocol}: no such protocol", hint=f"one of {', '.join(PROTOCOLS)}")
    drawn = chosen_samples(samples, prompting)
    build = PROTOCOLS[prompting.protocol] or task.build_prompt
    if prompting.protocol == "chat":
        build = chat_protocol.builder_for(template)
    items = tuple((sample, build(sample, [s for s in shots if s.subject == sample.subject])) for sample in drawn)
    if prompting.n_orders > 1:
        check_shown(items)
    facts = TaskFacts(
        name=task.name,
        source=task.source,
        revision=" ".join(dict.fromkeys(f.revision for f in task.files)),
        licence=task.licence,
        measure=task.measure,
        n_all=len(samples),
        n_samples=len(drawn),
        dataset_sha256=samples_sha256(drawn),
    )
    return Questions(items, facts, prompts_sha256([prompt for _, prompt in items]))


def chosen_samples(samples: Sequence[Sample], prompting: Prompting) -> list[Sample]:
    """The samples that are asked: drawn if there is a limit, each in several orders if that is asked for."""
    drawn = draw(samples, prompting.limit, prompting.seed)
    return in_orders(drawn, prompting.n_orders, prompting.seed) if prompting.n_orders > 1 else drawn


def draw(samples: Sequence[Sample], limit: int, seed: int) -> list[Sample]:
    """`limit` samples drawn without replacement, in file order; all if limit is 0 or too large."""
    if limit <= 0 or limit >= len(samples):
        return list(samples)
    kept = np.random.default_rng(seed).choice(len(samples), size=limit, replace=False)
    return [samples[i] for i in sorted(kept)]


def prompts_sha256(prompts: Sequence[Prompt]) -> str:
    """One digest for all prompts in order."""
    return hashlib.sha256("".join(prompt.sha256 for prompt in prompts).encode()).hexdigest()


@dataclass(frozen=True)
class Subject:
    """What is measured: its facts, its file (for the memory split; None behind a server), its key-value cache size,
    and the counters that were started before it was loaded, None for none."""

    facts: ArtifactFacts
    path: Path | None
    kv_cache_bytes: int = 0
    meters: Meters | None = None


@dataclass(frozen=True)
class Output:
    """Where the record goes. resume: continue an unfinished one; force: replace a finished one."""

    path: Path
    resume: bool = False
    force: bool = False


def measure(
    engine: LogitsEngine | AnswersEngine,
    subject: Subject,
    questions: Questions,
    settings: RunSettings,
    output: Output,
    on_progress: OnProgress | None = None,
) -> RunRecord:
    """The finished record of `questions` on `engine`, written to `output` as it goes."""
    report = on_progress or (lambda _: None)
    record = RunRecord(
        artifact=subject.facts,
        engine=engine_facts(engine.info),
        task=questions.facts,
        settings=settings,
        prompts_sha256=questions.prompts_sha256,
        environment=environment(),
    )
    with RecordWriter(output.path, record, resume=output.resume, force=output.force) as writer:
        samples = list(writer.done)
        left = questions.items[len(samples) :]
        speed = Speed()
        if settings.measure_speed and isinstance(engine, LogitsEngine):
            report(Progress("speed", 0, 1))
            speed = measure_speed(engine)
            report(Progress("speed", 1, 1))
        if subject.meters:
            subject.meters.zero()
        started = time.perf_counter()
        for sample in score(engine, left, settings):
            writer.add(sample)
            samples.append(sample)
            report(Progress("score", len(samples), len(questions.items)))
        seconds = time.perf_counter() - started
        costs = subject.meters.read(engine.info.device) if subject.meters else Costs()
        performance = Performance(
            **asdict(speed),
            **asdict(costs) | {"notes": (*_notes(settings, resumed=bool(writer.done)), *costs.notes)},
            load_seconds=engine.info.load_seconds,
            scoring_seconds=seconds,
            n_scored=len(left),
            n_prompt_tokens=sum(s.n_prompt_tokens for s in samples[len(writer.done) :]),
            peak_rss_bytes=process_memory().peak if subject.path else 0,
            weights_resident_bytes=memory.mapped_bytes_of(subject.path) if subject.path else 0,
            kv_cache_bytes=subject.kv_cache_bytes,
        )
        writer.finish(performance, tuple(samples))
    return replace(record, samples=tuple(samples), performance=performance, complete=True)


def score(
    engine: LogitsEngine | AnswersEngine, items: Sequence[tuple[Sample, Prompt]], settings: RunSettings
) -> Iterator[ScoredSample]:
    """Scored samples, one call of the engine a group of questions."""
    if settings.prompting.protocol == "chat" and not isinstance(engine, AnswersEngine):
        yield from score_chat(engine, items, reply_tokens=settings.reply_tokens)
        return
    step = settings.n_group or len(items) or 1
    for start in range(0, len(items), step):
        group = items[start : start + step]
        if isinstance(engine, AnswersEngine):
            yield from score_on_server(engine, group, settings)
        else:
            yield from score_samples(engine, group, max_tokens=settings.max_tokens)


def engine_facts(info: EngineInfo) -> dict[str, object]:
    """EngineInfo as JSON, without the load time: that is performance, and differs between equal runs."""
    facts = asdict(info)
    del facts["load_seconds"]
    plain: dict[str, object] = json.loads(json.dumps(facts))  # lists for tuples, as a reader of the record gets them
    return plain


def environment() -> dict[str, str]:
    """Versions and machine, for the record."""
    return {
        "medlite": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": platform.platform(),
        "machine": platform.machine(),
    }


def _notes(settings: RunSettings, *, resumed: bool) -> tuple[str, ...]:
    notes = [] if settings.measure_speed else ["prefill and decode speed were not measured"]
    if settings.server.url:
        notes.append("the model runs behind a server: its memory was not measured, its weights were not hashed")
    if resumed:
        notes.append("resumed: scoring time, energy and prompt tokens are of the last session only")
    return tuple(notes)
