"""Results as tables that a terminal of 80 columns holds: an interval lies below its value, and costs are few.

The tables are `content.Table`s as in the documents; the command line draws them.
"""

from collections.abc import Iterator, Mapping, Sequence

from bench.ask.question import Task
from bench.compare.compare import accuracy, label
from bench.compare.runs import TaskComparison
from bench.intervals import Interval, holm
from bench.reports.content import NOTHING, Report, Table, number, p_value, size
from bench.reports.verdicts import answer_line, verdict_words
from bench.run.record import RunRecord
from bench.text.distance import QUANTILES, TextDistance
from bench.text.perplexity import TextScore
from medlite.files import format_bytes


def to_terminal(report: Report) -> Iterator[Table | str]:
    """Two tables a task, cost and accuracy, then distance and verdict; then what follows, in a sentence each."""
    for one in report.tasks:
        yield f"{one.task}  {len(one.baseline.samples):,} questions"
        yield cost_table(one)
        yield verdict_table(one, report)
        yield answer_line(one)
    for task, floor in report.floors.items():
        changed = ", ".join(floor.differs_in) or "same settings"
        yield f"{task}: noise floor {floor.loss_points:.2f} points, {floor.n_flips} flips ({changed})"


def cost_table(one: TaskComparison) -> Table:
    """One row an artifact, the baseline first: cost, accuracy, loss, flips, speed."""
    rows = []
    for record, c in zip((one.baseline, *one.candidates), (None, *one.comparisons), strict=True):
        costs = record.performance
        rows.append(
            (
                label(record),
                size(record.artifact.n_bytes),
                number(record.artifact.bits_per_weight),
                memory(record),
                below(accuracy(record), scale=100),
                below(c.loss_points, signed=True) if c else NOTHING,
                f"{c.count('right_to_wrong')}\n{c.count('wrong_to_right')}" if c else NOTHING,
                number(costs.prefill_tokens_per_second),
                number(costs.decode_tokens_per_second),
            )
        )
    columns = (
        "artifact",
        "size",
        "bits/ weight",
        "peak memory",
        "accuracy %",
        "loss points",
        "broke fixed",
        "prefill tok/s",
        "decode tok/s",
    )
    note = "broke: right to wrong · fixed: wrong to right · second lines: 95 % intervals"
    return Table("", columns, tuple(rows), note)


def verdict_table(one: TaskComparison, report: Report) -> Table:
    """One row a candidate: distance from the baseline, test, verdict."""
    adjusted = holm([c.mcnemar_p for c in one.comparisons])
    rows = []
    for c, p in zip(one.comparisons, adjusted, strict=True):
        kl, same = c.vocabulary_kl, c.top_token_agreement
        rows.append(
            (
                c.candidate,
                verdict_words(c, report.floors.get(one.task)),
                f"{c.verdict.margin_points:g}",
                f"{c.verdict.n_needed:,}" if c.verdict.n_needed else NOTHING,
                p_value(p),
                f"{kl.mean.value:.2g} ({kl.p99:.2g})" if kl else NOTHING,
                f"{100 * same.value:.1f}" if same else NOTHING,
            )
        )
    columns = (
        "artifact",
        "verdict",
        "margin points",
        "questions to decide",
        "p (Holm)",
        "KL nats mean (99 %)",
        "same top token %",
    )
    note = "KL: from the baseline's next-token distribution to the candidate's, at the answer"
    return Table("", columns, tuple(rows), note)


def record_table(records: Sequence[RunRecord]) -> Table:
    """One row a finished run: what it scored and what it cost."""
    rows = tuple(
        (
            label(record),
            record.task.name,
            below(accuracy(record), scale=100),
            f"{record.n_correct:,}",
            f"{len(record.samples):,}",
            f"{memory(record)}\n{size(record.performance.weights_resident_bytes)}",
            number(record.performance.load_seconds),
            number(record.performance.questions_per_second),
            number(record.performance.prefill_tokens_per_second),
            number(record.performance.decode_tokens_per_second),
        )
        for record in records
    )
    columns = (
        "artifact",
        "task",
        "accuracy %",
        "right",
        "of",
        "memory weights",
        "load s",
        "questions /s",
        "prefill tok/s",
        "decode tok/s",
    )
    note = "second lines: 95 % intervals · memory: peak resident, of that the weights"
    return Table("", columns, rows, note)


def text_table(scores: Sequence[TextScore], differences: Sequence[Interval]) -> Table:
    """One row a model; differences: from the first model, in nats a token."""
    rows = tuple(
        (
            score.artifact.file_name,
            size(score.artifact.n_bytes),
            f"{score.perplexity:.4f}",
            f"{score.standard_error:.4f}",
            f"{d.value:+.4f}\n{d.low:.4f}..{d.high:.4f}" if d else NOTHING,
            str(len(score.chunk_nats)),
        )
        for score, d in zip(scores, [None, *differences], strict=True)
    )
    columns = ("artifact", "size", "perplexity", "±", "difference nats/token", "chunks")
    note = "perplexity: ± as llama-perplexity prints it · difference: paired by chunk, 95 % interval"
    return Table("", columns, rows, note)


def distance_table(names: Sequence[str], distances: Sequence[TextDistance]) -> Table:
    """One row a candidate: how far it is from the first model on the text."""
    rows = []
    for name, distance in zip(names, distances, strict=True):
        kl = dict(zip(QUANTILES, distance.kl_quantiles, strict=True))
        lower, gap = ("≥", f"\n≤{distance.kl.value + distance.kl_gap:.5f}") if not distance.exact else ("", "")
        rows.append(
            (
                name,
                f"{lower}{distance.kl.value:.5f}\n±{distance.kl.standard_error:.5f}{gap}",
                *(f"{kl[at]:.3g}" for at in (0.5, 0.99, 1.0)),
                *(
                    f"{100 * one.value:.3f}\n±{100 * one.standard_error:.3f}"
                    for one in (distance.same_top, distance.delta_p, distance.rms_delta_p)
                ),
            )
        )
    columns = (
        "artifact",
        "KL nats mean",
        "KL median",
        "KL 99 %",
        "KL greatest",
        "same top token %",
        "mean Δp points",
        "RMS Δp points",
    )
    inexact = "" if all(distance.exact for distance in distances) else " · KL lies between ≥ and ≤"
    return Table("", columns, tuple(rows), f"second lines: standard errors, tokens taken as independent{inexact}")


def task_table(tasks: Sequence[Task], local: Mapping[str, bool]) -> Table:
    """One row a question set. local: by name, whether it is on this machine."""
    rows = tuple(
        (
            task.name,
            f"{task.n_samples:,}" if task.n_samples else NOTHING,
            "yes" if local[task.name] else "no",
            f"{task.title}\n{task.source}; {task.licence}",
        )
        for task in tasks
    )
    return Table("", ("task", "n", "local", "what, source, licence"), rows, "local: on this machine, no network needed")


def below(interval: Interval, *, scale: float = 1.0, signed: bool = False) -> str:
    """The value, and below it the interval."""
    low, high = scale * interval.low, scale * interval.high
    value = f"{scale * interval.value:+.1f}" if signed else f"{scale * interval.value:.1f}"
    return f"{value}\n{low:.1f}..{high:.1f}"


def memory(record: RunRecord) -> str:
    """The peak of resident memory, and below it that of GPU memory where it was measured."""
    gpu = record.performance.peak_vram_bytes
    return size(record.performance.peak_rss_bytes) + (f"\nGPU {format_bytes(gpu)}" if gpu is not None else "")
