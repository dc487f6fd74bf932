"""Question files of the user's own: what is read, and what is refused with the row's name."""

import json
from pathlib import Path

import pytest

from bench.tasks.local import read_samples
from medlite.errors import TaskError

ROW = {"id": "r1", "question": "Which?", "options": {"A": "x", "B": "y"}, "answer": "B", "subject": "s"}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_row_becomes_a_sample(tmp_path: Path) -> None:
    (sample,) = read_samples(write(tmp_path / "q.jsonl", {**ROW, "context": ["one", "two"]}))
    assert (sample.id, sample.options, sample.answer, sample.subject) == ("r1", ("x", "y"), 1, "s")
    assert sample.context == "one\ntwo"


def test_csv_and_jsonl_give_the_same_samples(tmp_path: Path) -> None:
    table = tmp_path / "q.csv"
    table.write_text("id,question,A,B,answer,subject\nr1,Which?,x,y,B,s\n")
    assert read_samples(table) == read_samples(write(tmp_path / "q.jsonl", ROW))


def test_parquet_gives_the_same_samples(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra [data]")
    from pyarrow import parquet

    flat = {"id": "r1", "question": "Which?", "A": "x", "B": "y", "answer": "B", "subject": "s"}
    parquet.write_table(pyarrow.Table.from_pylist([flat]), tmp_path / "q.parquet")
    assert read_samples(tmp_path / "q.parquet") == read_samples(write(tmp_path / "q.jsonl", ROW))


HOSTILE = {
    "no key": ({**ROW, "answer": None}, "line 2 .id r1.: answer holds nothing"),
    "answer outside the options": ({**ROW, "answer": "C"}, "line 2 .id r1.: answer 'C' is not among the options A, B"),
    "duplicate options": ({**ROW, "options": {"A": "x", "B": " x "}}, "options A and B are the same text"),
    "one option": ({**ROW, "options": {"A": "x"}}, "2 to 26 lettered texts were needed"),
    "a gap in the letters": ({**ROW, "options": {"A": "x", "C": "y"}, "answer": "C"}, "lettered A, C, AB was needed"),
    "an empty option": ({**ROW, "options": {"A": "x", "B": " "}}, "option B holds ' '"),
    "options as text": ({**ROW, "options": "A or B"}, "options hold A or B"),
    "no question": ({k: v for k, v in ROW.items() if k != "question"}, "line 2: question holds nothing"),
    "no id": ({**ROW, "id": ""}, "line 2: id holds ''"),
    "a list for a row": ([1, 2], "line 2: found list, an object was needed"),
    "an id twice": ({**ROW, "id": "first"}, "line 2: id 'first' stands already in .* line 1"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_row_that_cannot_be_scored_is_named(tmp_path: Path, name: str) -> None:
    row, message = HOSTILE[name]
    with pytest.raises(TaskError, match=message):
        read_samples(write(tmp_path / "q.jsonl", {**ROW, "id": "first"}, row))


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b"\n\n{broken\n")
    with pytest.raises(TaskError, match="line 3: not JSON"):
        read_samples(path)


def test_a_line_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(TaskError, match="line 1"):
        read_samples(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("q.jsonl", "", "holds no question"),
        ("q.txt", "x", "unknown kind of question file '.txt'"),
        ("q.csv", "id,question,A,B,answer\n1,Which?,x,y,A,extra\n", "row 1: more cells than the header"),
        ("q.csv", 'id,question,A,B,answer\n1,"Which?,x,y,A\n', "no CSV"),
    ],
)
def test_a_file_that_holds_nothing_usable_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(TaskError, match=message):
        read_samples(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"gone.jsonl: no such file"):
        read_samples(tmp_path / "gone.jsonl")
