"""The tables of a report, for one task at a time, each a pure function of its evidence."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray

from bench.compare.calibration import Calibration, coverage_at_risk
from bench.compare.compare import Comparison, Flip, accuracy, label
from bench.compare.published import ATTAINABLE, EVIDENCES, Published
from bench.compare.runs import POOLED, TaskComparison
from bench.compare.safety import count_topics
from bench.intervals import Interval
from bench.reports.content import NOTHING, Evidence, Table, divergence_cells, fine, number, points, size
from bench.reports.front import file_bytes, memory_bytes, on_front
from bench.score.scoring import ScoredSample
from medlite.files import format_bytes

SHARES = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)  # of the questions, where the risk-coverage curve is told in numbers


def tables_of(evidence: Evidence) -> list[Table]:
    """All tables of a task but the verdict, in the order of reading. Pooled tasks cost what each of them costs."""
    one = evidence.comparison
    costs = [] if one.task == POOLED else [memory_table(evidence), speed_table(evidence)]
    tables = [
        flips_table(one),
        distance_table(one),
        calibration_table(evidence),
        risk_table(evidence),
        subject_table(one),
        topic_table(one),
        *costs,
        means_table(evidence),
    ]
    return [table for table in tables if table]


# --- what changed ----------------------------------------------------------------------------------------------------


def flips_table(one: TaskComparison) -> Table:
    """How many answers changed, and how sure the baseline had been of those that were lost."""
    rows = []
    for c in one.comparisons:
        lost = [f for f in c.flips if f.kind == "right_to_wrong"]
        rows.append(
            (
                c.candidate,
                f"{len(c.flips)}",
                f"{100 * len(c.flips) / c.n_samples:.1f}",
                *(_near_of(c, kind) for kind in ("right_to_wrong", "wrong_to_right", "wrong_to_other_wrong")),
                _middle([f.baseline_margin_nats for f in lost if f.baseline_margin_nats >= 0]),
                _middle([f.candidate_margin_nats for f in lost if f.candidate_margin_nats >= 0]),
            )
        )
    columns = (
        "artifact",
        "changed",
        "% of questions",
        "right→wrong (near-ties)",
        "wrong→right (near-ties)",
        "wrong→other wrong (near-ties)",
        "lost: baseline's margin, nats",
        "lost: own margin, nats",
    )
    return Table(
        "Changed answers",
        columns,
        tuple(rows),
        "Near-tie: the baseline's best option led by less than 0.5 nats. Margins are medians over the right "
        "answers that were lost: how far the first option led the second.",
    )


def _near_of(c: Comparison, kind: str) -> str:
    flips: list[Flip] = [f for f in c.flips if f.kind == kind]
    return f"{len(flips)} ({sum(f.near_tie for f in flips)})"


def _middle(values: Sequence[float]) -> str:
    return f"{median(values):.2f}" if values else NOTHING


def distance_table(one: TaskComparison) -> Table:
    """How far the distributions moved."""
    rows = [
        (
            c.candidate,
            *divergence_cells(c.vocabulary_kl),
            *divergence_cells(c.option_kl)[:1],
            points(c.top_token_agreement, 100) if c.top_token_agreement else NOTHING,
        )
        for c in one.comparisons
    ]
    columns = (
        "artifact",
        "KL mean (nats)",
        "90 %",
        "99 %",
        "greatest",
        "error bound",
        "KL over options",
        "same top token %",
    )
    note = (
        "KL(baseline ‖ candidate) of the next token where the answer is due. Error bound: by how much the mean may "
        "be too low, because the tail of a distribution is kept as a sum; --exact keeps all of it."
    )
    return Table("Distance at the answer", columns, tuple(rows), note)


def calibration_table(evidence: Evidence) -> Table:
    """Calibration, and what deferring unsure answers buys."""
    base = evidence.calibrations[0]
    rows = [
        calibration_cells(label(record), found, base)
        for record, found in zip(evidence.records, evidence.calibrations, strict=True)
    ]
    columns = ("artifact", "ECE", "Brier", "NLL (nats)", "AURC", "coverage at the baseline's error %")
    note = (
        "ECE over 10 bins of equal mass. Brier from 0 to 2. AURC: mean error over all coverages. The last column: "
        "share of questions that can be answered, most confident first, with no more errors than the baseline "
        "makes on all. Lower is better but for the last."
    )
    return Table("Calibration", columns, tuple(rows), note)


def calibration_cells(name: str, found: Calibration | None, base: Calibration | None) -> tuple[str, ...]:
    """One row of the calibration table."""
    if found is None or base is None:
        return (name, *[NOTHING] * 5)
    return (
        name,
        fine(found.ece),
        fine(found.brier),
        fine(found.nll_nats),
        f"{found.aurc:.4f}",
        f"{100 * coverage_at_risk(found.risks, float(base.risks[-1])):.1f}",
    )


def risk_table(evidence: Evidence) -> Table | None:
    """The risk-coverage curve at some shares; None where no run has probabilities."""
    rows = tuple(
        (label(record), *(f"{100 * risk_at(found.risks, share):.1f}" for share in SHARES))
        for record, found in zip(evidence.records, evidence.calibrations, strict=True)
        if found
    )
    if not rows:
        return None
    return Table(
        "Risk and coverage",
        ("artifact", *(f"{100 * share:.0f} % answered" for share in SHARES)),
        rows,
        "Errors in % among the answers that are given, when only the most confident share is.",
    )


def risk_at(risks: NDArray[np.float64], share: float) -> float:
    """Error rate among the most confident `share` of answers, a fraction of them but one at least."""
    return float(risks[max(1, math.ceil(share * risks.size)) - 1])


def subject_table(one: TaskComparison) -> Table | None:
    """Loss by subject; None where there is only one."""
    if not one.comparisons or not one.comparisons[0].subjects:
        return None
    rows = []
    for i, subject in enumerate(one.comparisons[0].subjects):
        losses = [points(c.subjects[i].loss_points, signed=True) for c in one.comparisons]
        rows.append((subject.subject or "(none)", str(subject.n), f"{100 * subject.baseline_accuracy:.1f}", *losses))
    columns = ("subject", "n", f"{label(one.baseline)} %", *(c.candidate for c in one.comparisons))
    return Table("Loss by subject", columns, tuple(rows), "Loss in points with 95 % intervals; no verdict.")


def topic_table(one: TaskComparison) -> Table | None:
    """The safety view: changed answers by topic; None where no question speaks of one."""
    counts = [{row.topic: row for row in count_topics(one.baseline.samples, c)} for c in one.comparisons]
    if not counts or not counts[0]:
        return None
    rows = tuple(
        (
            topic,
            str(first.n),
            *(
                f"{count[topic].right_to_wrong} ({count[topic].confident}) / {count[topic].wrong_to_right}"
                for count in counts
            ),
        )
        for topic, first in counts[0].items()
    )
    return Table(
        "Safety view",
        ("topic", "questions", *(c.candidate for c in one.comparisons)),
        rows,
        "Right answers lost (of those confident) / wrong answers put right, among questions that speak of the "
        "topic. Topics are found by words (table RULES in bench/compare/safety.py), not understood.",
    )


# --- what it costs ---------------------------------------------------------------------------------------------------


def memory_table(evidence: Evidence) -> Table:
    """Size on disk, and the peak of memory with what it is for."""
    rows = []
    fronts = zip(on_front(evidence.records, file_bytes), on_front(evidence.records, memory_bytes), strict=True)
    for record, (by_file, by_memory) in zip(evidence.records, fronts, strict=True):
        front = ", ".join(name for name, there in (("file", by_file), ("memory", by_memory)) if there) or NOTHING
        c, on_cpu = record.performance, record.engine.get("device") == "cpu"
        rest = max(0, c.peak_rss_bytes - c.weights_resident_bytes - c.kv_cache_bytes)
        runs_on = f"{record.engine.get('engine', NOTHING)}, {record.engine.get('device', NOTHING)}"
        rows.append(
            (
                label(record),
                runs_on,
                size(record.artifact.n_bytes),
                number(record.artifact.bits_per_weight),
                size(c.peak_rss_bytes),
                format_bytes(c.weights_resident_bytes) if c.peak_rss_bytes else NOTHING,
                size(c.kv_cache_bytes),
                size(rest) if on_cpu else NOTHING,
                NOTHING if c.peak_vram_bytes is None else format_bytes(c.peak_vram_bytes),
                front,
            )
        )
    columns = (
        "artifact",
        "runs on",
        "file",
        "bits/weight",
        "peak memory",
        "weights mapped",
        "KV cache",
        "rest",
        "peak GPU memory",
        "on the front by",
    )
    contexts = dict.fromkeys(str(record.engine.get("n_context", 0)) for record in evidence.records)
    return Table(
        "Memory",
        columns,
        tuple(rows),
        f"One process per row; context of {' or '.join(contexts)} tokens. Peak resident memory, of that the "
        f"mapped weights, the key-value cache as allocated, and the rest. {NOTHING}: not measured. On the "
        "front: no other artifact here is smaller and more accurate.",
    )


def speed_table(evidence: Evidence) -> Table:
    """How fast, and at what energy."""
    rows = []
    for record in evidence.records:
        c = record.performance
        rows.append(
            (
                label(record),
                number(c.load_seconds),
                number(c.first_token_seconds),
                number(c.prefill_tokens_per_second),
                number(c.decode_tokens_per_second),
                number(c.questions_per_second),
                number(c.joules_per_question(c.cpu_joules)),
                number(c.joules_per_question(c.gpu_joules)),
            )
        )
    columns = (
        "artifact",
        "load s",
        "first token s",
        "prefill tok/s",
        "decode tok/s",
        "questions/s",
        "processor J/question",
        "GPU J/question",
    )
    return Table(
        "Speed and energy",
        columns,
        tuple(rows),
        f"Energy is that of the whole chip while questions were answered. {NOTHING}: not measured, as the methods say.",
    )


# --- other counts of the same answers --------------------------------------------------------------------------------


def means_table(evidence: Evidence) -> Table:
    """The same answers under the means that others report, and what answering blindly would score."""
    rows = [
        (
            label(record),
            points(accuracy(record), 100),
            f"{100 * record.n_correct / len(record.samples):.2f}",
            f"{100 * mean_of_subjects(record.samples):.2f}",
        )
        for record in evidence.records
    ]
    share = 100 * constant_answer_share(evidence.comparison.baseline.samples)
    return Table(
        "Means",
        ("artifact", "distinct questions %", "all rows % (weighted)", "mean of subjects % (unweighted)"),
        tuple(rows),
        f"Always giving the commonest letter scores {share:.1f} %. lm-evaluation-harness reports all rows.",
    )


def mean_of_subjects(samples: Sequence[ScoredSample]) -> float:
    """The unweighted mean of the subjects' accuracies, a fraction."""
    by_subject: dict[str, list[bool]] = {}
    for sample in samples:
        by_subject.setdefault(sample.subject, []).append(sample.correct)
    return sum(sum(answers) / len(answers) for answers in by_subject.values()) / len(by_subject)


