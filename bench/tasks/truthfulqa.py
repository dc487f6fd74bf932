"""TruthfulQA multiple choice: one true answer among false ones (MC1), or several true ones (MC2).

Source: Lin et al. 2022, TruthfulQA (arXiv 2109.07958).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.ask.prompts import truthfulqa
from bench.ask.question import HubFile, Sample, Task
from bench.tasks.rows import checked, read_parquet, samples_of

# fmt: off
FILE = HubFile("truthfulqa/truthful_qa", "multiple_choice/validation-00000-of-00001.parquet",
               "741b8276f2d1982aa3d5b832d3ee81ed3b896490")
# fmt: on


def to_sample(row: Mapping[str, Any], number: int, *, targets: str) -> Sample:
    """A row: question, and mc1_targets or mc2_targets with choices and labels (1: true)."""
    choices, labels = row[targets]["choices"], row[targets]["labels"]
    true = tuple(i for i, label in enumerate(labels) if label == 1)
    return Sample(
        f"truthfulqa-{number:03}",
        str(row["question"]),
        tuple(str(choice) for choice in choices),
        true[0],
        true_options=true if targets == "mc2_targets" else (),
    )


def _read(paths: Sequence[Path], targets: str) -> list[Sample]:
    samples = samples_of(read_parquet(paths[0]), partial(to_sample, targets=targets), "a TruthfulQA row")
    return checked(samples, duplicate_options="kept")


MC1 = Task(
    name="truthfulqa_mc1",
    title="TruthfulQA MC1: one true option",
    n_samples=817,
    licence="Apache-2.0",
    source=FILE.repo,
    files=(FILE,),
    read=lambda paths: _read(paths, "mc1_targets"),
    build_prompt=truthfulqa,
    harness_task="truthfulqa_mc1",
    duplicate_options="kept",
)

MC2 = replace(
    MC1,
    name="truthfulqa_mc2",
    title="TruthfulQA MC2: probability on true options",
    read=lambda paths: _read(paths, "mc2_targets"),
    harness_task="truthfulqa_mc2",
    measure="true_mass",
)
