"""GGUF headers: written, read back, attacked."""

import random
import struct
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medlite.errors import ArtifactError
from medlite.formats.gguf import GGML_TYPES, SCALAR_FORMATS, Kind, Value, pack_header, place_tensors, read_header


def test_every_type_has_the_size_that_the_gguf_package_states() -> None:
    known = {kind.name: (kind.value, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    for row in GGML_TYPES.values():
        if row.name in known:
            assert (row.id, row.block_weights, row.block_bytes) == known[row.name]
    assert len(known.keys() & GGML_TYPES.keys()) >= 28


# fmt: off
BOUNDS = {"B": (0, 255), "b": (-128, 127), "H": (0, 65535), "h": (-32768, 32767), "I": (0, 2**32 - 1),
          "i": (-2**31, 2**31 - 1), "Q": (0, 2**64 - 1), "q": (-2**63, 2**63 - 1)}
# fmt: on


def scalars(kind: Kind) -> st.SearchStrategy[object]:
    if kind is Kind.STRING:
        return st.text(max_size=40)
    code = SCALAR_FORMATS[kind]
    if code == "?":
        return st.booleans()
    if code in "fd":
        return st.floats(width=32, allow_nan=False)
    return st.integers(*BOUNDS[code])


@st.composite
def values(draw: st.DrawFn) -> Value:
    kind = draw(st.sampled_from([kind for kind in Kind if kind is not Kind.ARRAY]))
    if draw(st.booleans()):
        return Value(kind, draw(st.lists(scalars(kind), max_size=5)), is_array=True)
    return Value(kind, draw(scalars(kind)))


# fmt: off
ROWS = [("a.weight", GGML_TYPES["Q4_K"], (3, 512)), ("b.weight", GGML_TYPES["F32"], (7,)),
        ("ü.weight", GGML_TYPES["Q8_0"], (2, 2, 64))]
# fmt: on


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    metadata=st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda k: k != "general.alignment"), values(), max_size=6
    )
)
def test_what_is_written_is_read_back(metadata: dict[str, Value], tmp_path: Path) -> None:
    tensors = place_tensors(ROWS)
    raw = pack_header(metadata, tensors)
    path = tmp_path / "m.gguf"
    path.write_bytes(raw + bytes(tensors[-1].offset + tensors[-1].n_bytes))
    header = read_header(path)
    assert dict(header.metadata) == metadata
    assert header.tensors == tensors
    assert header.data_start == len(raw)


def test_a_long_vocabulary_is_read_through_its_windows_and_its_cut_is_placed(tmp_path: Path) -> None:
    texts = [f"token {i} " + "é" * (i % 90) for i in range(9000)] + ["long" * 600_000, "", "last"]
    raw = pack_header({"x.tokens": Value(Kind.STRING, texts, is_array=True), "x.after": Value(Kind.UINT32, 7)}, [])
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    header = read_header(path)
    assert header.get("x.tokens") == texts
    assert header.get("x.after") == 7
    path.write_bytes(raw[:1_500_000])
    with pytest.raises(ArtifactError, match=r"2400000 bytes announced, [0-9]+ left at byte [0-9]+"):
        read_header(path)


def small_file(path: Path) -> bytes:
    tensors = place_tensors(ROWS)
    raw = pack_header(
        {"general.architecture": Value(Kind.STRING, "llama"), "x.list": Value(Kind.UINT32, [1, 2, 3], is_array=True)},
        tensors,
    )
    path.write_bytes(raw + bytes(tensors[-1].offset + tensors[-1].n_bytes))
    return raw


def test_the_gguf_package_reads_our_header(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    small_file(path)
    reader = gguf.GGUFReader(path)
    assert [tensor.name for tensor in reader.tensors] == [row[0] for row in ROWS]
    assert reader.fields["general.architecture"].contents() == "llama"


def test_every_truncation_of_a_header_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    raw = small_file(path)
    for length in range(0, len(raw), 3):
        path.write_bytes(raw[:length])
        with pytest.raises(ArtifactError):
            read_header(path)


def test_any_changed_header_byte_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    small_file(path)
    whole = path.read_bytes()
    source = random.Random(0)
    for _ in range(600):
        raw = bytearray(whole)
        raw[source.randrange(280)] = source.randrange(256)
        path.write_bytes(raw)
        try:
            header = read_header(path)
        except ArtifactError:
            continue
        assert sum(tensor.n_bytes for tensor in header.tensors) <= len(raw)


# fmt: off
ATTACKS = {
    "other magic": (b"GGML" + bytes(60), "starts with"),
    "newer version": (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
    "countless tensors": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "announced"),
    "countless keys": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "announced"),
    "endless string": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 63) + bytes(64), "announced"),
    "endless array": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 4, 1 << 61)
                      + bytes(64), "array of"),
    "array of arrays": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 9, 1)
                        + bytes(64), "array of arrays"),
    "unknown kind": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sI", 1, b"k", 77) + bytes(64),
                     "unknown metadata type 77"),
}
# fmt: on


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_file_is_refused(name: str, tmp_path: Path) -> None:
    raw, message = ATTACKS[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    with pytest.raises(ArtifactError, match=message):
        read_header(path)


def test_overlapping_and_repeated_tensors_are_refused(tmp_path: Path) -> None:
    first, second, _ = place_tensors(ROWS)
    path = tmp_path / "m.gguf"
    for tensors, message in (
        ((first, type(second)(second.name, second.type, second.shape, 0)), "overlap"),
        ((first, first), "stands twice"),
    ):
        path.write_bytes(pack_header({}, tensors) + bytes(8192))
        with pytest.raises(ArtifactError, match=message):
            read_header(path)
