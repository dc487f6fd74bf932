"""The child's side of `bench.run.run`."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from bench.run import artifacts, memory
from bench.run.child import Progress, Reporter, answer_parent
from bench.run.measure import Output, Subject, measure, prepare
from bench.run.meters import Meters
from bench.run.run import RunRequest
from bench.settings import CONTEXT_TOKENS, RunSettings
from bench.tasks import fetch, find_task
from medlite.engines import open_engine, open_server
from medlite.engines.engine import LogitsEngine, OpenSettings

OpenEngine = Callable[[Path, RunSettings], LogitsEngine]


def carry_out(opener: OpenEngine, request: RunRequest, reporter: Reporter) -> None:
    """Ask the questions and write the record to request.out."""
    assert request.out is not None
    settings, data = request.settings, request.data
    task = find_task(request.task, data)
    samples, shots = fetch.load(task, data, request.shots_data, n_shots=settings.prompting.n_shots)
    if data is not None:
        task = replace(task, n_samples=0, source=data.name, files=())  # the user's copy, of whatever size
    output = Output(request.out, resume=request.resume, force=request.force)
    if settings.server.url:
        exact = settings.max_tokens == 0
        with closing(open_server(settings.server.url, model=settings.server.model, exact=exact)) as server:
            template = artifacts.template_of_server(server.served) if settings.prompting.protocol == "chat" else None
            questions = prepare(task, samples, shots, settings.prompting, template)
            settings = replace(settings.with_context(server.info.n_context), measure_speed=False)
            subject = Subject(artifacts.facts_of_server(server.served), None)
            measure(server, subject, questions, settings, output, reporter)
        return
    measured = artifacts.look_at(request.artifact)
    questions = prepare(task, samples, shots, settings.prompting, artifacts.template_of(measured))
    facts = artifacts.facts_of(measured, reporter.counter("hash", measured.n_bytes))
    if not settings.runtime.n_context:
        settings = settings.with_context(min(CONTEXT_TOKENS, measured.n_context_trained or CONTEXT_TOKENS))
    reporter(Progress("load", 0, measured.n_bytes))
    with Meters() as meters, closing(opener(measured.path, settings)) as engine:
        reporter(Progress("load", measured.n_bytes, measured.n_bytes))
        kv_cache = memory.allocated_kv_bytes(engine.info) or measured.kv_cache_bytes(engine.info.n_context)
        measure(engine, Subject(facts, measured.path, kv_cache, meters), questions, settings, output, reporter)


def open_real_engine(path: Path, settings: RunSettings) -> LogitsEngine:
    """The engine that users run, on the device they asked for."""
    runtime = settings.runtime
    chosen = OpenSettings(runtime.device, runtime.n_context, runtime.n_threads or None, dtype=runtime.dtype)
    return open_engine(path, chosen, engine=runtime.engine)


def main(opener: OpenEngine = open_real_engine) -> None:
    """Answer the parent."""
    answer_parent(RunRequest, lambda request, reporter: carry_out(opener, request, reporter))


if __name__ == "__main__":
    main()
