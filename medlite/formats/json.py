"""JSON from a file or a child process, decoded to a stated type: what the three packages read JSON with.

msgspec decodes and checks in one pass (docs/decisions/0001-json-is-read-by-msgspec.md). Strict, so that a bool or a
float is not an int and a text is not a number. RFC 8259 is meant literally: NaN and Infinity, numbers beyond a double,
halves of surrogate pairs and a byte order mark are refused, as serde_json does, which the `tokenizers` package reads
with. Of a key that is given twice the last value counts, except with `unique_keys`.
"""

import json
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from medlite.errors import MedliteError

T = TypeVar("T")

MOST_BYTES = 1 << 30  # a tokenizer.json has some 10 MB, a safetensors header at most 100 MB
AROUND = 16  # bytes of an excerpt, on each side
BYTE = re.compile(r"\(byte (\d+)\)")


def read_json(
    path: Path, expected: type[T], error: type[MedliteError], *, hint: str | None = None, most_bytes: int = MOST_BYTES
) -> T:
    """The value in the UTF-8 file at `path`, of type `expected`: a msgspec Struct, a dataclass or plain types.

    Raises `error`, with `hint`, naming the file, the key, what was found and what was expected. A missing file is such
    an error too.
    """
    raw = read_bytes(path, error, hint, most_bytes)
    return decode_json(raw, expected, error, where=str(path), hint=hint)


def read_json_of(
    schema: str,
    path: Path,
    expected: type[T],
    error: type[MedliteError],
    *,
    hint: str | None = None,
    most_bytes: int = MOST_BYTES,
) -> T:
    """As `read_json`, of a file of medlite's own, whose key "schema" must be `schema`; that is checked first."""
    raw = read_bytes(path, error, hint, most_bytes)
    found = decode_json(raw, _Tagged, error, where=str(path), hint=hint).schema
    if found != schema:
        raise error(f"{path}: schema {found!r}, expected {schema!r}", "a newer medlite may read it")
    return decode_json(raw, expected, error, where=str(path), hint=hint)


def decode_json(
    raw: bytes | str | msgspec.Raw,
    expected: type[T],
    error: type[MedliteError],
    *,
    where: str,
    hint: str | None = None,
    unique_keys: bool = False,
) -> T:
    """The value that `raw` holds, as `read_json`. where: the file and place, for the message. unique_keys: an object
    with a duplicate key is refused.

    An error inside dict[str, X] cannot name the key: decode to dict[str, msgspec.Raw], then each value with its own
    `where`.
    """
    try:
        if isinstance(raw, bytes):
            raw.decode()  # msgspec skips over what the type does not ask for, this does not
        value = msgspec.json.decode(raw, type=expected, dec_hook=_path)
        if unique_keys:
            _check_unique_keys(bytes(raw) if isinstance(raw, msgspec.Raw) else raw, error, where, hint)
    except UnicodeError as cause:
        fault = f"{cause.reason} (byte {cause.start})" if isinstance(cause, UnicodeDecodeError) else cause
        raise error(f"{where}: not UTF-8: {fault}", hint) from cause
    except RecursionError as cause:
        raise error(f"{where}: not JSON: nested too deeply", hint) from cause
    except msgspec.ValidationError as cause:
        raise error(f"{where}: {_place(cause)}", hint) from cause
    except msgspec.DecodeError as cause:
        raise error(f"{where}: not JSON: {_fault(cause, raw)}", hint) from cause
    return value


def convert_value(value: Any, expected: type[T], error: type[MedliteError], *, where: str) -> T:
    """`value`, of plain types (of TOML, of a part already decoded), as `expected`. Raises `error` as `decode_json`."""
    try:
        return msgspec.convert(value, expected)
    except msgspec.ValidationError as cause:
        raise error(f"{where}: {_place(cause)}") from cause


def _path(expected: type, value: Any) -> Any:
    """A path, which JSON has as text. What fits no type beyond msgspec's own is refused by msgspec afterwards."""
    return Path(value) if expected is Path and isinstance(value, str) else value


class _Tagged(msgspec.Struct):
    schema: str | None = None


def read_bytes(path: Path, error: type[MedliteError], hint: str | None, most_bytes: int = MOST_BYTES) -> bytes:
    """The file's content. Raises `error` where it cannot be read, is missing, or has more than `most_bytes`."""
    try:
        with path.open("rb") as handle:
            n_file_bytes = os.fstat(handle.fileno()).st_size or most_bytes  # a pipe has none
            raw = handle.read(min(n_file_bytes, most_bytes) + 1)  # Python allocates what is asked for, not what comes
    except FileNotFoundError as cause:
        raise error(f"{path}: missing", hint) from cause
    except OSError as cause:
        raise error(f"{path}: {cause.strerror or cause}", hint) from cause
    if len(raw) > most_bytes:
        raise error(f"{path}: more than the {most_bytes} bytes that are read of such a file", hint)
    return raw


def _check_unique_keys(raw: bytes | str, error: type[MedliteError], where: str, hint: str | None) -> None:
    """Raise `error` for an object, anywhere in `raw`, that has a key twice."""

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise error(f"{where}: duplicate key {key!r}", hint)
            seen.add(key)

    json.loads(raw, object_pairs_hook=refuse_duplicates, parse_int=str)  # str: any number of digits


def _place(cause: msgspec.ValidationError) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.a[0]`" as "a[0]: expected int, found str"."""
    message, _, place = str(cause).rpartition(" - at ") if " - at `" in str(cause) else (str(cause), "", "")
    message = message.replace("Expected", "expected", 1).replace(", got", ", found", 1).replace("`", "")
    message = message.replace("Object missing required field", "missing key", 1)
    key = place.strip("`").rpartition("$")[2].removeprefix(".")
    return f"{key}: {message}" if key else message


def _fault(cause: msgspec.DecodeError, raw: bytes | str | msgspec.Raw) -> str:
    """What is wrong and, where msgspec says at which byte, what stands around it."""
    message = str(cause).removeprefix("JSON is malformed: ")
    if not (match := BYTE.search(message)):
        return message
    byte = int(match[1])
    whole = raw.encode(errors="replace") if isinstance(raw, str) else bytes(raw)
    return f"{message}, near {whole[max(byte - AROUND, 0) : byte + AROUND].decode(errors='replace')!r}"
