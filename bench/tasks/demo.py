"""The questions embedded in medlite: over the facts that the embedded demonstration model was trained on."""

from collections.abc import Sequence
from pathlib import Path

from bench.ask.prompts import question_letters_answer
from bench.ask.question import Sample, Task
from bench.tasks.local import read_samples
from medlite.demo import questions_path


def read(_paths: Sequence[Path]) -> list[Sample]:
    """The embedded samples; nothing is fetched."""
    return read_samples(questions_path())


TASK = Task(
    name="demo",
    title="Embedded questions of the demonstration model",
    n_samples=0,
    licence="Apache-2.0",
    source="medlite/demo",
    read=read,
    build_prompt=question_letters_answer,
    protocol="cloze",  # the model answers in words; it never learned to name an option's letter
    note="Says what low bits cost a tiny model; says nothing about medicine.",
)
