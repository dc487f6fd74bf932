"""A record of an earlier run that is still current, so that its questions need not be asked again."""

from bench.ask.question import samples_sha256
from bench.run.measure import chosen_samples
from bench.run.record import RunRecord, read_record
from bench.run.run import RunRequest
from bench.tasks import fetch, find_task
from medlite.errors import RecordError
from medlite.version import __version__


def questions_sha256(request: RunRequest) -> str:
    """Digest of the questions that will be asked; fetches them if need be. Raises TaskError if they cannot be had."""
    task = find_task(request.task, request.data)
    samples, _ = fetch.load(task, request.data, request.shots_data, n_shots=request.settings.prompting.n_shots)
    return samples_sha256(chosen_samples(samples, request.settings.prompting))


def kept_record(request: RunRequest, artifact_sha256: str, dataset_sha256: str) -> RunRecord | None:
    """The finished record in request.out, if it is of this artifact, these settings and questions and this medlite."""
    if request.out is None or not request.out.exists():
        return None
    try:
        record = read_record(request.out)
    except RecordError:
        return None
    asked = record.settings if request.settings.runtime.n_context else record.settings.with_context(0)
    found = (record.artifact.sha256, asked, record.task.dataset_sha256, record.environment.get("medlite"))
    wanted = (artifact_sha256, request.settings, dataset_sha256, __version__)
    return record if record.complete and found == wanted else None
