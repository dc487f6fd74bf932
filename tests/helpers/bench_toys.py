"""Questions and records made by hand, for tests of bench."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.ask.prompts import question_letters_answer
from bench.ask.question import Sample
from bench.run.record import ArtifactFacts, Performance, RunRecord, TaskFacts
from bench.score.scoring import OK, TRUNCATED, ScoredSample
from bench.settings import settings_from_json

OPTIONS = ("biguanide", "sulfonylurea", "statin", "opioid")


def make_sample(number: int = 0, **changes: object) -> Sample:
    """A four-option question whose text holds its number."""
    fields = {
        "id": f"q{number}",
        "question": f"Which class is drug {number}?",
        "options": OPTIONS,
        "answer": number % 4,
        "subject": "drugs" if number % 2 else "classes",
    }
    return Sample(**{**fields, **changes})  # type: ignore[arg-type]


def write_questions(path: Path, n: int) -> None:
    """A question file of n samples in the common form."""
    options = dict(zip("ABCD", OPTIONS, strict=True))
    rows = [
        {"id": s.id, "question": s.question, "answer": "ABCD"[s.answer], "options": options}
        for s in map(make_sample, range(n))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_items(n: int) -> list[tuple[Sample, object]]:
    return [(sample, question_letters_answer(sample)) for sample in map(make_sample, range(n))]


def scored(
    number: int,
    prediction: int,
    *,
    answer: int = 0,
    confidence: float = 2.0,
    cluster: str = "",
    subject: str = "",
    status: str = OK,
) -> ScoredSample:
    """A sample answered with `prediction`, whose option leads by `confidence` nats."""
    logp = -3.0 * np.ones(4)
    if status == OK:
        logp[prediction] += confidence
    return ScoredSample(
        id=f"q{number}",
        prompt_sha256=f"p{number}",
        cluster=cluster or f"c{number}",
        subject=subject,
        option_log_probabilities=tuple(logp) if status == OK else (),
        prediction=prediction if status == OK else -1,
        answer=answer,
        status=status,
        n_prompt_tokens=10,
    )


def record_of(
    samples: Sequence[ScoredSample],
    *,
    recipe: str = "BF16",
    complete: bool = True,
    measure: str = "accuracy",
    **settings: object,
) -> RunRecord:
    """A finished record of these samples."""
    facts = ArtifactFacts(f"toy-{recipe}.gguf", "ab" * 32, "gguf", "toy", recipe, 1000, 2048, 16.0)
    task = TaskFacts("demo", "toy", "", "Apache-2.0", measure, len(samples), len(samples), "cd" * 32)
    return RunRecord(
        artifact=facts,
        engine={"engine": "toy", "device": "cpu"},
        task=task,
        settings=settings_from_json(settings, "test"),
        prompts_sha256="ef" * 32,
        environment={"python": "3.11"},
        samples=tuple(samples),
        complete=complete,
        performance=Performance(
            load_seconds=0.5,
            prefill_tokens_per_second=100.0,
            decode_tokens_per_second=10.0,
            scoring_seconds=2.0,
            n_scored=len(samples),
            peak_rss_bytes=10**8,
        ),
    )


def answers(predictions: Sequence[int], **changes: object) -> list[ScoredSample]:
    """One sample a prediction; the right answer is always 0. -1 makes a truncated sample."""
    return [
        scored(i, p, **({"status": TRUNCATED} if p < 0 else {}), **changes)  # type: ignore[arg-type]
        for i, p in enumerate(predictions)
    ]
