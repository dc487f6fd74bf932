"""Question files in medlite's common form: JSON lines, CSV or Parquet.

JSON lines, one object a line:
    {"id": "q1", "question": "...", "options": {"A": "...", "B": "..."}, "answer": "A"}
CSV and Parquet, one row a question: columns id, question, answer, A, B, C, ...
Optional in all: subject, context.

A row that cannot be scored without guessing is an error that names the file and the row: no row is ever skipped.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.prompts import question_letters_answer
from bench.task import LETTERS, Sample, Task
from medlite.errors import MissingExtraError, TaskError

MAX_OPTIONS = len(LETTERS)


def read_samples(path: Path, *, duplicate_options: str = "error") -> list[Sample]:
    """Every sample of `path`, in file order. Raises TaskError naming the first row that is not in the common form."""
    rows = ROW_READERS.get(path.suffix.lower())
    if rows is None:
        raise TaskError(f"{path}: unknown kind of question file {path.suffix!r}", hint=f"use {', '.join(ROW_READERS)}")
    if not path.is_file():
        raise TaskError(f"{path}: no such file")
    samples: list[Sample] = []
    seen: dict[str, str] = {}
    for where, row in rows(path):
        sample = sample_from_row(row, where, duplicate_options=duplicate_options)
        if sample.id in seen:
            raise TaskError(f"{where}: id {sample.id!r} stands already in {seen[sample.id]}")
        seen[sample.id] = where
        samples.append(sample)
    if not samples:
        raise TaskError(f"{path}: holds no question")
    return samples


def sample_from_row(row: Any, where: str, *, duplicate_options: str = "error") -> Sample:
    """One sample from one row in the common form. `where` names file and row in the errors."""
    if not isinstance(row, Mapping):
        raise TaskError(f"{where}: found {type(row).__name__}, an object was needed")
    sample_id, question = _text(row, "id", where), _text(row, "question", where)
    where = f"{where} (id {sample_id})"
    letters, options = _options(row, where)
    if duplicate_options == "error":
        _check_distinct(letters, options, where)
    answer = _text(row, "answer", where).strip()
    if answer not in letters:
        raise TaskError(f"{where}: answer {answer!r} is not among the options {', '.join(letters)}")
    context = row.get("context") or ""
    if isinstance(context, list):
        context = "\n".join(str(part) for part in context)
    return Sample(
        id=sample_id, question=question, options=options, answer=letters.index(answer), context=str(context),
        subject=str(row.get("subject") or ""),
    )


def local_task(path: Path) -> Task:
    """A task over the user's own file, prompted like medqa_4options."""
    return Task(
        name=f"local:{path.name}", title=f"Questions of {path.name}", n_samples=0, licence="the user's own",
        source=path.name, read=lambda _: read_samples(path), build_prompt=question_letters_answer,
    )


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and key == "id":
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        found = "nothing" if value is None else repr(value)
        raise TaskError(f"{where}: {key} holds {found}, a text was needed")
    return value


def _options(row: Mapping[str, Any], where: str) -> tuple[list[str], tuple[str, ...]]:
    """Letters and texts of the options. Letters must be A, B, C, ... without a gap, or prompts would misname them."""
    options = row.get("options")
    if options is None:
        options = {letter: row[letter] for letter in LETTERS if row.get(letter) not in (None, "")}
    if not isinstance(options, Mapping) or not 2 <= len(options) <= MAX_OPTIONS:
        raise TaskError(f"{where}: options hold {options!s:.80}, 2 to {MAX_OPTIONS} lettered texts were needed")
    letters = sorted(options)
    if letters != list(LETTERS[: len(letters)]):
        raise TaskError(f"{where}: options are lettered {', '.join(letters)}, {LETTERS[: len(letters)]} was needed")
    for letter in letters:
        if not isinstance(options[letter], str) or not options[letter].strip():
            raise TaskError(f"{where}: option {letter} holds {options[letter]!r}, a text was needed")
    return letters, tuple(options[letter] for letter in letters)


def _check_distinct(letters: Sequence[str], options: Sequence[str], where: str) -> None:
    first: dict[str, str] = {}
    for letter, option in zip(letters, options, strict=True):
        plain = " ".join(option.split())
        if plain in first:
            raise TaskError(f"{where}: options {first[plain]} and {letter} are the same text {plain:.60}",
                            hint="a question with two equal options has no single right letter: correct the row")
        first[plain] = letter


def _rows_of_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                yield f"{path} line {number}", json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise TaskError(f"{path} line {number}: no JSON: {error}") from error


def _rows_of_csv(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.DictReader(handle, strict=True)
        try:
            for number, row in enumerate(reader, start=1):
                if None in row:
                    raise TaskError(f"{path} row {number}: more cells than the header has columns")
                yield f"{path} row {number}", row
        except (csv.Error, UnicodeDecodeError) as error:
            raise TaskError(f"{path} near line {reader.line_num}: no CSV: {error}") from error


def rows_of_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of a Parquet file, each with its name for errors. Needs the extra [data]."""
    try:
        from pyarrow import ArrowInvalid, parquet  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data") from error
    try:
        table = parquet.read_table(path)
    except (ArrowInvalid, OSError) as error:
        raise TaskError(f"{path}: no Parquet file: {error}") from error
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"{path} row {number}", row


ROW_READERS = {".jsonl": _rows_of_jsonl, ".csv": _rows_of_csv, ".parquet": rows_of_parquet}
