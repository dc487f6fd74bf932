"""What the names of the hub's cache say, and that huggingface_hub itself gives them so."""

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import constants, try_to_load_from_cache

from medlite.formats.hub_cache import (
    Snapshot,
    blob_name,
    blob_sha256,
    model_name,
    repository_folder,
    repository_or_folder,
    snapshot_at,
    snapshots_of,
)

COMMIT = "0a" * 20
CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of org/Some-Model at COMMIT in a cache of its own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = repository_folder("org/Some-Model")
    for name in ("blobs", f"snapshots/{COMMIT}"):
        (folder / name).mkdir(parents=True)
    (folder / "blobs" / SHA256).write_bytes(CONTENT)
    link = folder / "snapshots" / COMMIT / "model.safetensors"
    link.symlink_to(Path("../../blobs") / SHA256)
    return link


def test_the_layout_is_the_one_that_huggingface_hub_reads(link: Path, tmp_path: Path) -> None:
    found = try_to_load_from_cache("org/Some-Model", link.name, cache_dir=tmp_path, revision=COMMIT)
    assert found == str(link)
    assert snapshots_of("org/Some-Model") == [link.parent]
    assert snapshots_of("org/other") == []


def test_a_snapshot_names_repository_and_commit(link: Path, tmp_path: Path) -> None:
    assert snapshot_at(link.parent) == Snapshot("org/Some-Model", COMMIT)
    assert (repository_or_folder(link.parent), model_name(link.parent)) == ("org/Some-Model", "Some-Model")
    (tmp_path / "here").symlink_to(link.parent)
    assert model_name(tmp_path / "here") == "Some-Model"


@pytest.mark.parametrize("place", ["Llama-8B", "snapshots/Llama-8B", "datasets--o--d/snapshots/Llama-8B"])
def test_another_folder_is_called_by_its_own_name(place: str, tmp_path: Path) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True)
    assert snapshot_at(folder) is None
    assert (repository_or_folder(folder), model_name(folder)) == ("Llama-8B", "Llama-8B")


def test_a_blob_s_name_is_its_hash_and_no_other_file_s_is(link: Path, tmp_path: Path) -> None:
    assert (blob_name(link), blob_sha256(link)) == (SHA256, SHA256)
    (tmp_path / SHA256).write_bytes(b"named after a hash, and not in a cache")
    assert blob_name(tmp_path / SHA256) is None
    small = link.parent.parent.parent / "blobs" / ("0b" * 20)
    small.write_bytes(b"{}")
    (link.parent / "config.json").symlink_to(small)
    assert (blob_name(link.parent / "config.json"), blob_sha256(link.parent / "config.json")) == ("0b" * 20, None)
