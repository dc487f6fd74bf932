"""The figures of a report, each a pure function of one task's comparison."""

from collections.abc import Sequence

import numpy as np

from bench.calibration import Calibration, calibrate
from bench.compare import accuracy, label, per_question_kl
from bench.record import RunRecord
from bench.reports import svg
from bench.reports.content import records_of
from bench.runs import TaskComparison

MOST_CURVE_POINTS = 200
ROW = 26  # pixels a bar takes, its gap included
SMALLEST_KL = 1e-6


def all_plots(one: TaskComparison) -> list[tuple[str, str]]:
    """Captions and pictures, in the order of reading; a plot without data is left out."""
    plots = [
        ("Accuracy against file size: the line joins what no other artifact beats in both", memory_plot(one)),
        ("Answers that changed", flips_plot(one)),
        ("KL divergence from the baseline: share of questions below each value", kl_plot(one)),
        ("Reliability: accuracy against confidence; the diagonal is perfect", reliability_plot(one)),
        ("Risk and coverage: error rate when only the most confident answers are given", risk_plot(one)),
        ("Prefill, tokens per second", speed_plot(one, "prefill_tokens_per_second")),
        ("Decode, tokens per second", speed_plot(one, "decode_tokens_per_second")),
        *((f"Loss by subject, {c.candidate} (points, 95 % intervals)", subject_plot(one, i))
          for i, c in enumerate(one.comparisons)),
    ]
    return [(caption, picture) for caption, picture in plots if picture]


