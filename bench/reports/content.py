"""What the readable reports say: tables of text cells and the questions that turned, for one task at a time."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.calibration import Calibration, calibrate, coverage_at_risk
from bench.compare import Divergence, accuracy, label
from bench.floor import NoiseFloor, within_floor
from bench.intervals import Interval, holm
from bench.record import RunRecord
from bench.runs import TaskComparison
from bench.safety import Marked, count_topics, marked_flips
from bench.scoring import ScoredSample
from medlite.files import format_bytes

NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """A titled table of text. The first column names the row; `note` explains the columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def verdict_table(one: TaskComparison, floor: NoiseFloor | None) -> Table:
    """The first table: may this artifact stand in for the baseline?"""
    adjusted = holm([c.mcnemar_p for c in one.comparisons])
    rows = [(label(one.baseline), "baseline", points(accuracy(one.baseline), 100), *[NOTHING] * 7)]
    for record, c, p in zip(one.candidates, one.comparisons, adjusted, strict=True):
        verdict = c.verdict.kind
        if within_floor(c, floor):
            verdict += ", within noise"
        needed = f"{c.verdict.n_needed:,}" if c.verdict.n_needed else NOTHING
        rows.append((c.candidate, verdict, points(accuracy(record), 100), points(c.loss_points, signed=True), needed,
                     str(c.count("right_to_wrong")), str(c.count("wrong_to_right")),
                     str(c.count("wrong_to_other_wrong")), p_value(p),
                     str(sum(f.confident for f in c.flips if f.kind == "right_to_wrong"))))
    margin = one.comparisons[0].verdict.margin_points if one.comparisons else 0.0
    note = ("95 % intervals; loss in percentage points, positive where worse. Verdict at a margin of "
            f"{margin:g} points: non-inferior if the whole interval of the loss lies below it, inferior if above, "
            "else inconclusive, and so many questions would decide. p: exact McNemar, Holm over the rows. Confident: "
            "right answers lost that were no near-tie (baseline margin of at least 0.5 nats).")
    if floor:
        note += (" Within noise: a loss no greater than the noise floor, which is the baseline against itself "
                 f"({', '.join(floor.differs_in) or 'nothing changed'}): {floor.loss_points:.2f} points, "
                 f"{floor.n_flips} flips.")
    columns = ("artifact", "verdict", "accuracy %", "loss, points", "questions to decide", "right→ wrong",
               "wrong→ right", "wrong→ other wrong", "p", "confident losses")
    return Table("Verdict", columns, tuple(rows), note)


def cost_table(one: TaskComparison) -> Table:
    """Size, memory and speed."""
    rows = []
    for record in (one.baseline, *one.candidates):
        c = record.performance
        rest = c.peak_rss_bytes - c.weights_resident_bytes - c.kv_cache_bytes
        rows.append((label(record), format_bytes(record.artifact.n_bytes), f"{record.artifact.bits_per_weight:.2f}",
                     format_bytes(c.peak_rss_bytes), format_bytes(c.weights_resident_bytes),
                     format_bytes(c.kv_cache_bytes), format_bytes(max(rest, 0)), f"{c.load_seconds:.2f}",
                     number(c.first_token_seconds), number(c.prefill_tokens_per_second),
                     number(c.decode_tokens_per_second), number(c.questions_per_second)))
    columns = ("artifact", "file", "bits/weight", "peak memory", "weights mapped", "KV cache", "rest", "load s",
               "first token s", "prefill tok/s", "decode tok/s", "questions/s")
    context = one.baseline.engine.get("n_context", 0)
    return Table("Cost", columns, tuple(rows),
                 f"One process per row. Peak resident memory; KV cache computed for {context} tokens at float16.")


def distance_table(one: TaskComparison) -> Table:
    """How far the distributions moved."""
    rows = [(c.candidate, *divergence_cells(c.vocabulary_kl), *divergence_cells(c.option_kl)[:1],
             points(c.top_token_agreement, 100) if c.top_token_agreement else NOTHING) for c in one.comparisons]
    columns = ("artifact", "KL mean (nats)", "90 %", "99 %", "greatest", "error bound", "KL over options",
               "same top token %")
    note = ("KL(baseline ‖ candidate) of the next token where the answer is due. Error bound: by how much any "
            "question's value may be too low, because the tail of a distribution is kept as a sum.")
    return Table("Distance at the answer", columns, tuple(rows), note)


def calibration_table(one: TaskComparison) -> Table:
    """Calibration, and what deferring unsure answers buys."""
    base = calibrate(one.baseline.samples)
    rows = [calibration_cells(label(r), calibrate(r.samples), base) for r in (one.baseline, *one.candidates)]
    columns = ("artifact", "ECE", "Brier", "NLL (nats)", "AURC", "coverage at the baseline's error %")
    note = ("ECE over 10 bins of equal mass. Brier from 0 to 2. AURC: mean error over all coverages. The last column: "
            "share of questions that can be answered, most confident first, with no more errors than the baseline "
            "makes on all. Lower is better but for the last.")
    return Table("Calibration", columns, tuple(rows), note)


