"""Question sets from their hub repositories: downloaded once at a pinned revision, checked, then offline."""

from collections.abc import Sequence
from pathlib import Path

from bench.task import HubFile, Sample, Task
from bench.tasks.local import read_samples
from medlite.errors import TaskError
from medlite.files import cache_folder, file_sha256


def load(
    task: Task, data: Path | None = None, shots_data: Path | None = None, *, n_shots: int = 0,
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
    if file.sha256 and (found := file_sha256(path)) != file.sha256:
        raise TaskError(f"{path}: sha256 {found}, {file.sha256} was needed", hint="delete the file and fetch it again")
    return path


def _folder() -> Path:
    return cache_folder() / "datasets"


def _cached(file: HubFile) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(file.repo, file.path, cache_dir=_folder(), revision=file.revision,
                                   repo_type="dataset")
    return Path(found) if isinstance(found, str) else None


def _download(file: HubFile, task_name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(file.repo, file.path, cache_dir=_folder(), revision=file.revision,
                                    repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        offline = isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled)
        why = "the hub cannot be reached" if offline else str(error).splitlines()[0]
        raise TaskError(
            f"{task_name}: {file.repo}/{file.path} is not in the cache, and {why}",
            hint="run once with network, or pass the questions with --data FILE.jsonl",
        ) from error