def memory_plot(one: TaskComparison) -> str:
    """Accuracy with its interval over the file's size, and the Pareto front."""
    rows = [(label(r), r.artifact.n_bytes / 1e9, accuracy(r)) for r in records_of(one)]
    x = svg.x_scale([size for _, size, _ in rows])
    y = svg.y_scale([100 * v for _, _, a in rows for v in (a.low, a.high)])
    front = pareto([(size, a.value) for _, size, a in rows])
    parts = [svg.axes(x, y, "file size, GB", "accuracy, %"),
             svg.polyline([(x.to(size), y.to(100 * value)) for size, value in front], 0, "thin")]
    for i, (name, size, a) in enumerate(rows):
        px, py = x.to(size), y.to(100 * a.value)
        parts.append(svg.whisker(px, y.to(100 * a.low), px, y.to(100 * a.high), i))
        parts.append(svg.dot(px, py, i, f"{name}: {size:.3g} GB, {100 * a.value:.1f} %"))
        left = px > svg.WIDTH - svg.RIGHT - svg.CHARACTER * len(name) - 12
        parts.append(svg.text(px - 9 if left else px + 9, py + 4, name, "end" if left else "start"))
    return svg.figure(parts, "Accuracy against file size")


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both (smaller size, greater accuracy), by size."""
    front: list[tuple[float, float]] = []
    for size, value in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or value > front[-1][1]:
            front.append((size, value))
    return front


def flips_plot(one: TaskComparison) -> str:
    """A stacked bar a candidate."""
    kinds = ("right_to_wrong", "wrong_to_right", "wrong_to_other_wrong")
    n = len(one.baseline.samples)
    shares = [[100 * c.count(kind) / n for kind in kinds] for c in one.comparisons]
    if not shares:
        return ""
    height = svg.TOP + svg.BOTTOM + ROW * len(shares) + 20
    x = svg.fixed(0, max(1.0, *(sum(row) for row in shares)) * 1.02, height=height)
    parts = [svg.axes(x, None, "share of all questions, %", "", height=height)]
    colours = (1, 2, 6)
    for i, (comparison, row) in enumerate(zip(one.comparisons, shares, strict=True)):
        at, y = 0.0, svg.TOP + 20 + ROW * i
        for kind, share, colour in zip(kinds, row, colours, strict=True):
            tip = f"{comparison.candidate}: {comparison.count(kind)} {kind.replace('_', ' ')}"
            parts.append(svg.bar(x.to(at), x.to(at + share), y, ROW - 8, colour, tip))
            at += share
        parts.append(svg.text(svg.LEFT - 6, y + 13, comparison.candidate, "end"))
    at_x = float(svg.LEFT)
    for name, colour in zip(("right→wrong", "wrong→right", "wrong→other wrong"), colours, strict=True):
        parts.append(svg.bar(at_x, at_x + 12, svg.TOP - 8, 12, colour, name))
        parts.append(svg.text(at_x + 17, svg.TOP + 2, name))
        at_x += 32 + svg.CHARACTER * len(name)
    return svg.figure(parts, "Flips by kind", height=height)


def kl_plot(one: TaskComparison) -> str:
    """Cumulative share of questions over the KL at the answer, log scale."""
    curves = [(c.candidate, np.sort(per_question_kl(one.baseline.samples, r.samples)))
              for c, r in zip(one.comparisons, one.candidates, strict=True)]
    curves = [(name, values) for name, values in curves if values.size]
    if not curves:
        return ""
    x = svg.x_scale([max(float(v), SMALLEST_KL) for _, values in curves for v in (values[0], values[-1])], log=True)
    y = svg.fixed(0, 100, up=True)
    parts = [svg.axes(x, y, "KL divergence, nats", "questions below, %")]
    for i, (_, values) in enumerate(curves):
        shares = 100 * np.arange(1, values.size + 1) / values.size
        parts.append(svg.polyline([(x.to(max(float(v), SMALLEST_KL)), y.to(float(s)))
                                   for v, s in thinned(values, shares)], i + 1))
    return svg.figure([*parts, svg.legend([name for name, _ in curves], 1)], "Distribution of KL divergence")


def reliability_plot(one: TaskComparison) -> str:
    """Accuracy of each confidence bin."""
    found = _calibrations(one)
    if not found:
        return ""
    x, y = svg.fixed(0, 100), svg.fixed(0, 100, up=True)
    parts = [svg.axes(x, y, "confidence, %", "accuracy, %"),
             f'<line class="axis thin" x1="{x.to(0)}" y1="{y.to(0)}" x2="{x.to(100)}" y2="{y.to(100)}"/>']
    for i, (name, one_run) in enumerate(found):
        points = [(x.to(100 * b.confidence), y.to(100 * b.accuracy)) for b in one_run.bins]
        parts.append(svg.polyline(points, i))
        parts += [svg.dot(px, py, i, f"{name}: {b.n} questions, confidence {100 * b.confidence:.0f} %, "
                                     f"accuracy {100 * b.accuracy:.0f} %")
                  for (px, py), b in zip(points, one_run.bins, strict=True)]
    return svg.figure([*parts, svg.legend([name for name, _ in found])], "Reliability diagram")


def risk_plot(one: TaskComparison) -> str:
    """Error rate over coverage."""
    found = _calibrations(one)
    if not found:
        return ""
    top = max(float(c.risks[c.n // 20 :].max()) for _, c in found)  # the first twentieth is a handful of answers
    x, y = svg.fixed(0, 100), svg.fixed(0, 100 * max(top, 0.01) * 1.05, up=True)
    parts = [svg.axes(x, y, "questions answered, most confident first, %", "errors among them, %")]
    for i, (_, c) in enumerate(found):
        coverage = 100 * np.arange(1, c.n + 1) / c.n
        parts.append(svg.polyline([(x.to(a), y.to(100 * r)) for a, r in thinned(coverage, c.risks)], i))
    return svg.figure([*parts, svg.legend([name for name, _ in found])], "Risk and coverage")


def speed_plot(one: TaskComparison, name: str) -> str:
    """A bar an artifact."""
    rows = [(label(r), float(getattr(r.performance, name))) for r in records_of(one)]
    if not any(speed for _, speed in rows):
        return ""
    height = svg.TOP + svg.BOTTOM + ROW * len(rows)
    x = svg.fixed(0, 1.15 * max(speed for _, speed in rows), height=height)
    parts = [svg.axes(x, None, "tokens per second", "", height=height)]
    for i, (artifact, speed) in enumerate(rows):
        y = svg.TOP + ROW * i
        parts.append(svg.bar(x.to(0), x.to(speed), y, ROW - 8, i, f"{artifact}: {speed:.4g}"))
        parts.append(svg.text(svg.LEFT - 6, y + 13, artifact, "end"))
        parts.append(svg.text(x.to(speed) + 5, y + 13, f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"))
    return svg.figure(parts, name.replace("_", " "), height=height)


def subject_plot(one: TaskComparison, index: int) -> str:
    """A loss with its interval a subject, the largest subjects first."""
    rows = sorted(one.comparisons[index].subjects, key=lambda s: -s.n)[:25]
    if not rows:
        return ""
    height = svg.TOP + svg.BOTTOM + ROW * len(rows)
    left = min(200.0, svg.CHARACTER * max(len(r.subject) + 7 for r in rows))
    ends = [v for r in rows for v in (r.loss_points.low, r.loss_points.high)] + [0.0]
    x = svg.scale_over(ends, left, svg.WIDTH - svg.RIGHT)
    parts = [svg.axes(x, None, "loss, points", "", height=height),
             f'<line class="axis" x1="{x.to(0):.1f}" x2="{x.to(0):.1f}" y1="{svg.TOP}" y2="{height - svg.BOTTOM}"/>']
    for i, row in enumerate(rows):
        y, loss = svg.TOP + ROW * i + 12.0, row.loss_points
        parts.append(svg.whisker(x.to(loss.low), y, x.to(loss.high), y, index + 1))
        parts.append(svg.dot(x.to(loss.value), y, index + 1, f"{row.subject}: {loss.value:+.1f} points, n {row.n}"))
        parts.append(svg.text(left - 8, y + 4, f"{row.subject[:26]} ({row.n})", "end"))
    return svg.figure(parts, "Loss by subject", height=height)


def thinned(x: "np.ndarray[tuple[int], np.dtype[np.float64]]",
            y: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> list[tuple[float, float]]:
    """At most MOST_CURVE_POINTS points of a curve, both ends among them."""
    keep = np.unique(np.linspace(0, x.size - 1, min(x.size, MOST_CURVE_POINTS)).round().astype(int))
    return [(float(x[i]), float(y[i])) for i in keep]


def _calibrations(one: TaskComparison) -> list[tuple[str, Calibration]]:
    """Calibrations of the runs that have one."""
    found: list[tuple[RunRecord, Calibration | None]] = [(r, calibrate(r.samples)) for r in records_of(one)]
    return [(label(r), c) for r, c in found if c]
