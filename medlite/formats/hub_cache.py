"""Where the Hugging Face hub's cache keeps a repository, and what its folder and file names say.

`models--OWNER--NAME/snapshots/COMMIT/FILE` links to `models--OWNER--NAME/blobs/HASH`: the SHA-256 of a large file,
git's name of a small one, as the hub announced it. huggingface_hub compares the size of what came, and
`medlite.models.hub.pull` the hash. Nothing here opens a socket.
Source: huggingface_hub, "Understand caching" (docs/source/en/guides/manage-cache.md); the layout is public.
"""

import re
from dataclasses import dataclass
from pathlib import Path

PREFIX = "models--"
SHA256 = re.compile("[0-9a-f]{64}")
BLOB = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Snapshot:
    """A repository, OWNER/NAME, at a commit."""

    repository: str
    commit: str


def snapshot_at(folder: Path) -> Snapshot | None:
    """What the snapshot folder holds, None for a folder that is not one of a model in a hub cache."""
    folder = folder.resolve()
    if folder.parent.name != "snapshots" or not folder.parent.parent.name.startswith(PREFIX):
        return None
    return Snapshot(folder.parent.parent.name.removeprefix(PREFIX).replace("--", "/"), folder.name)


def repository_or_folder(folder: Path) -> str:
    """OWNER/NAME of a snapshot, of another folder its name."""
    found = snapshot_at(folder)
    return found.repository if found else folder.resolve().name


def model_name(folder: Path) -> str:
    """What to call an artifact of the checkpoint in `folder`: its name, without the owner."""
    return repository_or_folder(folder).rpartition("/")[2]


def repository_folder(repository: str) -> Path:
    """Where the cache keeps the model repository OWNER/NAME, whether it is there or not."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{PREFIX}{repository.replace('/', '--')}"


def snapshots_of(repository: str) -> list[Path]:
    """The folders of the repository's commits in the cache, oldest first."""
    folder = repository_folder(repository) / "snapshots"
    return sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []


def blob_name(path: Path) -> str | None:
    """The hash by which the cache keeps the file's content, None for a file outside a cache."""
    blob = path.resolve()
    return blob.name if blob.parent.name == "blobs" and BLOB.fullmatch(blob.name) else None


def blob_sha256(path: Path) -> str | None:
    """The file's SHA-256 where the cache names it, without reading it."""
    name = blob_name(path)
    return name if name is not None and SHA256.fullmatch(name) else None
