"""Versions, hashes, seeds: what makes the numbers of a report repeatable."""

from bench.compare.compare import label
from bench.compare.runs import POOLED, TaskComparison
from bench.intervals import LEVEL
from bench.reports.content import in_points
from bench.run.record import RunRecord


def method_lines(one: TaskComparison) -> list[str]:
    """Everything that decides the numbers of a task, a line each."""
    b, records = one.baseline, one.records
    if one.task == POOLED:
        return [
            f"All right-or-wrong tasks pooled, {len(b.samples):,} rows; a question that stands in two sets counts "
            "once. Artifacts and costs stand with the tasks.",
            *_warnings(one),
        ]
    prompting = b.settings.prompting
    lines = [
        f"Question set {b.task.name} ({b.task.source}, revision {b.task.revision or 'embedded or local'}, licence "
        f"{b.task.licence}), {b.task.n_samples:,} of {b.task.n_all:,} questions, sha256 {b.task.dataset_sha256[:16]}, "
        f"prompts sha256 {b.prompts_sha256[:16]}.",
        f"Protocol {prompting.protocol}, {prompting.n_shots} shots, sampling seed {prompting.seed}; margin "
        f"{in_points([r.settings.margin_points for r in records])} as declared before the runs. "
        f"Intervals at {100 * LEVEL:g} %; {bootstrap(one)}.",
        *(artifact_line(record) for record in records),
    ]
    notes: dict[str, list[str]] = {}
    for record in records:
        for note in record.performance.notes:
            notes.setdefault(note, []).append(label(record))
    lines += [
        f"{'All runs' if len(names) == len(records) else ', '.join(names)}: {note}." for note, names in notes.items()
    ]
    return [*lines, *_warnings(one)]


def bootstrap(one: TaskComparison) -> str:
    """Resamples and seed of the comparisons."""
    kinds = dict.fromkeys((c.n_resamples, c.seed) for c in one.comparisons)
    return " and ".join(f"bootstrap of {n:,} resamples, seed {seed}" for n, seed in kinds) or "no comparison"


def artifact_line(record: RunRecord) -> str:
    """File, hash, engine, device and versions of one run."""
    e, a = record.engine, record.artifact
    made_from = f" from {a.source}" if a.source else ""
    versions = ", ".join(
        f"{name} {record.environment[name]}"
        for name in ("medlite", "python", "numpy", "system")
        if name in record.environment
    )
    return (
        f"{label(record)}: {a.file_name}{made_from}, sha256 {a.sha256[:16]}, "
        f"{e.get('engine_version') or e.get('engine')}, {e.get('device')} ({e.get('device_name') or 'no name'}), "
        f"{e.get('n_threads') or 'unknown'} threads; {versions}."
    )


def _warnings(one: TaskComparison) -> list[str]:
    return list(dict.fromkeys(f"Warning: {w}." for c in one.comparisons for w in c.warnings))
