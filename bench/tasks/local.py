"""Question files in medlite's common form: JSON lines, CSV or Parquet.

JSON lines, one object a line:
    {"id": "q1", "question": "...", "options": {"A": "...", "B": "..."}, "answer": "A"}
CSV and Parquet, one row a question: columns id, question, answer, A, B, C, ...
Optional in all: subject, context; in JSON lines also "true_options": ["A", "C"] where several are right.

A row that cannot be scored without guessing is an error that names the file and the row: no row is ever skipped.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.ask.prompts import question_letters_answer
from bench.ask.question import LETTERS, Sample, Task
from bench.tasks.rows import checked, read_csv, read_jsonl, read_parquet
from medlite.errors import TaskError

READERS = {".jsonl": read_jsonl, ".csv": read_csv, ".parquet": read_parquet}


def read_samples(path: Path, *, duplicate_options: str = "error") -> list[Sample]:
    """Every sample of `path`, in file order. Raises TaskError naming the first row that is not in the common form."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise TaskError(f"{path}: unknown kind of question file {path.suffix!r}", hint=f"use {', '.join(READERS)}")
    if not path.is_file():
        raise TaskError(f"{path}: no such file")
    rows = ((where, sample_from_row(row, where)) for where, row in reader(path))
    samples = checked(rows, duplicate_options=duplicate_options)
    if not samples:
        raise TaskError(f"{path}: holds no question")
    return samples


def sample_from_row(row: Any, where: str) -> Sample:
    """One sample from one row in the common form. `where` names file and row in the errors."""
    if not isinstance(row, Mapping):
        raise TaskError(f"{where}: found {type(row).__name__}, an object was needed")
    sample_id, question = _text(row, "id", where), _text(row, "question", where)
    where = f"{where} (id {sample_id})"
    letters, options = _options(row, where)
    context = row.get("context") or ""
    if isinstance(context, list):
        context = "\n".join(str(part) for part in context)
    true_options = row.get("true_options") or []
    if not isinstance(true_options, list):
        raise TaskError(f"{where}: true_options hold {true_options!r}, a list of letters was needed")
    return Sample(
        id=sample_id,
        question=question,
        options=options,
        answer=_index(letters, _text(row, "answer", where).strip(), where),
        context=str(context),
        subject=str(row.get("subject") or ""),
        true_options=tuple(_index(letters, one, where) for one in true_options),
    )


def local_task(path: Path) -> Task:
    """A task over the user's own file, prompted like medqa_4options."""
    return Task(
        name=f"local:{path.name}",
        title=f"Questions of {path.name}",
        n_samples=0,
        licence="the user's own",
        source=path.name,
        read=lambda _: read_samples(path),
        build_prompt=question_letters_answer,
    )


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and key == "id":
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        found = "nothing" if value is None else repr(value)
        raise TaskError(f"{where}: {key} holds {found}, a text was needed")
    return value


def _index(letters: list[str], letter: object, where: str) -> int:
    if letter not in letters:
        raise TaskError(f"{where}: answer {letter!r} is not among the options {', '.join(letters)}")
    return letters.index(str(letter))


def _options(row: Mapping[str, Any], where: str) -> tuple[list[str], tuple[str, ...]]:
    """Letters and texts of the options. Letters must be A, B, C, ... without a gap, or prompts would misname them."""
    options = row.get("options")
    if options is None:
        options = {letter: row[letter] for letter in LETTERS if row.get(letter) not in (None, "")}
    if not isinstance(options, Mapping) or not 2 <= len(options) <= len(LETTERS):
        raise TaskError(f"{where}: options hold {options!s:.80}, 2 to {len(LETTERS)} lettered texts were needed")
    letters = sorted(options)
    if letters != list(LETTERS[: len(letters)]):
        raise TaskError(f"{where}: options are lettered {', '.join(letters)}, {LETTERS[: len(letters)]} was needed")
    for letter in letters:
        if not isinstance(options[letter], str) or not options[letter].strip():
            raise TaskError(f"{where}: option {letter} holds {options[letter]!r}, a text was needed")
    return letters, tuple(options[letter] for letter in letters)
