"""The figures of a report, each a pure function of one task's evidence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.compare.calibration import Calibration
from bench.compare.compare import Comparison, accuracy, label, per_question_kl
from bench.compare.runs import POOLED, TaskComparison
from bench.intervals import Interval, Values
from bench.reports.content import Evidence
from bench.reports.drawing import (
    AXIS,
    BAR,
    FRAME,
    HEIGHT,
    PAPER,
    SERIES,
    STEPS,
    TIP,
    draw,
    legend,
    legend_height,
    plain_ticks,
    series,
    tick_text,
)
from bench.reports.front import file_bytes, memory_bytes, pareto
from bench.run.record import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CURVE_POINTS = 200
MOST_SUBJECTS = 30
SMALLEST_KL = 1e-6
Maker = Callable[[Evidence, str], str]  # evidence, name on the page -> an <svg> element, empty without data


@dataclass(frozen=True)
class Plot:
    """A picture as an <svg> element, and what it shows in a sentence."""

    caption: str
    svg: str


def all_plots(evidence: Evidence, prefix: str) -> list[Plot]:
    """The figures of a task in the order of reading; one without data is left out. prefix: of ids on the page."""
    costs: list[tuple[str, Maker]] = [
        ("Prefill: how fast a prompt is read.", prefill_plot),
        ("Decode: how fast a reply is written.", decode_plot),
        ("What the peak of resident memory is for.", split_plot),
    ]
    makers: list[tuple[str, Maker]] = [
        (
            "Loss against the baseline with its 95 % interval. Left of the dashed margin as a whole: non-inferior.",
            loss_plot,
        ),
        (
            "Accuracy against peak memory (resident, and GPU where measured). The line joins what no other artifact "
            "beats in both.",
            memory_plot,
        ),
        ("Accuracy against file size. The line joins what no other artifact beats in both.", size_plot),
        ("Answers that changed. Hatched: near-ties, where the baseline was close to undecided.", flips_plot),
        (
            "Distance from the baseline at the answer: share of questions whose KL divergence is below each value.",
            kl_plot,
        ),
        ("Calibration: accuracy in ten bins of confidence. On the diagonal, confidence is right.", reliability_plot),
        ("Risk and coverage: errors when only the most confident answers are given.", risk_plot),
        *(costs if evidence.comparison.task != POOLED else []),
    ]
    plots = [Plot(caption, make(evidence, f"{prefix}-{make.__name__}")) for caption, make in makers]
    one = evidence.comparison
    plots += [
        Plot(
            f"Loss by subject, {c.candidate}, 95 % intervals; in brackets the questions.",
            subject_plot(one, i, f"{prefix}-subject{i}"),
        )
        for i, c in enumerate(one.comparisons)
    ]
    return [plot for plot in plots if plot.svg]


def loss_plot(evidence: Evidence, name: str) -> str:
    """A loss with its interval a candidate, and the margin."""
    one = evidence.comparison
    if not one.comparisons:
        return ""

    def paint(axes: "Axes") -> None:
        for i, c in enumerate(one.comparisons):
            loss = c.loss_points
            tip = f"{c.candidate}: {loss.value:+.2f} points"
            axes.errorbar(loss.value, i, xerr=_lengths(loss), **_point(i + 1, tip))
        axes.axvline(0, color=AXIS, linewidth=1)
        for margin in {c.verdict.margin_points for c in one.comparisons}:
            axes.axvline(margin, color=AXIS, linewidth=1.5, linestyle=(0, (5, 3)))
        axes.set_xlabel("loss, percentage points")
        _rows(axes, [c.candidate for c in one.comparisons])

    return draw(name, "Loss with its interval and the margin", FRAME + BAR * len(one.comparisons), paint)


def memory_plot(evidence: Evidence, name: str) -> str:
    """Accuracy over peak memory of all artifacts that measured it."""
    return _front_plot(evidence, name, "peak memory, GB", "Accuracy against peak memory", memory_bytes)


def size_plot(evidence: Evidence, name: str) -> str:
    """Accuracy over the file's size."""
    return _front_plot(evidence, name, "file size, GB", "Accuracy against file size", file_bytes)


