"""Results as terminal tables of at most 80 columns. Pure functions: data in, rich tables out."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from medlite.files import format_bytes

if TYPE_CHECKING:
    from bench.ask.question import Task
    from bench.compare.compare import Comparison
    from bench.compare.summary import SummaryRow
    from bench.intervals import Interval
    from bench.run.record import RunRecord
    from bench.text.distance import TextDistance
    from bench.text.perplexity import TextScore

NOTHING = "·"
VERDICT_STYLES = {"non-inferior": "green", "inferior": "red", "inconclusive": "yellow"}


def comparison_table(rows: "Sequence[SummaryRow]") -> Table:
    """One row an artifact, the baseline first: cost, accuracy, loss, flips, speed."""
    table = _table("broke: right to wrong · fixed: wrong to right · second lines: 95 % intervals")
    for name in (
        "",
        "size",
        "bits/\nweight",
        "peak\nmemory",
        "accuracy\n%",
        "loss\npoints",
        "broke\nfixed",
        "prefill\ntok/s",
        "decode\ntok/s",
    ):
        table.add_column(name, justify="right" if name else "left", no_wrap=bool(name), overflow="fold")
    for row in rows:
        flips = NOTHING if row.right_to_wrong is None else f"{row.right_to_wrong}\n{row.wrong_to_right}"
        loss = NOTHING if row.loss_points is None else interval_cell(row.loss_points, signed=True)
        table.add_row(
            row.name,
            size_cell(row.n_bytes),
            f"{row.bits_per_weight:.2f}" if row.bits_per_weight else NOTHING,
            memory_cell(row.peak_rss_bytes, row.peak_vram_bytes),
            interval_cell(row.accuracy, scale=100),
            loss,
            flips,
            speed_cell(row.prefill_tokens_per_second),
            speed_cell(row.decode_tokens_per_second),
        )
    return table


def verdict_table(comparisons: "Sequence[Comparison]", p_values: Sequence[float]) -> Table:
    """One row a candidate: distance from the baseline, test, verdict. p_values: adjusted, in the same order."""
    table = _table("KL: from the baseline's next-token distribution to the candidate's, at the answer")
    for name in (
        "",
        "verdict",
        "margin\npoints",
        "to decide\nquestions",
        "p\n(Holm)",
        "KL nats\nmean (99 %)",
        "same top\ntoken %",
    ):
        table.add_column(
            name, justify="left" if name in ("", "verdict") else "right", no_wrap=bool(name), overflow="fold"
        )
    for comparison, p in zip(comparisons, p_values, strict=True):
        verdict, kl, same = comparison.verdict, comparison.vocabulary_kl, comparison.top_token_agreement
        style = VERDICT_STYLES[verdict.kind]
        table.add_row(
            comparison.candidate,
            f"[{style}]{verdict.kind}[/{style}]",
            f"{verdict.margin_points:g}",
            f"{verdict.n_needed:,}" if verdict.n_needed else NOTHING,
            p_cell(p),
            f"{kl.mean.value:.2g} ({kl.p99:.2g})" if kl else NOTHING,
            f"{100 * same.value:.1f}" if same else NOTHING,
        )
    return table


def record_table(records: "Sequence[RunRecord]") -> Table:
    """One row a finished run: what it scored and what it cost."""
    from bench.compare.compare import accuracy, label

    table = _table("second lines: 95 % intervals · memory: peak resident, of that the weights")
    for name in (
        "",
        "task",
        "accuracy\n%",
        "right",
        "of",
        "memory\nweights",
        "load\ns",
        "questions\n/s",
        "prefill\ntok/s",
        "decode\ntok/s",
    ):
        table.add_column(
            name, justify="left" if name in ("", "task") else "right", no_wrap=name not in ("", "task"), overflow="fold"
        )
    for record in records:
        costs = record.performance
        table.add_row(
            label(record),
            record.task.name,
            interval_cell(accuracy(record), scale=100),
            f"{record.n_correct:,}",
            f"{len(record.samples):,}",
            f"{memory_cell(costs.peak_rss_bytes, costs.peak_vram_bytes)}\n{size_cell(costs.weights_resident_bytes)}",
            f"{costs.load_seconds:.1f}" if costs.load_seconds else NOTHING,
            speed_cell(costs.questions_per_second),
            speed_cell(costs.prefill_tokens_per_second),
            speed_cell(costs.decode_tokens_per_second),
        )
    return table


def text_table(scores: "Sequence[TextScore]", differences: "Sequence[Interval]") -> Table:
    """One row a model; differences: from the first model, in nats a token."""
    table = _table("perplexity: ± as llama-perplexity prints it · difference: paired by chunk, 95 % interval")
    for name in ("", "size", "perplexity", "±", "difference\nnats/token", "chunks"):
        table.add_column(name, justify="right" if name else "left", no_wrap=bool(name), overflow="fold")
    for score, difference in zip(scores, [None, *differences], strict=True):
        cell = NOTHING
        if difference:
            cell = f"{difference.value:+.4f}\n{difference.low:.4f}..{difference.high:.4f}"
        table.add_row(
            score.artifact.file_name,
            format_bytes(score.artifact.n_bytes),
            f"{score.perplexity:.4f}",
            f"{score.standard_error:.4f}",
            cell,
            str(len(score.chunk_nats)),
        )
    return table


def distance_table(names: Sequence[str], distances: "Sequence[TextDistance]") -> Table:
    """One row a candidate: how far it is from the first model on the text."""
    from bench.text.distance import QUANTILES

    inexact = "" if all(distance.exact for distance in distances) else " · KL lies between ≥ and ≤"
    table = _table(f"second lines: standard errors, tokens taken as independent{inexact}")
    for name in (
        "",
        "KL nats\nmean",
        "KL\nmedian",
        "KL\n99 %",
        "KL\ngreatest",
        "same top\ntoken %",
        "mean Δp\npoints",
        "RMS Δp\npoints",
    ):
        table.add_column(name, justify="right" if name else "left", no_wrap=bool(name), overflow="fold")
    for name, distance in zip(names, distances, strict=True):
        kl = dict(zip(QUANTILES, distance.kl_quantiles, strict=True))
        lower, gap = ("≥", f"\n≤{distance.kl.value + distance.kl_gap:.5f}") if not distance.exact else ("", "")
        table.add_row(
            name,
            f"{lower}{distance.kl.value:.5f}\n±{distance.kl.standard_error:.5f}{gap}",
            *(f"{kl[at]:.3g}" for at in (0.5, 0.99, 1.0)),
            *(
                f"{100 * one.value:.3f}\n±{100 * one.standard_error:.3f}"
                for one in (distance.same_top, distance.delta_p, distance.rms_delta_p)
            ),
        )
    return table


def task_table(tasks: "Sequence[Task]", local: Mapping[str, bool]) -> Table:
    """One row a question set."""
    table = _table("local: on this machine, no network needed")
    table.add_column("task", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    table.add_column("local", no_wrap=True)
    table.add_column("what, source, licence")
    for task in tasks:
        n = f"{task.n_samples:,}" if task.n_samples else NOTHING
        table.add_row(
            task.name, n, "yes" if local[task.name] else "no", f"{task.title}\n[dim]{task.source}; {task.licence}[/dim]"
        )
    return table


def interval_cell(interval: "Interval", *, scale: float = 1.0, signed: bool = False) -> str:
    """The value, and below it the interval."""
    low, high = scale * interval.low, scale * interval.high
    value = f"{scale * interval.value:+.1f}" if signed else f"{scale * interval.value:.1f}"
    return f"{value}\n{low:.1f}..{high:.1f}"


def size_cell(n_bytes: int) -> str:
    """The size with its unit; a dot where it is not known."""
    return format_bytes(n_bytes) if n_bytes else NOTHING


def memory_cell(n_bytes: int, n_gpu_bytes: int | None) -> str:
    """The peak of resident memory, and below it that of GPU memory where it was measured."""
    return size_cell(n_bytes) + (f"\nGPU {format_bytes(n_gpu_bytes)}" if n_gpu_bytes is not None else "")


def speed_cell(tokens_per_second: float) -> str:
    """Three digits or a whole number; a dot where it was not measured."""
    if tokens_per_second <= 0:
        return NOTHING
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 100 else f"{tokens_per_second:.1f}"


def p_cell(p: float) -> str:
    """A p-value of two digits, or "<1e-6"."""
    return "<1e-6" if p < 1e-6 else f"{p:.2g}"


def _table(caption: str) -> Table:
    return Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 0),
        header_style="bold",
        caption=caption,
        caption_justify="left",
    )
