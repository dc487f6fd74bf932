"""Question sets from their hub repositories: downloaded once at a pinned revision, checked, then offline.

Each file's content is checked twice. Against the name that the pinned commit gives it: the hub's cache stores a file
under its etag, which is the SHA-256 of a large file and git's blob hash of a small one. And against the SHA-256 in the
task's row, or where that is not known the one that was written down when the file was first fetched.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.ask.question import HubFile, Sample, Task
from bench.tasks.local import read_samples
from medlite.errors import TaskError
from medlite.files import HASH_BLOCK_BYTES, cache_folder, file_sha256
from medlite.formats.hub_cache import blob_name
from medlite.memo import Memo

HASHES = Memo("datasets/sha256", str, most=4096)  # file -> its SHA-256 when it was first fetched


def load(
    task: Task, data: Path | None = None, shots_data: Path | None = None, *, n_shots: int = 0
) -> tuple[list[Sample], list[Sample]]:
    """The samples of a task and its few-shot examples, n_shots of each subject.

    data, shots_data: files in the common form instead of the hub's.
    """
    if n_shots and task.read_shots is None:
        raise TaskError(f"{task.name}: has no few-shot examples", hint="--shots 0")
    if data is not None:
        samples = read_samples(data, duplicate_options=task.duplicate_options)
    else:
        samples = task.read([fetch_file(file, task.name) for file in task.files])
    shots: list[Sample] = []
    if n_shots and shots_data is not None:
        shots = read_samples(shots_data)
    elif n_shots and task.read_shots:
        shots = task.read_shots([fetch_file(file, task.name) for file in task.shots_files])
    return samples, first_of_each_subject(shots, n_shots)


def first_of_each_subject(samples: Sequence[Sample], n: int) -> list[Sample]:
    """The first n samples of every subject, in order."""
    taken: dict[str, int] = {}
    kept: list[Sample] = []
    for sample in samples:
        if taken.setdefault(sample.subject, 0) < n:
            taken[sample.subject] += 1
            kept.append(sample)
    return kept


def is_local(task: Task) -> bool:
    """Whether the task runs without network: nothing to fetch, or all of it in the cache."""
    return all(_cached(file) is not None for file in (*task.files, *task.shots_files))


def fetch_file(file: HubFile, task_name: str) -> Path:
    """The file in the cache, downloaded if need be. Raises TaskError if it cannot be had or is not what is pinned."""
    path = _cached(file) or _download(file, task_name)
    found = file_sha256(path)
    hint, name = "delete the file and fetch it again", blob_name(path)
    if name is not None and name not in (found, git_blob_sha1(path)):
        raise TaskError(
            f"{path}: is not the file of commit {file.revision[:12]}: sha256 {found}, the hub has {name}", hint=hint
        )
    known = known_sha256(file)
    if known is None:
        HASHES.put({_key(file): found})
    elif found != known:
        raise TaskError(f"{path}: sha256 {found}, {known} was needed", hint=hint)
    return path


def known_sha256(file: HubFile) -> str | None:
    """The file's SHA-256: from the task's row, else as it was when the file was first fetched here, else None."""
    return file.sha256 or HASHES.read().get(_key(file))


def git_blob_sha1(path: Path) -> str:
    """The name of the file's content in git. Source: git-hash-object."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as handle:
        while block := handle.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _key(file: HubFile) -> str:
    return f"{file.repo}@{file.revision}/{file.path}"


def _where(file: HubFile) -> dict[str, Any]:
    """Which version of a dataset, and the cache for it, as huggingface_hub's functions take them."""
    return {"cache_dir": cache_folder() / "datasets", "revision": file.revision, "repo_type": "dataset"}


def _cached(file: HubFile) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(file.repo, file.path, **_where(file))
    return Path(found) if isinstance(found, str) else None


def _download(file: HubFile, task_name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(file.repo, file.path, **_where(file)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        offline = isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled)
        why = "the hub cannot be reached" if offline else str(error).splitlines()[0]
        raise TaskError(
            f"{task_name}: {file.repo}/{file.path} is not in the cache, and {why}",
            hint="run once with network, or pass the questions with --data FILE.jsonl",
        ) from error
