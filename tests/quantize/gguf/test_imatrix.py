"""Importance matrices in both formats; what is no imatrix is refused."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from medlite.errors import ArtifactError, RecipeError
from quantize.gguf.imatrix import read_imatrix


def write_gguf_imatrix(path: Path, sums: dict[str, np.ndarray], counts: dict[str, np.ndarray]) -> Path:
    writer = gguf.GGUFWriter(path, "imatrix")
    for name, values in sums.items():
        writer.add_tensor(name + ".in_sum2", values.astype(np.float32))
    for name, values in counts.items():
        writer.add_tensor(name + ".counts", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def legacy(name: bytes, n_calls: int, values: np.ndarray) -> bytes:
    return (
        struct.pack("<i", len(name)) + name + struct.pack("<ii", n_calls, values.size) + values.astype("<f4").tobytes()
    )


def test_gguf_sums_are_divided_by_counts(tmp_path: Path) -> None:
    sums = np.array([[2.0, 4.0, 6.0]])
    path = write_gguf_imatrix(
        tmp_path / "i.gguf", {"a": sums, "unused": sums}, {"a": np.array([[4.0]]), "unused": np.array([[0.0]])}
    )
    found = read_imatrix(path)
    np.testing.assert_array_equal(found["a"], np.float32([0.5, 1.0, 1.5]))
    np.testing.assert_array_equal(found["unused"], np.float32([1, 1, 1]))


def test_legacy_sums_are_divided_by_calls(tmp_path: Path) -> None:
    path = tmp_path / "i.dat"
    path.write_bytes(struct.pack("<i", 2) + legacy(b"a", 3, np.array([3.0, 9.0])) + legacy(b"b", 0, np.array([5.0])))
    found = read_imatrix(path)
    np.testing.assert_array_equal(found["a"], np.float32([1.0, 3.0]))
    np.testing.assert_array_equal(found["b"], np.float32([5.0]))


HOSTILE = {
    "empty": b"",
    "no entries": struct.pack("<i", 0),
    "countless entries": struct.pack("<i", 2**31 - 1),
    "endless name": struct.pack("<ii", 1, 2**31 - 1),
    "negative name": struct.pack("<ii", 1, -5),
    "cut short": struct.pack("<i", 1) + legacy(b"a", 3, np.ones(9))[:-4],
    "endless values": struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 2**31 - 1),
    "text": b"this is no imatrix at all, it is a sentence",
    "not finite": struct.pack("<i", 1) + legacy(b"a", 1, np.array([np.nan])),
    "negative": struct.pack("<i", 1) + legacy(b"a", 1, np.array([-1.0])),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_imatrix_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "i.dat"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(RecipeError):
        read_imatrix(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        read_imatrix(tmp_path / "absent.gguf")


def test_sums_without_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="sums and no counts"):
        read_imatrix(write_gguf_imatrix(tmp_path / "i.gguf", {"a": np.ones((1, 4))}, {}))


def test_a_model_given_as_imatrix_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    with pytest.raises((RecipeError, ArtifactError)):
        read_imatrix(path)
