"""The one reader of JSON: whatever a file holds, a value of the stated type comes back or one error of the caller's."""

import json
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlite.errors import ArtifactError, CheckpointError, MedliteError
from medlite.formats.json import convert_value, decode_json, read_json
from tests.helpers.places import ROOT


@dataclass(frozen=True)
class Part:
    """What a part of a file says, as a dataclass, which msgspec decodes to like to its own Struct."""

    name: str
    sizes: tuple[int, ...] = ()


class Whole(msgspec.Struct, frozen=True):
    n: Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]
    kind: Literal["a", "b"] = "a"
    loss: float = 0.0
    parts: dict[str, Part] = {}
    rows: tuple[Part, ...] = ()


# What no type accepts: name -> (bytes, a part of the message).
MALFORMED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not JSON"),
    "cut short": (b'{"n": 1, "x": [1, 2', "not JSON: Input data was truncated"),
    "more than one value": (b'{"n": 1} x', "trailing characters (byte 10), near '{\"n\": 1} x'"),
    "a trailing comma": (b'{"n": 1,}', "trailing comma in object"),
    "a bare control character": (b'{"n": 1, "x": "\n"}', "invalid character"),
    "a leading zero": (b'{"n": 01}', "invalid number"),
    "NaN": (b'{"n": NaN}', "invalid character (byte 6), near '{\"n\": NaN}'"),
    "Infinity": (b'{"n": 1, "loss": -Infinity}', "not JSON"),
    "a byte order mark": (b'\xef\xbb\xbf{"n": 1}', "not JSON"),
    "UTF-16": ('{"n": 1}'.encode("utf-16"), "not UTF-8"),
    "bytes that are not UTF-8": (b'{"n": 1, "x": "\xff"}', "not UTF-8: invalid start byte (byte 15)"),
    "a surrogate in UTF-8": (b'{"n": 1, "x": "\xed\xa0\x80"}', "not UTF-8"),
    "the first half of a pair": (b'{"n": 1, "x": "\\ud800"}', "not JSON"),
    "the second half of a pair": (b'{"n": 1, "x": "\\udc00"}', "invalid utf-16 surrogate pair"),
    "half a pair in a key": (b'{"\\ud800": 1}', "not JSON"),
    "200,000 arrays": (b'{"n": 1, "x": ' + b"[" * 200_000, "nested too deeply"),
    "200,000 objects": (b'{"x":' * 200_000, "nested too deeply"),
}
# What is JSON and not a Whole: name -> (text, the message after the file's name).
WRONG: dict[str, tuple[str, str]] = {
    "a list": ("[]", "expected object, found array"),
    "a missing key": ("{}", "missing key n"),
    "a bool for a count": ('{"n": true}', "n: expected int, found bool"),
    "a float for a count": ('{"n": 1.0}', "n: expected int, found float"),
    "a text for a count": ('{"n": "1"}', "n: expected int, found str"),
    "a count out of range": ('{"n": -1}', "n: expected int >= 0"),
    "another kind": ('{"n": 1, "kind": "c"}', "kind: Invalid enum value 'c'"),
    "null for a number": ('{"n": 1, "loss": null}', "loss: expected float, found null"),
    "5,000 digits": (f'{{"n": {"9" * 5000}}}', "n: Integer value out of range"),
    "more than a double holds": ('{"n": 1, "loss": 1e999}', "loss: Number out of range"),
    "a fault within": (
        '{"n": 1, "rows": [{"name": "a"}, {"name": "b", "sizes": [1, "2"]}]}',
        "rows[1].sizes[1]: expected int, found str",
    ),
    "a fault under some key": ('{"n": 1, "parts": {"a": {}}}', "parts[...]: missing key name"),
}