def calibration_cells(name: str, found: Calibration | None, base: Calibration | None) -> tuple[str, ...]:
    """One row of the calibration table."""
    if found is None or base is None:
        return (name, *[NOTHING] * 5)
    return (name, fine(found.ece), fine(found.brier), fine(found.nll_nats), f"{found.aurc:.4f}",
            f"{100 * coverage_at_risk(found.risks, float(base.risks[-1])):.1f}")


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


def topic_tables(one: TaskComparison) -> list[Table]:
    """The safety view: changed answers by topic."""
    tables = []
    for comparison in one.comparisons:
        rows = tuple((t.topic, str(t.n), str(t.right_to_wrong), str(t.wrong_to_right), str(t.confident))
                     for t in count_topics(one.baseline.samples, comparison))
        if rows:
            tables.append(Table(f"Safety view, {comparison.candidate}",
                                ("topic", "questions", "right→wrong", "wrong→right", "confident losses"), rows,
                                "Topics are found by words (table RULES in bench/safety.py), not understood."))
    return tables


def means_table(one: TaskComparison) -> Table:
    """The same answers under the means that others report, and what answering blindly would score."""
    rows = []
    for record in (one.baseline, *one.candidates):
        by_subject: dict[str, list[bool]] = {}
        for sample in record.samples:
            by_subject.setdefault(sample.subject, []).append(sample.correct)
        subject_means = [sum(answers) / len(answers) for answers in by_subject.values()]
        rows.append((label(record), points(accuracy(record), 100),
                     f"{100 * record.n_correct / len(record.samples):.2f}",
                     f"{100 * sum(subject_means) / len(subject_means):.2f}"))
    share = 100 * constant_answer_share(one.baseline.samples)
    return Table("Means", ("artifact", "distinct questions %", "all rows %", "mean of subjects %"), tuple(rows),
                 f"Always giving the commonest letter scores {share:.1f} %. lm-evaluation-harness reports all rows.")


def method_lines(one: TaskComparison) -> list[str]:
    """Versions, hashes, seeds: what makes the numbers repeatable."""
    b = one.baseline
    lines = [
        f"Question set {b.task.name} ({b.task.source}, revision {b.task.revision or 'embedded or local'}), "
        f"{b.task.n_samples:,} of {b.task.n_all:,} questions, sha256 {b.task.dataset_sha256[:16]}, prompts sha256 "
        f"{b.prompts_sha256[:16]}.",
        f"Protocol {b.settings.protocol}, {b.settings.n_shots} shots, sampling seed {b.settings.seed}.",
    ]
    for record in (b, *one.candidates):
        e = record.engine
        lines.append(f"{label(record)}: {record.artifact.file_name}, sha256 {record.artifact.sha256[:16]}, "
                     f"{e.get('engine_version')}, {e.get('device')} ({e.get('device_name')}), {e.get('n_threads')} "
                     f"threads; medlite {record.environment.get('medlite')}.")
        lines += [f"{label(record)}: {note}." for note in record.performance.notes]
    lines += dict.fromkeys(f"Warning: {w}." for c in one.comparisons for w in c.warnings)
    return lines


def turned(one: TaskComparison) -> list[tuple[str, tuple[Marked, ...]]]:
    """Candidate names with their changed answers, where the records hold the questions' text."""
    return [(c.candidate, marked_flips(one.baseline.samples, c)) for c in one.comparisons]


def tables_of(one: TaskComparison, floor: NoiseFloor | None) -> list[Table]:
    """All tables of a task, in the order of reading."""
    tables = [verdict_table(one, floor), cost_table(one), distance_table(one), calibration_table(one)]
    subjects = subject_table(one)
    tables += [subjects] if subjects else []
    return [*tables, *topic_tables(one), means_table(one)]


def records_of(one: TaskComparison) -> list[RunRecord]:
    """The baseline and the candidates."""
    return [one.baseline, *one.candidates]


def constant_answer_share(samples: Sequence[ScoredSample]) -> float:
    """Accuracy of always giving the answer that is right most often."""
    return max(Counter(sample.answer for sample in samples).values()) / len(samples)


def points(interval: Interval, scale: float = 1.0, *, signed: bool = False) -> str:
    """ "72.1 (69.3 to 74.8)"."""
    value, low, high = (scale * x for x in (interval.value, interval.low, interval.high))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})" if signed else f"{value:.1f} ({low:.1f} to {high:.1f})"


def fine(interval: Interval) -> str:
    """The same with three decimals."""
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def number(value: float) -> str:
    """Three digits, or a dash where it was not measured."""
    return NOTHING if value <= 0 else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def p_value(p: float) -> str:
    """Two digits, or "<1e-6"."""
    return "<1e-6" if p < 1e-6 else f"{p:.2g}"


def divergence_cells(found: Divergence | None) -> tuple[str, ...]:
    """Mean with interval, 90 %, 99 %, greatest, gap."""
    if found is None:
        return (NOTHING,) * 5
    mean = f"{found.mean.value:.2g} ({found.mean.low:.2g} to {found.mean.high:.2g})"
    return (mean, f"{found.p90:.2g}", f"{found.p99:.2g}", f"{found.greatest:.2g}", f"{found.gap:.1g}")
