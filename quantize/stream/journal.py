"""What a conversion has done so far, so that a killed one continues where it was.

One JSON line a slab, appended after its bytes are in the .part file: number, CRC-32 of the bytes, their errors
against the source. On resume every journalled slab is read back and compared, so a slab that a power cut lost is
done again. The first line holds a fingerprint of everything that decides the bytes; another one starts over.
"""

import hashlib
import json
import os
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from medlite.errors import OutputError
from medlite.files import part_path
from medlite.formats.json import decode_json
from medlite.version import __version__
from quantize.stream.encode import RowErrors
from quantize.stream.plan import Plan
from quantize.stream.slabs import SLAB_WEIGHTS

SUFFIX = ".journal"
T = TypeVar("T")


class _Row(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A line of the journal: a JSON array."""

    number: int
    crc: int
    squared_error: float
    squared_weight: float
    worst_row: int
    worst_ratio: float


@dataclass(frozen=True)
class _Begin:
    fingerprint: str


def journal_path(path: Path) -> Path:
    """The journal of the conversion that makes `path`."""
    part = part_path(path)
    return part.with_name(part.name + SUFFIX)


def fingerprint(plan: Plan) -> str:
    """SHA-256 over what decides the artifact's bytes: headers, source files (name, size, time), stamp, version."""
    digest = hashlib.sha256(f"{__version__} {SLAB_WEIGHTS}".encode())
    for file in plan.files:
        digest.update(file.header)
    for shard in plan.checkpoint.shards:
        status = shard.stat()
        digest.update(f"{shard.name} {status.st_size} {status.st_mtime_ns}".encode())
    digest.update(plan.stamp)
    return digest.hexdigest()


class Journal:
    """The open journal of one output. `done`: slab number -> (CRC-32, errors)."""

    def __init__(self, path: Path, descriptor: int, done: dict[int, tuple[int, RowErrors]]) -> None:
        self.path, self._descriptor, self.done = path, descriptor, done

    def add(self, number: int, crc: int, errors: RowErrors) -> None:
        """Note that slab `number` is in the .part file. One write call, so a line is whole or missing."""
        self.done[number] = (crc, errors)
        os.write(self._descriptor, (json.dumps([number, crc, *astuple(errors)]) + "\n").encode())

    def close(self) -> None:
        os.close(self._descriptor)


def open_journal(path: Path, key: str, *, restart: bool) -> Journal:
    """The journal at `path`, continued if its fingerprint is `key`, else begun."""
    done = {} if restart else read_journal(path, key)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | (0 if done else os.O_TRUNC), 0o644)
    if done:
        # A line that was cut by the kill must not run into the next one.
        os.write(descriptor, b"\n")
    else:
        os.write(descriptor, (json.dumps({"fingerprint": key}) + "\n").encode())
    return Journal(path, descriptor, done)


def read_journal(path: Path, key: str) -> dict[int, tuple[int, RowErrors]]:
    """The slabs that the journal at `path` holds for fingerprint `key`; none if it is another conversion's."""
    try:
        first, *lines = path.read_bytes().splitlines() or [b""]
    except FileNotFoundError:
        return {}
    if _parse(first, _Begin) != _Begin(key):
        return {}
    rows = [row for line in lines if (row := _parse(line, _Row)) is not None]
    return {
        row.number: (row.crc, RowErrors(row.squared_error, row.squared_weight, row.worst_row, row.worst_ratio))
        for row in rows
    }


def _parse(line: bytes, expected: type[T]) -> T | None:
    """What a whole line says, None for a piece of one."""
    try:
        return decode_json(line, expected, OutputError, where="journal")
    except OutputError:
        return None