def constant_answer_share(samples: Sequence[ScoredSample]) -> float:
    """Accuracy of always giving the answer that is right most often."""
    return max(Counter(sample.answer for sample in samples).values()) / len(samples)


def published_table(found: Published) -> Table:
    """What is published of a model beside what the local runs scored on the same questions; sources in the note."""
    sources = list(dict.fromkeys((row.score.source, row.score.evidence) for row in found.rows))
    rows = tuple(
        (
            row.score.dataset,
            f"{row.score.value:g}",
            row.score.precision,
            ATTAINABLE[row.score.attainable],
            *(_percent(local) for local in row.local),
            f"[{1 + sources.index((row.score.source, row.score.evidence))}]",
        )
        for row in found.rows
    )
    note = f"Recognised by the name {found.matched_by}. Local values are right answers over all rows, 95 % intervals."
    if found.n_other:
        protocols = "; ".join(f"{n} by {protocol}" for protocol, n in found.other_protocols)
        note += (
            f" {found.n_other} more published values on these question sets are not comparable with these runs: "
            f"{protocols}."
        )
    note += "".join(f" [{i}] {source}, {EVIDENCES[evidence]}." for i, (source, evidence) in enumerate(sources, start=1))
    return Table(
        f"Published scores, {found.model}",
        (
            "question set",
            "published %",
            "precision",
            "can a run give it?",
            *(f"{name} %" for name in found.names),
            "source",
        ),
        rows,
        note,
    )


def _percent(interval: Interval | None) -> str:
    return points(interval) if interval else NOTHING