@pytest.mark.parametrize(("raw", "message"), MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("expected", [Whole, dict[str, Any]], ids=["typed", "untyped"])
def test_what_is_not_json_is_the_callers_error(expected: type, raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError) as found:
        read_json(path, expected, CheckpointError, hint="download it again")
    assert str(found.value).startswith(f"{path}: ")
    assert message in str(found.value)
    assert found.value.hint == "download it again"


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_another_type_names_the_key_and_what_was_found(text: str, message: str) -> None:
    with pytest.raises(ArtifactError) as found:
        decode_json(text, Whole, ArtifactError, where="receipt.json")
    assert str(found.value).startswith(f"receipt.json: {message}")
    assert len(str(found.value)) < 120


def test_what_the_type_does_not_ask_for_is_passed_over() -> None:
    value = decode_json(
        b'{"n": 3, "new": {"k": [1e5, null]}, "rows": [{"name": "a"}]}', Whole, ArtifactError, where="x"
    )
    assert value == Whole(3, rows=(Part("a"),))


def test_a_long_integer_is_an_error_of_the_caller_untyped_too() -> None:
    """Python's own reader raises a bare ValueError from 4,301 digits on, which is not a JSONDecodeError."""
    most = decode_json(b'{"n": %s}' % (b"9" * 4300), dict[str, Any], CheckpointError, where="config.json")
    assert most["n"] == 10**4300 - 1
    for n in (4301, 100_000):
        with pytest.raises(CheckpointError, match=r"^config\.json: .*out of range"):
            decode_json(b'{"n": %s}' % (b"9" * n), dict[str, Any], CheckpointError, where="config.json")


def test_duplicate_keys_are_refused_where_asked() -> None:
    twice = b'{"a": 1, "b": {"k": 1, "k": 2}}'
    assert decode_json(twice, dict[str, Any], CheckpointError, where="x") == {"a": 1, "b": {"k": 2}}
    with pytest.raises(CheckpointError, match=r"^x: duplicate key 'k'$"):
        decode_json(twice, dict[str, Any], CheckpointError, where="x", unique_keys=True)
    for hidden in (b'{"a": 1, "skip": {"k": 1, "k": 2}}', b'{"a": 1, "a": 1}'):
        with pytest.raises(CheckpointError, match="duplicate key"):
            decode_json(hidden, dict[str, msgspec.Raw], CheckpointError, where="x", unique_keys=True)
    long = b'{"n": 1, "x": %s}' % (b"9" * 5000)
    assert decode_json(long, Whole, CheckpointError, where="x", unique_keys=True) == Whole(1)


def test_each_value_of_an_object_can_be_decoded_under_its_own_name() -> None:
    parts = decode_json(b'{"a": {"name": "a"}, "b": {"name": 3}}', dict[str, msgspec.Raw], ArtifactError, where="x")
    assert decode_json(parts["a"], Part, ArtifactError, where="x: a") == Part("a")
    with pytest.raises(ArtifactError, match=r"^x: b: name: expected str, found int$"):
        decode_json(parts["b"], Part, ArtifactError, where="x: b")


def test_a_file_that_is_not_there_too_large_or_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.json: missing$"):
        read_json(tmp_path / "gone.json", Whole, CheckpointError)
    with pytest.raises(CheckpointError, match=r"Is a directory$"):
        read_json(tmp_path, Whole, CheckpointError)
    path = tmp_path / "facts.json"
    path.write_bytes(b'{"n": 1}')
    assert read_json(path, Whole, CheckpointError, most_bytes=8) == Whole(1)
    with pytest.raises(CheckpointError, match="more than the 7 bytes"):
        read_json(path, Whole, CheckpointError, most_bytes=7)


def test_plain_values_are_checked_alike() -> None:
    assert convert_value({"n": 1, "rows": [{"name": "a"}]}, Whole, ArtifactError, where="x").rows == (Part("a"),)
    with pytest.raises(ArtifactError, match=r"^catalog\.toml: rows\[0\]\.name: expected str, found int$"):
        convert_value({"n": 1, "rows": [{"name": 1}]}, Whole, ArtifactError, where="catalog.toml")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
                    | st.text(st.characters(exclude_categories=["Cs"])), lambda inner: st.lists(inner)
                    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)))  # fmt: skip
def test_what_python_writes_is_read_back(value: Any) -> None:
    for ascii_only in (False, True):
        found = decode_json(json.dumps([value], ensure_ascii=ascii_only), list[Any], MedliteError, where="x")
        assert repr(found) == repr([value])  # repr: 1 is not 1.0, 0.0 is not -0.0


@given(st.binary(max_size=64))
def test_any_bytes_are_a_value_or_the_callers_error(raw: bytes) -> None:
    for whole in (raw, b'{"n": 1, "x": "' + raw + b'"}', struct.pack("<Q", len(raw)) + raw):
        with suppress(CheckpointError):
            assert decode_json(whole, Whole, CheckpointError, where="x", unique_keys=True).n == 1


@dataclass(frozen=True)
class Placed:
    path: Path | None = None


def test_a_path_is_text_and_nothing_else() -> None:
    assert decode_json(b'{"path": "a/b"}', Placed, CheckpointError, where="here") == Placed(Path("a/b"))
    with pytest.raises(CheckpointError, match="here: path: expected Path, found int"):
        decode_json(b'{"path": 3}', Placed, CheckpointError, where="here")


# Where json.loads stands outside the reader, and why.
OTHER_READERS = {
    "medlite/engines/server/http.py": "a server's NaN must fail one sample, not the reply",
    "medlite/demo/tokenizer.py": "text that the line itself made",
    "bench/run/measure.py": "text that the line itself made",
}


def test_json_is_read_here_and_nowhere_else() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for package in ("medlite", "quantize", "bench")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"\bjson\.loads?\(|\bjson\.decode\(", path.read_text(encoding="utf-8"))
    }
    assert found <= {"medlite/formats/json.py", *OTHER_READERS}
