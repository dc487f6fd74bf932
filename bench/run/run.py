"""Run one question set on one artifact, in a process of its own. The child is `bench.run.worker`."""

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.run.child import OnProgress, ask_child
from bench.run.record import RunRecord, read_record
from bench.settings import RunSettings

WORKER = "bench.run.worker"


@dataclass(frozen=True)
class RunRequest:
    """One measurement. task: a name of the task table, or "local" for `data` as a set of its own.

    data, shots_data: files of the user's own, instead of the task's published ones. out: where the record is kept;
    None keeps none. resume continues `out`'s unfinished part; force replaces a finished record.
    """

    artifact: Path
    task: str
    settings: RunSettings = field(default_factory=RunSettings)
    data: Path | None = None
    shots_data: Path | None = None
    out: Path | None = None
    resume: bool = False
    force: bool = False


def run_task(request: RunRequest, on_progress: OnProgress | None = None, *, worker: str = WORKER) -> RunRecord:
    """The record of one question set on one artifact, measured in a fresh Python process.

    Errors of the child are raised here as they were raised there. worker: the module that the child runs.
    """
    with tempfile.TemporaryDirectory(prefix="medlite-run-") as folder:
        path = request.out or Path(folder) / "run.jsonl"
        ask_child(replace(request, out=path), worker, on_progress)
        return read_record(path)