def _front_plot(evidence: Evidence, name: str, x_label: str, title: str, n_bytes: Callable[[RunRecord], int]) -> str:
    rows = [(i, label(r), n_bytes(r), accuracy(r).percent) for i, r in enumerate(evidence.records) if n_bytes(r)]
    if len(rows) < 2:
        return ""
    names = [artifact for _, artifact, _, _ in rows]
    scale, unit = (1e9, "GB") if max(size for _, _, size, _ in rows) >= 1e9 else (1e6, "MB")
    front = pareto([(size / scale, a.value) for _, _, size, a in rows])

    def paint(axes: "Axes") -> None:
        axes.plot(*zip(*front, strict=True), color=AXIS, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for i, artifact, size, a in rows:
            tip = f"{artifact}: {size / scale:.3g} {unit}, {a.value:.1f} %"
            point = _point(i, tip)
            axes.errorbar(size / scale, a.value, yerr=_lengths(a), label=artifact, linestyle="none", **point)
        axes.set_xlabel(x_label.replace("GB", unit))
        axes.set_ylabel("accuracy, %")
        plain_ticks(axes)
        legend(axes, names)

    return draw(name, title, HEIGHT + legend_height(names), paint)


def flips_plot(evidence: Evidence, name: str) -> str:
    """A stacked bar a candidate, in shares of all questions."""
    one = evidence.comparison
    if not one.comparisons:
        return ""
    n = len(one.baseline.samples)
    kinds: tuple[tuple[str, str, bool | None, int], ...] = (
        ("right→wrong, confident", "right_to_wrong", False, 1),
        ("right→wrong, near-tie", "right_to_wrong", True, 1),
        ("wrong→right", "wrong_to_right", None, 2),
        ("wrong→other wrong", "wrong_to_other_wrong", None, 6),
    )

    def count(c: Comparison, kind: str, near: bool | None) -> int:
        return sum(f.kind == kind and (near is None or f.near_tie == near) for f in c.flips)

    def paint(axes: "Axes") -> None:
        left = np.zeros(len(one.comparisons))
        for words, kind, near, colour in kinds:
            widths = np.array([100 * count(c, kind, near) / n for c in one.comparisons])
            bars = axes.barh(
                range(len(widths)),
                widths,
                0.68,
                left,
                color=SERIES[colour],
                label=words,
                hatch="////" if near else None,
                edgecolor=PAPER if near else "none",
                linewidth=0,
            )
            for bar, c in zip(bars, one.comparisons, strict=True):
                bar.set_gid(f"{TIP}{c.candidate}: {count(c, kind, near)} {words}")
            left += widths
        axes.set_xlabel("share of all questions, %")
        _rows(axes, [c.candidate for c in one.comparisons])
        legend(axes, [words for words, *_ in kinds])

    height = FRAME + BAR * len(one.comparisons) + legend_height([words for words, *_ in kinds])
    return draw(name, "Changed answers by kind", height, paint)


def kl_plot(evidence: Evidence, name: str) -> str:
    """Cumulative share of questions over the KL at the answer, log scale."""
    one = evidence.comparison
    pairs = zip(one.comparisons, one.candidates, strict=True)
    curves = [
        (i + 1, c.candidate, np.sort(per_question_kl(one.baseline.samples, r.samples)))
        for i, (c, r) in enumerate(pairs)
    ]
    curves = [curve for curve in curves if curve[2].size]
    if not curves:
        return ""
    names = [artifact for _, artifact, _ in curves]

    def paint(axes: "Axes") -> None:
        axes.set_xscale("log")
        for i, artifact, values in curves:
            x, y = thinned(np.maximum(values, SMALLEST_KL), 100 * np.arange(1, values.size + 1) / values.size)
            axes.plot(x, y, **{**series(i), "marker": None}, label=artifact)
        axes.set_xlabel("KL divergence, nats (log scale)")
        axes.set_ylabel("questions below, %")
        axes.set_ylim(0, 100)
        axes.minorticks_off()
        plain_ticks(axes)
        legend(axes, names)

    return draw(name, "Distribution of the KL divergence", HEIGHT + legend_height(names), paint)


def reliability_plot(evidence: Evidence, name: str) -> str:
    """Accuracy of each confidence bin."""
    found = _calibrations(evidence)
    if not found:
        return ""
    names = [artifact for _, artifact, _ in found]
    low = 100 * min(min(b.confidence, b.accuracy) for *_, c in found for b in c.bins)
    start = max(0.0, 10 * np.floor((low - 1) / 10))

    def paint(axes: "Axes") -> None:
        axes.plot([start, 100], [start, 100], color=AXIS, linewidth=1, linestyle=(0, (4, 3)))
        for i, artifact, c in found:
            axes.plot(
                [100 * b.confidence for b in c.bins],
                [100 * b.accuracy for b in c.bins],
                **series(i),
                markersize=5,
                linewidth=1.2,
                label=artifact,
            )
        axes.set_xlabel("confidence, %")
        axes.set_ylabel("accuracy, %")
        plain_ticks(axes)
        legend(axes, names)

    return draw(name, "Reliability diagram", HEIGHT + legend_height(names), paint)


def risk_plot(evidence: Evidence, name: str) -> str:
    """Error rate over coverage, and the baseline's error on all questions."""
    found = _calibrations(evidence)
    if not found:
        return ""
    names = [artifact for _, artifact, _ in found]

    def paint(axes: "Axes") -> None:
        axes.axhline(100 * float(found[0][2].risks[-1]), color=AXIS, linewidth=1, linestyle=(0, (4, 3)))
        for i, artifact, c in found:
            x, y = thinned(100 * np.arange(1, c.n + 1) / c.n, 100 * c.risks)
            axes.plot(x, y, **{**series(i), "marker": None}, label=artifact)
        top = max(float(c.risks[c.n // 20 :].max()) for *_, c in found)  # the first twentieth is a handful of answers
        axes.set_ylim(0, 100 * max(top, 0.01) * 1.05)
        axes.set_xlim(0, 100)
        axes.set_xlabel("answered, most confident first, %")
        axes.set_ylabel("errors among them, %")
        plain_ticks(axes)
        legend(axes, names)

    return draw(name, "Risk and coverage", HEIGHT + legend_height(names), paint)


def prefill_plot(evidence: Evidence, name: str) -> str:
    """A bar an artifact."""
    return _bars(evidence, name, "prefill, tokens per second", lambda r: r.performance.prefill_tokens_per_second)


def decode_plot(evidence: Evidence, name: str) -> str:
    """A bar an artifact."""
    return _bars(evidence, name, "decode, tokens per second", lambda r: r.performance.decode_tokens_per_second)


def _bars(evidence: Evidence, name: str, x_label: str, value_of: Callable[[RunRecord], float]) -> str:
    rows = [(label(r), value_of(r)) for r in evidence.records]
    if not any(value for _, value in rows):
        return ""

    def paint(axes: "Axes") -> None:
        values = [value for _, value in rows]
        bars = axes.barh(range(len(rows)), values, 0.68, color=[series(i)["color"] for i in range(len(rows))])
        axes.bar_label(bars, [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values], padding=4)
        axes.set_xlim(0, 1.18 * max(values))
        axes.set_xlabel(x_label)
        _rows(axes, [artifact for artifact, _ in rows])

    return draw(name, x_label, FRAME + BAR * len(rows), paint)


def split_plot(evidence: Evidence, name: str) -> str:
    """Mapped weights, key-value cache and the rest, stacked, of the runs on a CPU."""
    runs = [r for r in evidence.records if r.performance.peak_rss_bytes and r.engine.get("device") == "cpu"]
    if not runs:
        return ""
    scale, unit = (1e9, "GB") if max(r.performance.peak_rss_bytes for r in runs) >= 1e9 else (1e6, "MB")
    weights = [r.performance.weights_resident_bytes / scale for r in runs]
    cache = [r.performance.kv_cache_bytes / scale for r in runs]
    peaks = [r.performance.peak_rss_bytes / scale for r in runs]
    rest = [max(0.0, p - w - c) for p, w, c in zip(peaks, weights, cache, strict=True)]
    parts = (("weights, mapped", weights, 0), ("KV cache", cache, 4), ("rest", rest, 6))

    def paint(axes: "Axes") -> None:
        left = np.zeros(len(runs))
        for words, values, colour in parts:
            axes.barh(range(len(runs)), values, 0.68, left, color=SERIES[colour], label=words)
            left += np.array(values)
        axes.set_xlabel(f"peak resident memory, {unit}")
        _rows(axes, [label(r) for r in runs])
        legend(axes, [words for words, *_ in parts])

    height = FRAME + BAR * len(runs) + legend_height([words for words, *_ in parts])
    return draw(name, "Peak memory by use", height, paint)


def subject_plot(one: TaskComparison, index: int, name: str) -> str:
    """A loss with its interval a subject, the largest subjects first; the scale is that of all candidates."""
    rows = sorted(one.comparisons[index].subjects, key=lambda s: -s.n)[:MOST_SUBJECTS]
    if not rows:
        return ""
    kept = {row.subject for row in rows}
    shown = [s.loss_points for c in one.comparisons for s in c.subjects if s.subject in kept]
    left, right = min(loss.low for loss in shown), max(loss.high for loss in shown)

    def paint(axes: "Axes") -> None:
        axes.axvline(0, color=AXIS, linewidth=1)
        for i, row in enumerate(rows):
            loss = row.loss_points
            tip = f"{row.subject}: {loss.value:+.1f} points, {row.n} questions"
            axes.errorbar(loss.value, i, xerr=_lengths(loss), markersize=5, **_point(index + 1, tip))
        margin = 0.04 * (right - left)
        axes.set_xlim(left - margin, right + margin)
        axes.set_xlabel("loss, percentage points")
        _rows(axes, [f"{_short(row.subject)} ({row.n})" for row in rows])

    return draw(name, f"Loss by subject, {one.comparisons[index].candidate}", FRAME + 21 * len(rows), paint)


def _lengths(interval: Interval) -> list[list[float]]:
    """From the value down and up, as matplotlib takes them."""
    return [[interval.value - interval.low], [interval.high - interval.value]]


def _point(i: int, tip: str) -> dict[str, Any]:
    """Colour and marker of series i, and what is shown of a point when it is pointed at."""
    return {"color": series(i)["color"], "marker": series(i)["marker"], "gid": TIP + tip}


def thinned(x: Values, y: Values) -> tuple[Values, Values]:
    """At most MOST_CURVE_POINTS points of a curve, both ends among them."""
    keep = np.unique(np.linspace(0, x.size - 1, min(x.size, MOST_CURVE_POINTS)).round().astype(int))
    return x[keep], y[keep]


def _rows(axes: "Axes", names: Sequence[str]) -> None:
    """One name a row, the first on top, and a plain x axis."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(tick_text))


def _short(subject: str, most: int = 24) -> str:
    words = subject.replace("_", " ") or "(none)"
    return words if len(words) <= most else words[: most - 1] + "…"


def _calibrations(evidence: Evidence) -> list[tuple[int, str, Calibration]]:
    """Series number, name and calibration of the runs that have one."""
    found = zip(evidence.records, evidence.calibrations, strict=True)
    return [(i, label(record), c) for i, (record, c) in enumerate(found) if c]
