"""Artifacts and records that are kept while they are current, and made where they are missing, with their bars."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medlite.errors import RecordError
from medlite.files import make_folder

if TYPE_CHECKING:
    from bench.run.child import OnProgress, Progress
    from bench.run.record import RunRecord
    from bench.run.run import RunRequest

PHASES = {"hash": "read", "load": "load", "speed": "measure speed", "score": "questions"}


def make_artifacts(
    checkpoint_folder: Path,
    paths: Mapping[str, Path],
    *,
    imatrix: Path | None = None,
    pre_tokenizer: str | None = None,
    fresh: bool = False,
    quiet: bool,
) -> None:
    """Write the GGUF file of each recipe to its path, in one pass over the checkpoint. Current ones stay.

    paths: by the recipe's name. fresh: none stays.
    """
    from medlite.cli.quantize import write_with_progress
    from quantize.gguf.imatrix import read_imatrix
    from quantize.gguf.plan import plan_gguf
    from quantize.gguf.recipes import find_recipe
    from quantize.match import match_checkpoint
    from quantize.source.checkpoint import open_checkpoint
    from quantize.stream.receipt import is_current
    from quantize.stream.writer import WriteSettings

    model = match_checkpoint(open_checkpoint(checkpoint_folder), pre_tokenizer)
    importance = read_imatrix(imatrix) if imatrix else None
    outputs = [plan_gguf(model, find_recipe(name), importance=importance).output(path) for name, path in paths.items()]
    missing = [output for output in outputs if fresh or not is_current(output)]
    if missing:
        make_folder(missing[0].path.parent)
        write_with_progress(missing, WriteSettings(force=True), quiet=quiet)


def measure_artifact(
    path: Path, requests: Sequence["RunRequest"], datasets: Mapping[str, str], *, fresh: bool = False, quiet: bool
) -> dict[str, "RunRecord"]:
    """The record of every request by the name of its task: the kept one where it is current, else measured now.

    datasets: digest of the questions of each request.task, `bench.run.kept.questions_sha256`. fresh: none is kept.
    """
    from bench.run.kept import kept_record
    from medlite.files import file_sha256

    files = [request.out for request in requests if request.out and request.out.exists() and not fresh]
    sha256 = file_sha256(path) if files else ""
    records = [
        (None if fresh else kept_record(request, sha256, datasets[request.task]))
        or measure(request, fresh=fresh, quiet=quiet)
        for request in (replace(request, artifact=path, force=True) for request in requests)
    ]
    return {record.task.name: record for record in records}


def measure(request: "RunRequest", *, fresh: bool, quiet: bool) -> "RunRecord":
    """One measurement in its own process. It goes on from an unfinished part, or starts over if that is of another."""
    from bench.run.run import run_task
    from medlite.cli.display import stderr

    title = f"{request.artifact.stem} {request.task}"

    def run(*, resume: bool) -> "RunRecord":
        with phase_bars(title, quiet=quiet) as on_progress:
            return run_task(replace(request, resume=resume), on_progress)

    try:
        record = run(resume=not fresh)
    except RecordError as error:
        stderr.print(f"starts over: {error}", style="dim", markup=False)
        record = run(resume=False)
    if not quiet:
        stderr.print(
            f"{title}: {record.n_correct:,} of {len(record.samples):,} right, "
            f"{record.performance.scoring_seconds:.0f} s",
            style="dim",
            markup=False,
        )
    return record


@contextmanager
def phase_bars(title: str, *, quiet: bool) -> "Iterator[OnProgress]":
    """A line on stderr that shows the phase and how far it is; nothing when quiet."""
    from medlite.cli.display import stderr

    if quiet or not stderr.is_terminal:
        yield lambda _: None
        return
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=20),
        rich_progress.TextColumn("{task.fields[count]}"),
        rich_progress.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with rich_progress.Progress(*columns, console=stderr, transient=True) as bars:
        bar = bars.add_task(title, total=None, count="")
        phase = ""

        def on_progress(progress: "Progress") -> None:
            nonlocal phase
            if progress.phase != phase:
                phase = progress.phase
                bars.reset(bar, description=f"{title}: {PHASES.get(phase, phase)}", total=progress.total or None)
            count = f"{progress.done:,} of {progress.total:,}" if phase == "score" else ""
            bars.update(bar, completed=progress.done, total=progress.total, count=count)

        yield on_progress
