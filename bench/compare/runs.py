"""Runs of several tasks: a folder of records, pairs of a baseline's and a candidate's, and all tasks pooled."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.compare.compare import Comparison, compare, label
from bench.run.record import RunRecord, TaskFacts, read_record
from medlite.errors import RecordError

SUFFIX = ".jsonl"
POOLED = "pooled"


@dataclass(frozen=True)
class TaskComparison:
    """One task: the baseline's record, and each candidate's with its comparison, in the order that was given."""

    task: str
    baseline: RunRecord
    candidates: tuple[RunRecord, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def records(self) -> tuple[RunRecord, ...]:
        """The baseline and the candidates."""
        return (self.baseline, *self.candidates)


def read_runs(path: Path) -> dict[str, RunRecord]:
    """Records by task name: of a file, one; of a folder, one a file. Raises RecordError if a task is there twice."""
    if not path.is_dir():
        record = read_record(path)
        return {record.task.name: record}
    runs: dict[str, RunRecord] = {}
    for file in sorted(path.glob(f"*{SUFFIX}")):
        record = read_record(file)
        if record.task.name in runs:
            raise RecordError(f"{file}: a second record of task {record.task.name} in this folder")
        runs[record.task.name] = record
    if not runs:
        raise RecordError(f"{path}: holds no run record (*{SUFFIX})")
    return runs


def compare_runs(
    baseline: Mapping[str, RunRecord],
    candidates: Sequence[Mapping[str, RunRecord]],
    *,
    margin_points: float | None = None,
    seed: int = 0,
) -> list[TaskComparison]:
    """Every task of the baseline against every candidate, then all tasks pooled where there are several.

    Raises RecordError if a candidate lacks a task of the baseline or has another one.
    """
    for runs in candidates:
        if set(runs) != set(baseline):
            raise RecordError(
                f"the baseline has tasks {', '.join(baseline)}, a candidate {', '.join(runs)}",
                hint="run both with the same --task",
            )
    baseline, *candidates = distinctly_labelled([baseline, *candidates])
    tables = [(name, record, [runs[name] for runs in candidates]) for name, record in baseline.items()]
    if len(tables) > 1 and len(poolable(baseline)) > 1:
        tables.append((POOLED, pool(baseline), [pool(runs) for runs in candidates]))
    return [
        TaskComparison(
            name,
            record,
            tuple(others),
            tuple(compare(record, other, margin_points=margin_points, seed=seed) for other in others),
        )
        for name, record, others in tables
    ]


def distinctly_labelled(runs: Sequence[Mapping[str, RunRecord]]) -> list[Mapping[str, RunRecord]]:
    """The same runs, each with a name of its own: the recipe; the file's stem where a recipe stands twice or there are
    several models; then a number."""
    first = [next(iter(one.values())) for one in runs]
    recipes = Counter(label(record) for record in first)
    several = len({(r.artifact.source, r.artifact.n_params) for r in first}) > 1
    names = [
        r.artifact.file_name.removesuffix(".gguf") if several or recipes[label(r)] > 1 else label(r) for r in first
    ]
    seen: Counter[str] = Counter()
    labels = []
    for name in names:
        seen[name] += 1
        labels.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return [
        {task: replace(record, label=name) for task, record in one.items()}
        for one, name in zip(runs, labels, strict=True)
    ]


def poolable(runs: Mapping[str, RunRecord]) -> list[RunRecord]:
    """The records whose samples are right or wrong; probability masses are not added to counts."""
    return [record for record in runs.values() if record.task.measure == "accuracy"]


def pool(runs: Mapping[str, RunRecord]) -> RunRecord:
    """All right-or-wrong tasks as one record; the subject of each sample is its task.

    Each question counts once, so large sets weigh more, and a question that stands in two sets is one cluster.
    Artifact, settings and costs are the first record's.
    """
    records = poolable(runs)
    first = records[0]
    samples = tuple(
        replace(sample, id=f"{record.task.name}/{sample.id}", subject=record.task.name)
        for record in records
        for sample in record.samples
    )
    digest = "".join(record.task.dataset_sha256[:16] for record in records)
    facts = TaskFacts(
        name=POOLED,
        source=" ".join(record.task.source for record in records),
        revision=" ".join(record.task.revision for record in records),
        licence="",
        measure="accuracy",
        n_all=sum(record.task.n_all for record in records),
        n_samples=len(samples),
        dataset_sha256=digest,
    )
    return replace(first, task=facts, samples=samples, complete=all(record.complete for record in records))
