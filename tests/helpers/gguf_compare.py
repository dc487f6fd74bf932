"""Compares GGUF files tensor by tensor and key by key."""

from pathlib import Path
from typing import Any

from medlite.formats.gguf import Value, read_header


def tensors_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name -> type, shape and bytes of every tensor."""
    header, raw = read_header(path), path.read_bytes()
    return {t.name: (t.type.name, t.shape, raw[header.data_start + t.offset :][: t.n_bytes]) for t in header.tensors}


def assert_equal_tensors(ours: Path, theirs: Path) -> None:
    """Every tensor of both files has the same type, shape and bytes. The order in the file may differ."""
    a, b = tensors_of(ours), tensors_of(theirs)
    assert set(a) == set(b)
    assert {name: row[:2] for name, row in a.items()} == {name: row[:2] for name, row in b.items()}
    assert [name for name in a if a[name][2] != b[name][2]] == []


def differing_keys(ours: Path, theirs: Path) -> dict[str, tuple[Value | None, Value | None]]:
    """Metadata keys whose values differ, with both values."""
    a: Any = read_header(ours).metadata
    b: Any = read_header(theirs).metadata
    return {key: (a.get(key), b.get(key)) for key in sorted(set(a) | set(b)) if a.get(key) != b.get(key)}
