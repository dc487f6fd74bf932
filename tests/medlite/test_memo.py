"""What is remembered between runs: shared by processes, bounded, and never an error for what stands in the file."""

import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from medlite.errors import OutputError
from medlite.memo import MOST_BYTES, Memo
from tests.helpers.places import ROOT

WRITER = """
import sys
from medlite.memo import Memo
memo = Memo("counts", int)
for i in range(40):
    memo.put({f"{sys.argv[1]}-{i}": i})
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDLITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_processes_that_write_at_once_lose_no_entry(cache: Path) -> None:
    """Without the lock each replaces the file by what it read plus its own entry."""
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, name], cwd=ROOT) for name in "abc"]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    assert Memo("counts", int).read() == {f"{name}-{i}": i for name in "abc" for i in range(40)}


def test_threads_that_write_at_once_lose_no_entry(cache: Path) -> None:
    memo = Memo("counts", int)
    threads = [threading.Thread(target=lambda n=n: memo.put({str(n): n})) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert memo.read() == {str(n): n for n in range(20)}


def test_the_latest_entries_stay_in_order_of_their_writing(cache: Path) -> None:
    memo = Memo("counts", int, most=3)
    assert memo.read() == {}
    memo.put({"z": 1, "a": 2, "m": 3})
    memo.put({"z": 4})
    assert list(memo.read().items()) == [("a", 2), ("m", 3), ("z", 4)]
    memo.put({"b": 5, "c": 6})
    assert list(memo.read().items()) == [("z", 4), ("b", 5), ("c", 6)]
    memo.put({str(n): n for n in range(9)})
    assert list(memo.read()) == ["6", "7", "8"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"[" * 200_000, b'{"a": "\xff"}', b'{"a": NaN}', b'{"a": ' + b"9" * 5000 + b"}",
     b'{"a": "\\ud800"}', b" " * (MOST_BYTES + 1)],
    ids=["empty", "cut short", "list", "null", "nested", "not UTF-8", "NaN", "long", "half a pair", "too large"],
)  # fmt: skip
def test_anything_else_in_the_file_is_nothing_remembered_and_is_replaced(cache: Path, content: bytes) -> None:
    memo = Memo("counts", int)
    cache.mkdir()
    memo.path.write_bytes(content)
    assert memo.read() == {}
    memo.put({"b": 2})
    assert memo.read() == {"b": 2}


def test_an_entry_of_another_type_is_left_out(cache: Path) -> None:
    @dataclass(frozen=True)
    class Row:
        n: int
        name: str

    Memo("rows", dict[str, object]).put({"old": {"n": 1}, "new": {"n": 2, "name": "x", "later": None}})
    assert Memo("rows", Row).read() == {"new": Row(2, "x")}
    Memo("rows", Row).put({"third": Row(3, "y")})
    assert Memo("rows", Row).read() == {"new": Row(2, "x"), "third": Row(3, "y")}


def test_a_folder_within_the_cache_is_made(cache: Path) -> None:
    Memo("inner/counts", int).put({"a": 1})
    assert (cache / "inner" / "counts.json").read_text() == '{\n "a": 1\n}\n'


def test_a_path_that_is_not_utf_8_is_not_remembered_and_harms_nothing(cache: Path) -> None:
    memo = Memo("paths", str)
    memo.put({"a": "x"})
    with pytest.raises(OutputError):
        memo.put({os.fsdecode(b"/models/\xff.gguf"): "x"})
    assert memo.read() == {"a": "x"}


def test_a_cache_that_cannot_be_written_is_an_output_error(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    memo = Memo("counts", int)
    assert memo.read() == {}
    with pytest.raises(OutputError) as found:
        memo.put({"a": 1})
    assert found.value.hint == "MEDLITE_CACHE names another folder"
