"""MedMCQA: questions of Indian medical entrance examinations, 4 options, the labelled validation split.

Source: Pal et al. 2022, MedMCQA (PMLR 174:248).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.ask.prompts import question_choices_answer
from bench.ask.question import HubFile, Sample, Task
from bench.tasks.rows import checked, read_parquet, samples_of


def to_sample(row: Mapping[str, Any], _number: int) -> Sample:
    """A row: id, question, opa to opd, cop (0 to 3), subject_name."""
    options = tuple(str(row[f"op{letter}"]) for letter in "abcd")
    return Sample(str(row["id"]), str(row["question"]), options, int(row["cop"]), subject=str(row["subject_name"]))


def read(paths: Sequence[Path]) -> list[Sample]:
    """The 4,183 validation questions; 21 of them have two equal options and are kept."""
    return checked(samples_of(read_parquet(paths[0]), to_sample, "a MedMCQA row"), duplicate_options="kept")


TASK = Task(
    name="medmcqa",
    title="MedMCQA validation",
    n_samples=4183,
    licence="MIT (authors' repository); Apache-2.0 (hub copy)",
    source="openlifescienceai/medmcqa",
    files=(
        HubFile(
            "openlifescienceai/medmcqa",
            "data/validation-00000-of-00001.parquet",
            "91c6572c454088bf71b679ad90aa8dffcd0d5868",
        ),
    ),
    read=read,
    build_prompt=question_choices_answer,
    harness_task="medmcqa",
    duplicate_options="kept",
    note="21 questions have two options of the same text; they are kept, as everybody keeps them.",
)
