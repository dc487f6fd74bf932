"""MedQA-US: questions in the style of the United States Medical Licensing Examination, 4 or 5 options.

Source: Jin et al. 2021, What Disease does this Patient Have? (arXiv 2009.13081).
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.ask.prompts import question_letters_answer
from bench.ask.question import HubFile, Sample, Task
from bench.tasks.rows import checked, parse_json, read_jsonl, read_member, samples_of

FIVE_OPTIONS_MEMBER = "questions/US/test.jsonl"


def sample_of_four(row: Mapping[str, Any], number: int) -> Sample:
    """A row of the 4-option set: sent1, ending0 to ending3, label."""
    options = tuple(str(row[f"ending{i}"]) for i in range(4))
    return Sample(f"test-{number:05}", str(row["sent1"]), options, int(row["label"]), subject="")


def sample_of_five(row: Mapping[str, Any], number: int) -> Sample:
    """A row of the 5-option set: question, options by letter, answer_idx a letter, meta_info the exam step."""
    letters = sorted(row["options"])
    options = tuple(str(row["options"][letter]) for letter in letters)
    return Sample(
        f"test-{number:05}",
        str(row["question"]),
        options,
        letters.index(str(row["answer_idx"])),
        subject=str(row.get("meta_info", "")),
    )


def read_four(paths: Sequence[Path]) -> list[Sample]:
    """The 1,273 test questions with 4 options, in the order of the file."""
    return checked(samples_of(read_jsonl(paths[0]), sample_of_four, "a MedQA row"))


def read_five(paths: Sequence[Path]) -> list[Sample]:
    """The 1,273 test questions with 5 options, from inside the authors' archive."""
    lines = io.BytesIO(read_member(paths[0], FIVE_OPTIONS_MEMBER)).readlines()
    rows = ((f"{paths[0]}:{FIVE_OPTIONS_MEMBER} line {n}", line) for n, line in enumerate(lines, start=1))
    parsed = ((where, parse_json(line, where)) for where, line in rows)
    return checked(samples_of(parsed, sample_of_five, "a MedQA row"))


MEDQA = Task(
    name="medqa",
    title="MedQA-US test, 4 options",
    n_samples=1273,
    licence="MIT (authors' repository); CC BY-SA 4.0 (hub copy)",
    source="GBaker/MedQA-USMLE-4-options-hf",
    files=(HubFile("GBaker/MedQA-USMLE-4-options-hf", "test.json", "17af9355ef89fba60de966eabaeba797c695f86e"),),
    read=read_four,
    build_prompt=question_letters_answer,
    harness_task="medqa_4options",
)

MEDQA_5 = Task(
    name="medqa_5",
    title="MedQA-US test, 5 options",
    n_samples=1273,
    licence="MIT (authors' repository)",
    source="bigbio/med_qa",
    files=(HubFile("bigbio/med_qa", "data_clean.zip", "ddef95d268cdad413693d634279a9a679d468469"),),
    read=read_five,
    build_prompt=question_letters_answer,
    note="132 MB download; lm-evaluation-harness has no 5-option form, the prompt is medqa_4options' with E.",
)
