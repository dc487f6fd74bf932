"""What a report is made of: the evidence of one task, read once, tables of text cells, and how numbers are written."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.compare.calibration import Calibration, calibrate
from bench.compare.compare import Divergence
from bench.compare.floor import NoiseFloor
from bench.compare.runs import TaskComparison
from bench.compare.safety import Marked, marked_flips
from bench.intervals import Interval
from bench.run.record import RunRecord
from medlite.files import format_bytes

NOTHING = "–"
MOODS = {"non-inferior": "good", "inferior": "bad", "inconclusive": "open"}  # verdict -> how it is coloured


@dataclass(frozen=True)
class Report:
    """What a document shows: the comparisons, task by task, and the noise floor of a task where it was measured."""

    tasks: Sequence[TaskComparison]
    floors: Mapping[str, NoiseFloor] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A titled table of text, the one model of every form. The first column names the row; `note` explains the columns.

    A cell of a terminal's table may have several lines.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def tabulate(
    title: str, columns: Mapping[str, Callable[..., str]], items: Iterable[tuple[object, ...]], note: str = ""
) -> Table:
    """A table with one row an item. columns: its head -> its cell, from the parts of the item."""
    return Table(title, tuple(columns), tuple(tuple(cell(*item) for cell in columns.values()) for item in items), note)


@dataclass(frozen=True)
class Evidence:
    """One task: what was compared, the noise floor where it was measured, and the calibration of each run, the
    baseline's first."""

    comparison: TaskComparison
    floor: NoiseFloor | None
    calibrations: tuple[Calibration | None, ...]

    @property
    def records(self) -> tuple[RunRecord, ...]:
        """The baseline and the candidates."""
        return self.comparison.records


def evidence_of(comparison: TaskComparison, floor: NoiseFloor | None) -> Evidence:
    """The evidence of a task; calibrates every run once."""
    return Evidence(comparison, floor, tuple(calibrate(record.samples) for record in comparison.records))


def turned(one: TaskComparison) -> list[tuple[str, tuple[Marked, ...]]]:
    """Candidate names with their changed answers, where the records hold the questions' text."""
    return [(c.candidate, marked_flips(one.baseline.samples, c)) for c in one.comparisons]


def mood(cell: str) -> str:
    """ "good", "bad" or "open" of a cell that begins with a verdict, else empty. The words say the same without it."""
    return next((name for verdict, name in MOODS.items() if cell.startswith(verdict)), "")


def size(n_bytes: int) -> str:
    """Bytes in decimal units, a dash for 0: not known."""
    return format_bytes(n_bytes) if n_bytes else NOTHING


def points(interval: Interval, scale: float = 1.0, *, signed: bool = False) -> str:
    """ "72.1 (69.3 to 74.8)"."""
    value, low, high = (scale * x for x in (interval.value, interval.low, interval.high))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})" if signed else f"{value:.1f} ({low:.1f} to {high:.1f})"


def in_points(values: Sequence[float]) -> str:
    """ "1 point", "2.5 points", "1 point and 2 points"; each value once."""
    return " and ".join(f"{value:g} point{'' if value == 1 else 's'}" for value in dict.fromkeys(values))


def fine(interval: Interval) -> str:
    """ "0.123 (0.101 to 0.145)"."""
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def number(value: float | None) -> str:
    """Three digits, or a dash where it was not measured."""
    return NOTHING if value is None or value <= 0 else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def p_value(p: float) -> str:
    """Two digits, or "<1e-6"."""
    return "<1e-6" if p < 1e-6 else f"{p:.2g}"


def divergence_cells(found: Divergence | None) -> tuple[str, ...]:
    """Mean with interval, 90 %, 99 %, greatest, the mean's gap."""
    if found is None:
        return (NOTHING,) * 5
    mean = f"{found.mean.value:.2g} ({found.mean.low:.2g} to {found.mean.high:.2g})"
    return (mean, f"{found.p90:.2g}", f"{found.p99:.2g}", f"{found.greatest:.2g}", f"{found.mean_gap:.1g}")
