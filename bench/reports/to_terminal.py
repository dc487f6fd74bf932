"""Results as tables that a terminal of 80 columns holds: an interval lies below its value, and costs are few.

The tables are `content.Table`s as in the documents; the command line draws them.
"""

from collections.abc import Iterator, Mapping, Sequence

from bench.ask.question import Task
from bench.compare.compare import Divergence, accuracy, label
from bench.compare.runs import TaskComparison
from bench.intervals import Interval, holm
from bench.reports.content import NOTHING, Report, Table, number, p_value, size, tabulate
from bench.reports.verdicts import answer_line, needed, verdict_words
from bench.run.record import RunRecord
from bench.text.distance import QUANTILES, Estimate, TextDistance
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
    columns = {
        "artifact": lambda r, c: label(r),
        "size": lambda r, c: size(r.artifact.n_bytes),
        "bits/ weight": lambda r, c: number(r.artifact.bits_per_weight),
        "peak memory": lambda r, c: memory(r),
        "accuracy %": lambda r, c: below(accuracy(r), scale=100),
        "loss points": lambda r, c: below(c.loss_points, signed=True) if c else NOTHING,
        "broke fixed": lambda r, c: f"{c.count('right_to_wrong')}\n{c.count('wrong_to_right')}" if c else NOTHING,
        "prefill tok/s": lambda r, c: number(r.performance.prefill_tokens_per_second),
        "decode tok/s": lambda r, c: number(r.performance.decode_tokens_per_second),
    }
    note = "broke: right to wrong · fixed: wrong to right · second lines: 95 % intervals"
    return tabulate("", columns, zip(one.records, (None, *one.comparisons), strict=True), note)


def verdict_table(one: TaskComparison, report: Report) -> Table:
    """One row a candidate: distance from the baseline, test, verdict."""
    columns = {
        "artifact": lambda c, p: c.candidate,
        "verdict": lambda c, p: verdict_words(c, report.floors.get(one.task)),
        "margin points": lambda c, p: f"{c.verdict.margin_points:g}",
        "questions to decide": lambda c, p: needed(c),
        "p (Holm)": lambda c, p: p_value(p),
        "KL nats mean (99 %)": lambda c, p: _mean_and_most(c.vocabulary_kl) if c.vocabulary_kl else NOTHING,
        "same top token %": lambda c, p: (
            f"{100 * c.top_token_agreement.value:.1f}" if c.top_token_agreement else NOTHING
        ),
    }
    adjusted = holm([c.mcnemar_p for c in one.comparisons])
    note = "KL: from the baseline's next-token distribution to the candidate's, at the answer"
    return tabulate("", columns, zip(one.comparisons, adjusted, strict=True), note)


def _mean_and_most(kl: Divergence) -> str:
    return f"{kl.mean.value:.2g} ({kl.p99:.2g})"


def record_table(records: Sequence[RunRecord]) -> Table:
    """One row a finished run: what it scored and what it cost."""
    columns = {
        "artifact": lambda r, c: label(r),
        "task": lambda r, c: r.task.name,
        "accuracy %": lambda r, c: below(accuracy(r), scale=100),
        "right": lambda r, c: f"{r.n_correct:,}",
        "of": lambda r, c: f"{len(r.samples):,}",
        "memory weights": lambda r, c: f"{memory(r)}\n{size(c.weights_resident_bytes)}",
        "load s": lambda r, c: number(c.load_seconds),
        "questions /s": lambda r, c: number(c.questions_per_second),
        "prefill tok/s": lambda r, c: number(c.prefill_tokens_per_second),
        "decode tok/s": lambda r, c: number(c.decode_tokens_per_second),
    }
    note = "second lines: 95 % intervals · memory: peak resident, of that the weights"
    return tabulate("", columns, ((r, r.performance) for r in records), note)


def text_table(scores: Sequence[TextScore], differences: Sequence[Interval]) -> Table:
    """One row a model; differences: from the first model, in nats a token."""
    columns = {
        "artifact": lambda score, d: score.artifact.file_name,
        "size": lambda score, d: size(score.artifact.n_bytes),
        "perplexity": lambda score, d: f"{score.perplexity:.4f}",
        "±": lambda score, d: f"{score.standard_error:.4f}",
        "difference nats/token": lambda score, d: f"{d.value:+.4f}\n{d.low:.4f}..{d.high:.4f}" if d else NOTHING,
        "chunks": lambda score, d: str(len(score.chunk_nats)),
    }
    note = "perplexity: ± as llama-perplexity prints it · difference: paired by chunk, 95 % interval"
    return tabulate("", columns, zip(scores, [None, *differences], strict=True), note)


def distance_table(names: Sequence[str], distances: Sequence[TextDistance]) -> Table:
    """One row a candidate: how far it is from the first model on the text."""

    def mean(d: TextDistance) -> str:
        lower, gap = ("", "") if d.exact else ("≥", f"\n≤{d.kl.value + d.kl_gap:.5f}")
        return f"{lower}{d.kl.value:.5f}\n±{d.kl.standard_error:.5f}{gap}"

    def at(d: TextDistance, quantile: float) -> str:
        return f"{d.kl_quantiles[QUANTILES.index(quantile)]:.3g}"

    def percent(found: Estimate) -> str:
        return f"{100 * found.value:.3f}\n±{100 * found.standard_error:.3f}"

    columns = {
        "artifact": lambda name, d: name,
        "KL nats mean": lambda name, d: mean(d),
        "KL median": lambda name, d: at(d, 0.5),
        "KL 99 %": lambda name, d: at(d, 0.99),
        "KL greatest": lambda name, d: at(d, 1.0),
        "same top token %": lambda name, d: percent(d.same_top),
        "mean Δp points": lambda name, d: percent(d.delta_p),
        "RMS Δp points": lambda name, d: percent(d.rms_delta_p),
    }
    inexact = "" if all(distance.exact for distance in distances) else " · KL lies between ≥ and ≤"
    note = f"second lines: standard errors, tokens taken as independent{inexact}"
    return tabulate("", columns, zip(names, distances, strict=True), note)


def task_table(tasks: Sequence[Task], local: Mapping[str, bool]) -> Table:
    """One row a question set. local: by name, whether it is on this machine."""
    columns = {
        "task": lambda task: task.name,
        "n": lambda task: f"{task.n_samples:,}" if task.n_samples else NOTHING,
        "local": lambda task: "yes" if local[task.name] else "no",
        "what, source, licence": lambda task: f"{task.title}\n{task.source}; {task.licence}",
    }
    return tabulate("", columns, zip(tasks), "local: on this machine, no network needed")


def below(interval: Interval, *, scale: float = 1.0, signed: bool = False) -> str:
    """The value, and below it the interval."""
    low, high = scale * interval.low, scale * interval.high
    value = f"{scale * interval.value:+.1f}" if signed else f"{scale * interval.value:.1f}"
    return f"{value}\n{low:.1f}..{high:.1f}"


def memory(record: RunRecord) -> str:
    """The peak of resident memory, and below it that of GPU memory where it was measured."""
    gpu = record.performance.peak_vram_bytes
    return size(record.performance.peak_rss_bytes) + (f"\nGPU {format_bytes(gpu)}" if gpu is not None else "")
