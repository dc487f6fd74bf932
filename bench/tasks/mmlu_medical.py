"""The six medical subjects of MMLU, 1,089 questions, of which 1,011 are distinct; 0 or 5 shots from dev.

Source: Hendrycks et al. 2021, Measuring Massive Multitask Language Understanding (arXiv 2009.03300). The choice of
six subjects is that of Singhal et al. 2023 (Med-PaLM, Nature 620:172).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from bench.ask.prompts import mmlu
from bench.ask.question import HubFile, Sample, Task
from bench.tasks.rows import checked, read_parquet, samples_of

REPO, REVISION = "cais/mmlu", "c30699e8356da336a370243923dbaf21066bb9fe"
# fmt: off
SUBJECTS = ("anatomy", "clinical_knowledge", "college_biology", "college_medicine", "medical_genetics",
            "professional_medicine")
# fmt: on


def to_sample(row: Mapping[str, Any], number: int, *, subject: str, split: str) -> Sample:
    """A row: question, choices (4), answer (0 to 3)."""
    options = tuple(str(choice) for choice in row["choices"])
    return Sample(f"{subject}-{split}-{number:03}", str(row["question"]), options, int(row["answer"]), subject=subject)


def read(paths: Sequence[Path]) -> list[Sample]:
    """The test questions, subject after subject. paths: one file a subject, in the order of SUBJECTS."""
    return _read(paths, "test")


def read_shots(paths: Sequence[Path]) -> list[Sample]:
    """The five dev questions of each subject."""
    return _read(paths, "dev")


def _read(paths: Sequence[Path], split: str) -> list[Sample]:
    samples = (
        samples_of(read_parquet(path), partial(to_sample, subject=subject, split=split), "an MMLU row")
        for subject, path in zip(SUBJECTS, paths, strict=True)
    )
    return checked(chain.from_iterable(samples), duplicate_options="kept")


TASK = Task(
    name="mmlu_medical",
    title="MMLU, six medical subjects",
    n_samples=1089,
    licence="MIT",
    source=REPO,
    files=tuple(HubFile(REPO, f"{subject}/test-00000-of-00001.parquet", REVISION) for subject in SUBJECTS),
    read=read,
    shots_files=tuple(HubFile(REPO, f"{subject}/dev-00000-of-00001.parquet", REVISION) for subject in SUBJECTS),
    read_shots=read_shots,
    build_prompt=mmlu,
    harness_task="mmlu_anatomy and five more",
    duplicate_options="kept",
    note="78 questions stand in two subjects; the pooled figures count each question once.",
)
