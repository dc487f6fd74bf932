"""The child's side of `bench.run.run`: one request on stdin, JSON lines on stdout, one measurement, the end.

Request: an object with artifact, task, settings, data, shots_data, out, resume, force.
Answers: {"progress": [phase, done, total]}, {"error": {type, message, hint}}, {"done": true}.
What native libraries print on stdout goes to stderr.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from bench.run import artifacts, memory
from bench.run.measure import Output, Progress, Subject, measure, prepare
from bench.run.meters import Meters
from bench.run.record import CONTEXT_TOKENS, RunSettings
from bench.score.server import facts_of_server, template_of_server
from bench.tasks import fetch, find_task
from bench.tasks.local import local_task
from bench.text.distance import BaselineWriter, Differences, baseline_bytes, read_baseline, tokens_to_keep
from bench.text.perplexity import N_CONTEXT, chunks, nats_of, read_text, scored_blocks, text_score
from medlite.engines.engine import Engine
from medlite.engines.server.engine import OpenAIEngine, open_openai
from medlite.engines.server.http import parse_address
from medlite.errors import MedliteError, ServerError
from medlite.files import check_free_space
from medlite.models.hub import is_offline

OpenEngine = Callable[[Path, RunSettings], Engine]
PROGRESS_SECONDS = 0.1  # between two reports of one phase


class Reporter:
    """Writes answers as JSON lines; progress no more often than every PROGRESS_SECONDS, first and last always."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.last = ("", 0.0)

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        phase, at = self.last
        if progress.phase == phase and now - at < PROGRESS_SECONDS and progress.done < progress.total:
            return
        self.last = (progress.phase, now)
        self.say({"progress": [progress.phase, progress.done, progress.total]})

    def say(self, value: dict[str, Any]) -> None:
        """One answer."""
        self.stream.write(json.dumps(value) + "\n")
        self.stream.flush()


def serve(open_engine: OpenEngine, request: dict[str, Any], reporter: Reporter) -> None:
    """Carry out one request. A MedliteError becomes an answer."""
    try:
        if "text" in request:
            reporter.say({"result": _score_text(open_engine, request, reporter)})
        else:
            _measure(open_engine, request, reporter)
        reporter.say({"done": True})
    except MedliteError as error:
        answer = {"type": type(error).__name__, "message": str(error), "hint": error.hint}
        reporter.say({"error": answer})


def _measure(open_engine: OpenEngine, request: dict[str, Any], reporter: Reporter) -> None:
    settings = RunSettings(**request["settings"])
    data = Path(request["data"]) if request["data"] else None
    task = local_task(data) if request["task"] == "local" and data else find_task(request["task"])
    shots_data = Path(request["shots_data"]) if request.get("shots_data") else None
    samples, shots = fetch.load(task, data, shots_data, n_shots=settings.n_shots)
    if data is not None:
        task = replace(task, n_samples=0, source=data.name, files=())  # the user's copy, of whatever size
    output = Output(Path(request["out"]), resume=request["resume"], force=request["force"])
    if settings.url:
        with closing(open_server(settings)) as server:
            template = template_of_server(server) if settings.protocol == "chat" else None
            questions = prepare(task, samples, shots, settings, template)
            settings = replace(settings, n_context=server.info.n_context, measure_speed=False)
            measure(server, Subject(facts_of_server(server), None), questions, settings, output, reporter)
        return
    measured = artifacts.look_at(Path(request["artifact"]))
    questions = prepare(task, samples, shots, settings, artifacts.template_of(measured))
    facts = artifacts.facts_of(measured, counter(reporter, "hash", measured.n_bytes))
    if not settings.n_context:
        settings = replace(settings, n_context=min(CONTEXT_TOKENS, measured.n_context_trained or CONTEXT_TOKENS))
    reporter(Progress("load", 0, measured.n_bytes))
    with Meters() as meters:
        engine = open_engine(measured.path, settings)
        try:
            reporter(Progress("load", measured.n_bytes, measured.n_bytes))
            kv_cache = memory.allocated_kv_bytes(engine.info) or measured.kv_cache_bytes(engine.info.n_context)
            measure(engine, Subject(facts, measured.path, kv_cache, meters), questions, settings, output, reporter)
        finally:
            engine.close()


def _score_text(open_engine: OpenEngine, request: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """A TextScore as JSON, and a TextDistance where the request names a baseline's file."""
    text, text_sha256 = read_text(Path(request["text"]))
    settings = RunSettings(**request["settings"])
    settings = replace(settings, n_context=settings.n_context or N_CONTEXT)
    measured = artifacts.look_at(Path(request["artifact"]))
    facts = artifacts.facts_of(measured, counter(reporter, "hash", measured.n_bytes))
    keep, against = (Path(request[name]) if request[name] else None for name in ("keep", "against"))
    with closing(open_engine(measured.path, settings)) as engine, ExitStack() as stack:
        cut, n_vocab = chunks(engine, text, settings.n_context), engine.info.n_vocab
        writer = None
        if keep:
            n_kept = tokens_to_keep(cut, n_vocab, settings.max_tokens)
            check_free_space(keep.parent, baseline_bytes(cut, n_vocab, n_kept))
            writer = stack.enter_context(BaselineWriter(keep, cut, n_vocab, n_kept))
        baseline = read_baseline(against, cut, n_vocab) if against else None
        differences, nats = Differences(), []
        for n_done, (rows, targets) in enumerate(scored_blocks(engine, cut), start=1):
            nats.append(nats_of(rows, targets))
            if writer:
                writer.add(rows, nats[-1])
            if baseline:
                base_nats, base = next(baseline)
                differences.add(base, base_nats, rows, nats[-1])
            reporter(Progress("score", n_done // cut.blocks_per_chunk, len(cut.pieces)))
    score = text_score(facts, cut, text_sha256, np.concatenate(nats))
    return {"score": asdict(score), "distance": asdict(differences.distance()) if against else None}


def counter(reporter: Reporter, phase: str, total: int) -> Callable[[int], None]:
    """A function that adds up bytes and reports them as progress of `phase`."""
    done = 0

    def on_bytes(n: int) -> None:
        nonlocal done
        done += n
        reporter(Progress(phase, done, total))

    return on_bytes


def open_server(settings: RunSettings) -> OpenAIEngine:
    """The server that the settings name. Raises ServerError for another machine where the user forbade the network."""
    address = parse_address(settings.url)
    if is_offline() and not address.is_this_machine:
        raise ServerError(
            f"{address.text} is another machine, and --offline or HF_HUB_OFFLINE forbids the network",
            hint="a server on localhost may be asked",
        )
    return open_openai(address, model=settings.server_model, full=settings.max_tokens == 0)


def open_real_engine(path: Path, settings: RunSettings) -> Engine:
    """The engine that users run, on the device they asked for."""
    from medlite.engines import open_engine

    if settings.engine == "torch":
        from medlite.engines.torch import open_torch_reference

        return open_torch_reference(
            path,
            device=settings.device,
            n_context=settings.n_context,
            n_threads=settings.n_threads or None,
            dtype=settings.dtype,
        )
    return open_engine(
        path,
        engine=settings.engine,
        device=settings.device,
        n_context=settings.n_context,
        n_threads=settings.n_threads or None,
    )


def main(open_engine: OpenEngine = open_real_engine) -> None:
    """Read the request, free stdout from whatever native code prints, measure."""
    request = json.loads(sys.stdin.readline())
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        serve(open_engine, request, Reporter(answers))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
