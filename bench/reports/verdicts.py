"""The answer of a report: may an artifact stand in for the baseline, and which is the smallest that may."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bench.compare.compare import Comparison, accuracy, label
from bench.compare.floor import NoiseFloor, within_floor
from bench.compare.runs import TaskComparison
from bench.compare.verdict import NON_INFERIOR
from bench.intervals import holm
from bench.reports.content import NOTHING, Table, in_points, p_value, points, tabulate
from medlite.files import format_bytes


def verdict_table(one: TaskComparison, floor: NoiseFloor | None) -> Table:
    """The first table: may this artifact stand in for the baseline?"""
    margin = margin_words(one) if one.comparisons else ""
    note = (
        "95 % intervals; loss in percentage points, positive where worse. Verdict at a margin of "
        f"{margin}: non-inferior if the whole interval of the loss lies below it, inferior if above, "
        "else inconclusive, and so many questions would decide. p: exact McNemar, Holm over the rows. Confident: "
        "right answers lost that were no near-tie (baseline margin of at least 0.5 nats)."
    )
    if floor:
        note += (
            " Within noise: a loss no greater than the noise floor, which is the baseline against itself "
            f"({', '.join(floor.differs_in) or 'nothing changed'}): {floor.loss_points:.2f} points, "
            f"{floor.n_flips} flips."
        )
    columns = {
        "artifact": lambda r, c, p: c.candidate,
        "verdict": lambda r, c, p: verdict_words(c, floor),
        "accuracy %": lambda r, c, p: points(accuracy(r), 100),
        "loss, points": lambda r, c, p: points(c.loss_points, signed=True),
        "questions to decide": lambda r, c, p: needed(c),
        "right→ wrong": lambda r, c, p: str(c.count("right_to_wrong")),
        "wrong→ right": lambda r, c, p: str(c.count("wrong_to_right")),
        "wrong→ other wrong": lambda r, c, p: str(c.count("wrong_to_other_wrong")),
        "p": lambda r, c, p: p_value(p),
        "confident losses": lambda r, c, p: str(sum(f.confident for f in c.of_kind("right_to_wrong"))),
    }
    adjusted = holm([c.mcnemar_p for c in one.comparisons])
    found = tabulate("Verdict", columns, zip(one.candidates, one.comparisons, adjusted, strict=True), note)
    baseline = (label(one.baseline), "baseline", points(accuracy(one.baseline), 100), *[NOTHING] * 7)
    return replace(found, rows=(baseline, *found.rows))


def needed(c: Comparison) -> str:
    """How many questions would decide, where that is known."""
    return f"{c.verdict.n_needed:,}" if c.verdict.n_needed else NOTHING


def verdict_words(c: Comparison, floor: NoiseFloor | None) -> str:
    """ "non-inferior", "inconclusive, within noise"."""
    return c.verdict.kind + (", within noise" if within_floor(c, floor) else "")


def overview_table(tasks: Sequence[TaskComparison], floors: Mapping[str, NoiseFloor]) -> Table | None:
    """Verdict and loss of every artifact in every task; None where there is one task only."""
    if len(tasks) < 2:
        return None

    def cell(task: str, c: Comparison) -> str:
        return f"{verdict_words(c, floors.get(task))}, {c.loss_points.value:+.1f}"

    names = [one.task for one in tasks]
    rows = tuple(
        (found[0].candidate, *map(cell, names, found))
        for found in zip(*(one.comparisons for one in tasks), strict=True)
    )
    note = "Verdict and loss in percentage points; intervals stand with each task."
    return Table("All tasks", ("artifact", *names), rows, note)


def smallest_non_inferior(one: TaskComparison) -> str | None:
    """The name of the smallest artifact that is non-inferior in this task; None if there is none."""
    fitting = [
        (record.artifact.n_bytes, c.candidate)
        for record, c in zip(one.candidates, one.comparisons, strict=True)
        if c.verdict.kind == NON_INFERIOR and record.artifact.n_bytes
    ]
    return min(fitting)[1] if fitting else None


def answer_line(one: TaskComparison) -> str:
    """What a reader who wants the smallest file takes from the verdicts, in a sentence."""
    if not one.comparisons:
        return ""
    margin = margin_words(one)
    name = smallest_non_inferior(one)
    if name is None:
        return f"No artifact is shown to be non-inferior at a margin of {margin} on these questions."
    n_bytes = next(r.artifact.n_bytes for r in one.candidates if label(r) == name)
    whole = one.baseline.artifact.n_bytes  # 0 of a model behind a server
    share = f", {100 * n_bytes / whole:.0f} % of {label(one.baseline)}" if whole else ""
    return f"Smallest artifact that is non-inferior at a margin of {margin}: {name}, {format_bytes(n_bytes)}{share}."


def margin_words(one: TaskComparison) -> str:
    """ "1 point"; "1 point and 2 points" where the runs declared different ones."""
    return in_points([c.verdict.margin_points for c in one.comparisons])
