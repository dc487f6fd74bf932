"""A run on disk: one portable file that holds everything a comparison needs.

JSON lines. First a header (what was measured, with which settings), then one line a sample in the order of the run,
last an end line (performance and totals). While a run is going on, its file is called NAME.part and each sample is
appended as soon as it is scored; the final name means that the end line is there. A file cut in the middle is
readable up to its last whole line.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any, Self, TypeVar, cast

import msgspec

from bench.score import distributions
from bench.score.scoring import OK, ScoredSample
from bench.settings import RunSettings, settings_from_json, settings_to_json
from medlite.errors import RecordError
from medlite.files import check_writable, part_path, publish
from medlite.formats.json import decode_json

SCHEMA = "medlite.run/1"
MAX_HEADER_BYTES = 1 << 20  # a header has some 3 kB
T = TypeVar("T")


@dataclass(frozen=True)
class ArtifactFacts:
    """The measured file. bits_per_weight: tensor data bits / n_params. source: the checkpoint that it was made from, by
    its receipt (a hub repository or a folder's name); empty where nothing says."""

    file_name: str
    sha256: str
    format: str
    model_name: str
    recipe: str
    n_params: int
    n_bytes: int
    bits_per_weight: float
    source: str = ""


@dataclass(frozen=True)
class TaskFacts:
    """The question set. n_all: samples before --limit. dataset_sha256: of the samples that were asked, every field."""

    name: str
    source: str
    revision: str
    licence: str
    measure: str
    n_all: int
    n_samples: int
    dataset_sha256: str


@dataclass(frozen=True)
class Performance:
    """Cost of a run. Times in seconds, memory in bytes; 0 where it was not measured, as `notes` says.

    n_scored: samples that this process scored (fewer than the run's after --resume). GPU memory, and energy in joules
    over the scoring, are None where they were not measured. Definitions: bench/README.md.
    """

    load_seconds: float = 0.0
    first_token_seconds: float = 0.0
    prefill_tokens_per_second: float = 0.0
    decode_tokens_per_second: float = 0.0
    scoring_seconds: float = 0.0
    n_scored: int = 0
    n_prompt_tokens: int = 0
    peak_rss_bytes: int = 0
    weights_resident_bytes: int = 0
    kv_cache_bytes: int = 0
    peak_vram_bytes: int | None = None
    cpu_joules: float | None = None
    gpu_joules: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def questions_per_second(self) -> float:
        """Samples scored per second of scoring, loading excluded; 0 where nothing was scored."""
        return self.n_scored / self.scoring_seconds if self.scoring_seconds else 0.0

    def joules_per_question(self, joules: float | None) -> float | None:
        """A question's share of cpu_joules or gpu_joules; None where it was not measured or nothing was scored."""
        return joules / self.n_scored if joules is not None and self.n_scored else None


@dataclass(frozen=True)
class RunRecord:
    """One engine, one question set, every sample. `complete` is False if the file ends before its end line.

    label: what tables call it where the recipe's name is not enough; it is not written to the file.
    """

    artifact: ArtifactFacts
    engine: dict[str, Any]
    task: TaskFacts
    settings: RunSettings
    prompts_sha256: str
    environment: dict[str, str]
    samples: tuple[ScoredSample, ...] = ()
    performance: Performance = field(default_factory=Performance)
    complete: bool = False
    label: str = ""

    @property
    def n_correct(self) -> int:
        """Samples answered rightly; truncated, failed and unparsed ones are wrong."""
        return sum(s.correct for s in self.samples)

    def count(self, status: str) -> int:
        """Samples with that status."""
        return sum(s.status == status for s in self.samples)


def header_line(record: RunRecord) -> str:
    """The first line of the file."""
    value = {
        "kind": "header",
        "schema": SCHEMA,
        "artifact": asdict(record.artifact),
        "engine": record.engine,
        "task": asdict(record.task),
        "settings": settings_to_json(record.settings),
        "prompts_sha256": record.prompts_sha256,
        "environment": record.environment,
    }
    return json.dumps(value, ensure_ascii=False)


def sample_line(sample: ScoredSample) -> str:
    """One sample as one line; floats keep every digit."""
    value: dict[str, Any] = {
        "kind": "sample",
        "id": sample.id,
        "status": sample.status,
        "prediction": sample.prediction,
        "answer": sample.answer,
        "logp": list(sample.option_log_probabilities),
        "subject": sample.subject,
        "cluster": sample.cluster,
        "prompt": sample.prompt_sha256,
        "n_prompt_tokens": sample.n_prompt_tokens,
    }
    if sample.question:
        value["question"], value["options"] = sample.question, list(sample.options)
    if sample.true_options:
        value["true_options"] = list(sample.true_options)
    if sample.text:
        value["text"] = sample.text
    if sample.distribution is not None:
        value["distribution"] = distributions.to_json(sample.distribution)
    return json.dumps(value, ensure_ascii=False)


def end_line(performance: Performance, samples: tuple[ScoredSample, ...]) -> str:
    """The last line: what the run cost, and totals by which a reader checks that nothing is missing."""
    totals = {
        "n_samples": len(samples),
        "n_ok": sum(s.status == OK for s in samples),
        "n_correct": sum(s.correct for s in samples),
    }
    return json.dumps({"kind": "end", "performance": asdict(performance), "totals": totals})


def read_header(path: Path) -> RunRecord:
    """The record in `path` without its samples, from its first line. Raises RecordError if the file is none."""
    try:
        with path.open("rb") as handle:
            line = handle.readline(MAX_HEADER_BYTES)
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
    return _record_from_header(line, str(path))


def read_record(path: Path) -> RunRecord:
    """The record in `path`, up to its last whole line. Raises RecordError if it is none, or of an unknown schema."""
    if not path.is_file():
        partial = part_path(path)
        hint = (
            f"{partial} holds an unfinished run: --resume continues it"
            if partial.is_file()
            else "medlite bench run MODEL -o FILE writes one"
        )
        raise RecordError(f"{path}: no such run record", hint=hint)
    lines = whole_lines(path)
    first = next(lines, None)
    if first is None:
        raise RecordError(f"{path}: no whole line")
    record = _record_from_header(first, str(path))
    samples: list[ScoredSample] = []
    for number, line in enumerate(lines, start=2):
        where = f"{path} line {number}"
        kind = decode_json(line, _Line, RecordError, where=where).kind
        if kind == "end":
            return _finished(replace(record, samples=tuple(samples)), line, where)
        samples.append(_sample(line, kind, where))
    return replace(record, samples=tuple(samples))


def whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of `path` that end in a newline; a last line that does not was cut and is left out."""
    with path.open("rb") as handle:
        for line in handle:
            if line.endswith(b"\n"):
                yield line


class RecordWriter:
    """Appends samples to NAME.part and gives the file its name at the end. To be used in a `with` block.

    With resume, the whole groups of an existing part stay, if its header equals `record`'s, and `done` holds them.
    A block that raises leaves the part for a later resume.
    """

    def __init__(self, path: Path, record: RunRecord, *, resume: bool = False, force: bool = False) -> None:
        check_writable(path, force=force)
        self.path, self.part = path, part_path(path)
        self.done: tuple[ScoredSample, ...] = ()
        if resume and self.part.is_file():
            self.done = self._resume(record)
            self._handle: IO[str] = self.part.open("a", encoding="utf-8")
        else:
            self._handle = self.part.open("w", encoding="utf-8")
            self._write(header_line(record))

    def _resume(self, record: RunRecord) -> tuple[ScoredSample, ...]:
        """The samples of the whole groups that are there; the file is cut after them."""
        old = read_record(self.part)
        for what in ("artifact", "engine", "task", "settings", "prompts_sha256"):
            if getattr(old, what) != getattr(record, what):
                raise RecordError(
                    f"{self.part}: was begun with another {what}: {getattr(old, what)}",
                    hint="run without --resume to begin anew",
                )
        n_kept = len(old.samples)
        if n_kept < record.task.n_samples:
            n_kept -= n_kept % max(1, record.settings.n_group)
        n_bytes = sum(len(line) for line, _ in zip(whole_lines(self.part), range(1 + n_kept), strict=False))
        os.truncate(self.part, n_bytes)
        return old.samples[:n_kept]

    def add(self, sample: ScoredSample) -> None:
        """Append one sample; it is on its way to the disk when this returns."""
        self._write(sample_line(sample))

    def finish(self, performance: Performance, samples: tuple[ScoredSample, ...]) -> None:
        """Write the end line and give the file its final name."""
        self._write(end_line(performance, samples))
        self._handle.close()
        publish(self.part, self.path)

    def _write(self, line: str) -> None:
        self._handle.write(line + "\n")
        self._handle.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()


@dataclass(frozen=True)
class _Line:
    """What every line says of itself."""

    kind: str = ""
    schema: str = ""


@dataclass(frozen=True)
class _Header:
    """The first line, its parts still as text."""

    artifact: msgspec.Raw
    engine: dict[str, Any]
    task: msgspec.Raw
    settings: dict[str, Any]
    prompts_sha256: str
    environment: dict[str, str]


class _SampleLine(msgspec.Struct, rename={"option_log_probabilities": "logp", "prompt_sha256": "prompt"}):
    """One sample: the fields of ScoredSample, two by the short names of the file."""

    id: str
    status: str
    prediction: int
    answer: int
    option_log_probabilities: tuple[float, ...]
    subject: str
    cluster: str
    prompt_sha256: str
    n_prompt_tokens: int
    question: str = ""
    options: tuple[str, ...] = ()
    true_options: tuple[int, ...] = ()
    text: str = ""
    distribution: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Totals:
    n_samples: int
    n_correct: int


@dataclass(frozen=True)
class _EndLine:
    performance: msgspec.Raw
    totals: _Totals


def _exactly(raw: msgspec.Raw, expected: type[T], where: str) -> T:
    """`raw` as the dataclass `expected`, with no other key: a record of another version says more."""
    known = {one.name for one in fields(cast(Any, expected))}
    if unknown := decode_json(raw, dict[str, Any], RecordError, where=where).keys() - known:
        raise RecordError(f"{where}: unknown key {', '.join(sorted(unknown))}")
    return decode_json(raw, expected, RecordError, where=where)


def _record_from_header(line: bytes, where: str) -> RunRecord:
    said = decode_json(line, _Line, RecordError, where=where)
    if said.kind != "header" or not said.schema:
        raise RecordError(f"{where}: is no run record: the first line is no header")
    if said.schema != SCHEMA:
        raise RecordError(
            f"{where}: schema {said.schema!r}, this version reads {SCHEMA!r}",
            hint="read it with the version of medlite that wrote it, or a newer one",
        )
    where = f"{where}: malformed header"
    header = decode_json(line, _Header, RecordError, where=where)
    return RunRecord(
        artifact=_exactly(header.artifact, ArtifactFacts, f"{where}: artifact"),
        engine=header.engine,
        task=_exactly(header.task, TaskFacts, f"{where}: task"),
        settings=settings_from_json(header.settings, f"{where}: settings"),
        prompts_sha256=header.prompts_sha256,
        environment=header.environment,
    )


def _sample(line: bytes, kind: str, where: str) -> ScoredSample:
    if kind != "sample":
        raise RecordError(f"{where}: malformed sample: kind {kind!r}")
    found = decode_json(line, _SampleLine, RecordError, where=f"{where}: malformed sample")
    distribution = None if found.distribution is None else distributions.from_json(found.distribution, where)
    return ScoredSample(**{**msgspec.structs.asdict(found), "distribution": distribution})


def _finished(record: RunRecord, line: bytes, where: str) -> RunRecord:
    end = decode_json(line, _EndLine, RecordError, where=f"{where}: malformed end line")
    performance = _exactly(end.performance, Performance, f"{where}: malformed end line: performance")
    said, found = (end.totals.n_samples, end.totals.n_correct), (len(record.samples), record.n_correct)
    if said != found:
        raise RecordError(f"{where}: totals say {said[1]} of {said[0]} right, the lines say {found[1]} of {found[0]}")
    return replace(record, performance=performance, complete=True)
