"""PubMedQA: yes, no or maybe, from the abstract. The official 500 test questions with expert labels.

Source: Jin et al. 2019, PubMedQA (arXiv 1909.06146).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.ask.prompts import abstract_question_answer
from bench.ask.question import HubFile, Sample, Task
from bench.tasks.rows import checked, parse_json, read_member, samples_of
from medlite.errors import TaskError

OPTIONS = ("yes", "no", "maybe")
MEMBER = "pqal_test_set.json"


def to_sample(entry: tuple[str, Mapping[str, Any]], _number: int) -> Sample:
    """An entry: PubMed id; QUESTION, CONTEXTS (paragraphs of the abstract without its conclusion), final_decision."""
    pmid, row = entry
    return Sample(
        pmid,
        str(row["QUESTION"]),
        OPTIONS,
        OPTIONS.index(str(row["final_decision"])),
        context="\n".join(str(part) for part in row["CONTEXTS"]),
    )


def read(paths: Sequence[Path]) -> list[Sample]:
    """The 500 test questions in the order of the authors' archive."""
    where = f"{paths[0]}:{MEMBER}"
    entries = parse_json(read_member(paths[0], MEMBER), where)
    if not isinstance(entries, Mapping):
        raise TaskError(f"{where}: found {type(entries).__name__}, an object keyed by PubMed id was needed")
    rows = ((f"{where} entry {pmid}", (pmid, row)) for pmid, row in entries.items())
    return checked(samples_of(rows, to_sample, "a PubMedQA row"))


TASK = Task(
    name="pubmedqa",
    title="PubMedQA labelled test, with abstract",
    n_samples=500,
    licence="MIT",
    source="bigbio/pubmed_qa",
    files=(HubFile("bigbio/pubmed_qa", "pqal.zip", "15578e80ef02c2c9636d33fdd7eb6b05b987ba60"),),
    read=read,
    build_prompt=abstract_question_answer,
    harness_task="pubmedqa",
)
