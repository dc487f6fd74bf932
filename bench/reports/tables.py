"""The tables of a report, for one task at a time, each a pure function of its evidence."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import compress
from statistics import median

from bench.compare.calibration import Calibration, coverage_at_risk
from bench.compare.compare import Flip, accuracy, label
from bench.compare.published import ATTAINABLE, EVIDENCES, Published
from bench.compare.runs import POOLED, TaskComparison
from bench.compare.safety import count_topics
from bench.intervals import Values
from bench.reports.content import NOTHING, Evidence, Table, divergence_cells, fine, number, points, size, tabulate
from bench.reports.front import file_bytes, memory_bytes, on_front
from bench.run.record import Performance
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
    columns = {
        "artifact": lambda c: c.candidate,
        "changed": lambda c: str(len(c.flips)),
        "% of questions": lambda c: f"{100 * len(c.flips) / c.n_samples:.1f}",
        "right→wrong (near-ties)": lambda c: _near_of(c.of_kind("right_to_wrong")),
        "wrong→right (near-ties)": lambda c: _near_of(c.of_kind("wrong_to_right")),
        "wrong→other wrong (near-ties)": lambda c: _near_of(c.of_kind("wrong_to_other_wrong")),
        "lost: baseline's margin, nats": lambda c: _middle(f.baseline_margin_nats for f in c.of_kind("right_to_wrong")),
        "lost: own margin, nats": lambda c: _middle(f.candidate_margin_nats for f in c.of_kind("right_to_wrong")),
    }
    note = (
        "Near-tie: the baseline's best option led by less than 0.5 nats. Margins are medians over the right "
        "answers that were lost: how far the first option led the second."
    )
    return tabulate("Changed answers", columns, zip(one.comparisons), note)


def _near_of(flips: Sequence[Flip]) -> str:
    return f"{len(flips)} ({sum(f.near_tie for f in flips)})"


def _middle(margins: Iterable[float]) -> str:
    """The median of the margins that are known."""
    known = [margin for margin in margins if margin >= 0]
    return f"{median(known):.2f}" if known else NOTHING


def distance_table(one: TaskComparison) -> Table:
    """How far the distributions moved."""
    kl_columns = ("KL mean (nats)", "90 %", "99 %", "greatest", "error bound")
    rows = tuple(
        (
            c.candidate,
            *divergence_cells(c.vocabulary_kl),
            divergence_cells(c.option_kl)[0],
            points(c.top_token_agreement, 100) if c.top_token_agreement else NOTHING,
        )
        for c in one.comparisons
    )
    note = (
        "KL(baseline ‖ candidate) of the next token where the answer is due. Error bound: by how much the mean may "
        "be too low, because the tail of a distribution is kept as a sum; --exact keeps all of it."
    )
    columns = ("artifact", *kl_columns, "KL over options", "same top token %")
    return Table("Distance at the answer", columns, rows, note)


def calibration_table(evidence: Evidence) -> Table:
    """Calibration, and what deferring unsure answers buys."""
    base = evidence.calibrations[0]
    found = zip(evidence.records, evidence.calibrations, strict=True)
    rows = tuple(calibration_cells(label(record), calibration, base) for record, calibration in found)
    columns = ("artifact", "ECE", "Brier", "NLL (nats)", "AURC", "coverage at the baseline's error %")
    note = (
        "ECE over 10 bins of equal mass. Brier from 0 to 2. AURC: mean error over all coverages. The last column: "
        "share of questions that can be answered, most confident first, with no more errors than the baseline "
        "makes on all. Lower is better but for the last."
    )
    return Table("Calibration", columns, rows, note)


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


def risk_at(risks: Values, share: float) -> float:
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

    def rest(costs: Performance) -> int:
        return max(0, costs.peak_rss_bytes - costs.weights_resident_bytes - costs.kv_cache_bytes)

    columns = {
        "artifact": lambda r, c, *_: label(r),
        "runs on": lambda r, c, *_: f"{r.engine.get('engine', NOTHING)}, {r.engine.get('device', NOTHING)}",
        "file": lambda r, c, *_: size(r.artifact.n_bytes),
        "bits/weight": lambda r, c, *_: number(r.artifact.bits_per_weight),
        "peak memory": lambda r, c, *_: size(c.peak_rss_bytes),
        "weights mapped": lambda r, c, *_: format_bytes(c.weights_resident_bytes) if c.peak_rss_bytes else NOTHING,
        "KV cache": lambda r, c, *_: size(c.kv_cache_bytes),
        "rest": lambda r, c, *_: size(rest(c)) if r.engine.get("device") == "cpu" else NOTHING,
        "peak GPU memory": lambda r, c, *_: NOTHING if c.peak_vram_bytes is None else format_bytes(c.peak_vram_bytes),
        "on the front by": lambda r, c, *fronts: ", ".join(compress(("file", "memory"), fronts)) or NOTHING,
    }
    records = evidence.records
    fronts = (on_front(records, file_bytes), on_front(records, memory_bytes))
    items = zip(records, (record.performance for record in records), *fronts, strict=True)
    contexts = dict.fromkeys(str(record.engine.get("n_context", 0)) for record in records)
    note = (
        f"One process per row; context of {' or '.join(contexts)} tokens. Peak resident memory, of that the "
        f"mapped weights, the key-value cache as allocated, and the rest. {NOTHING}: not measured. On the "
        "front: no other artifact here is smaller and more accurate."
    )
    return tabulate("Memory", columns, items, note)


def speed_table(evidence: Evidence) -> Table:
    """How fast, and at what energy."""
    columns = {
        "artifact": lambda r, c: label(r),
        "load s": lambda r, c: number(c.load_seconds),
        "first token s": lambda r, c: number(c.first_token_seconds),
        "prefill tok/s": lambda r, c: number(c.prefill_tokens_per_second),
        "decode tok/s": lambda r, c: number(c.decode_tokens_per_second),
        "questions/s": lambda r, c: number(c.questions_per_second),
        "processor J/question": lambda r, c: number(c.joules_per_question(c.cpu_joules)),
        "GPU J/question": lambda r, c: number(c.joules_per_question(c.gpu_joules)),
    }
    note = (
        f"Energy is that of the whole chip while questions were answered. {NOTHING}: not measured, as the methods say."
    )
    return tabulate("Speed and energy", columns, ((r, r.performance) for r in evidence.records), note)


# --- other counts of the same answers --------------------------------------------------------------------------------


def means_table(evidence: Evidence) -> Table:
    """The same answers under the means that others report, and what answering blindly would score."""
    columns = {
        "artifact": label,
        "distinct questions %": lambda r: points(accuracy(r), 100),
        "all rows % (weighted)": lambda r: f"{100 * r.n_correct / len(r.samples):.2f}",
        "mean of subjects % (unweighted)": lambda r: f"{100 * mean_of_subjects(r.samples):.2f}",
    }
    share = 100 * constant_answer_share(evidence.comparison.baseline.samples)
    note = f"Always giving the commonest letter scores {share:.1f} %. lm-evaluation-harness reports all rows."
    return tabulate("Means", columns, zip(evidence.records), note)


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
            *(points(local) if local else NOTHING for local in row.local),
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
    runs = (f"{name} %" for name in found.names)
    columns = ("question set", "published %", "precision", "can a run give it?", *runs, "source")
    return Table(f"Published scores, {found.model}", columns, rows, note)
