"""Rows of question files, and the checks that every sample passes whatever file it came from."""

import csv
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.ask.question import LETTERS, Sample
from medlite.errors import MissingExtraError, TaskError
from medlite.formats.json import decode_json

Row = tuple[str, Any]  # the row's name for errors ("FILE line 3"), the row


def read_jsonl(path: Path) -> Iterator[Row]:
    """Each line as JSON; empty lines are passed over."""
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if line.strip():
                where = f"{path} line {number}"
                yield where, parse_json(line, where)


def read_csv(path: Path) -> Iterator[Row]:
    """Each row as an object keyed by the header."""
    with path.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.DictReader(handle, strict=True)
        try:
            for number, row in enumerate(reader, start=1):
                if None in row:
                    raise TaskError(f"{path} row {number}: more cells than the header has columns")
                yield f"{path} row {number}", row
        except (csv.Error, UnicodeDecodeError) as error:
            raise TaskError(f"{path} near line {reader.line_num}: no CSV: {error}") from error


def read_parquet(path: Path) -> Iterator[Row]:
    """Each row as an object. Needs the extra [data]."""
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


def read_member(path: Path, suffix: str) -> bytes:
    """The one member of the zip file `path` whose name ends in `suffix`. Nothing is unpacked to the disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(suffix) and "__MACOSX" not in name]
            if len(names) != 1:
                raise TaskError(f"{path}: {len(names)} members end in {suffix}, one was needed")
            return archive.read(names[0])
    except (zipfile.BadZipFile, OSError) as error:
        raise TaskError(f"{path}: no zip file: {error}") from error


def parse_json(raw: bytes, where: str) -> Any:
    """`raw` as JSON. Raises TaskError naming `where`."""
    value: Any = decode_json(raw, object, TaskError, where=where)
    return value


def samples_of(rows: Iterable[Row], parse: Callable[[Any, int], Sample], kind: str) -> Iterator[tuple[str, Sample]]:
    """Each row's name with its sample. parse: (row, number from 0) -> sample. Raises TaskError for a row that is not
    `kind` ("a MedQA row")."""
    for number, (where, row) in enumerate(rows):
        try:
            yield where, parse(row, number)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise TaskError(f"{where}: not {kind}: {error!r}") from error


def checked(samples: Iterable[tuple[str, Sample]], *, duplicate_options: str = "error") -> list[Sample]:
    """The samples, if each can be scored without guessing and no id stands twice. Raises TaskError naming the row.

    duplicate_options "kept": the published set has such rows, and without them n would differ from everybody else's.
    """
    kept: list[Sample] = []
    seen: dict[str, str] = {}
    for where, sample in samples:
        named = f"{where} (id {sample.id})"
        if not 0 <= sample.answer < len(sample.options):
            raise TaskError(f"{named}: answer {sample.answer} of {len(sample.options)} options")
        texts = (("id", sample.id), ("question", sample.question), *zip(LETTERS, sample.options, strict=False))
        for what, text in texts:
            if not text.strip():
                raise TaskError(f"{named}: {what} is empty")
        if duplicate_options == "error":
            check_distinct(sample.options, named)
        if sample.id in seen:
            raise TaskError(f"{where}: id {sample.id!r} stands already in {seen[sample.id]}")
        seen[sample.id] = where
        kept.append(sample)
    return kept


def check_distinct(options: Sequence[str], where: str) -> None:
    """Raise TaskError if two options are the same text, spacing aside."""
    first: dict[str, int] = {}
    for i, option in enumerate(options):
        plain = " ".join(option.split())
        if plain in first:
            letters = f"{LETTERS[first[plain]]} and {LETTERS[i]}"
            raise TaskError(
                f"{where}: options {letters} are the same text {plain:.60}",
                hint="a question with two equal options has no single right letter: correct the row",
            )
        first[plain] = i
