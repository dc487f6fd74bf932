"""Comparisons as documents. To add a form: one file beside this one, one row here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.compare.floor import NoiseFloor
from bench.compare.runs import TaskComparison
from medlite.errors import OutputError


@dataclass(frozen=True)
class Report:
    """What a document shows: the comparisons, task by task, and the noise floor of a task where it was measured."""

    tasks: Sequence[TaskComparison]
    floors: Mapping[str, NoiseFloor] = field(default_factory=dict)


def render(report: Report, form: str) -> str:
    """The document as text. form: a key of REPORTS."""
    return REPORTS[form](report)


def report_form(path: Path) -> str:
    """The form that a file's ending asks for. Raises OutputError for an unknown one."""
    form = path.suffix.lower().lstrip(".")
    if form not in REPORTS:
        raise OutputError(f"{path}: no report has the ending {path.suffix!r}", hint=f"one of .{', .'.join(REPORTS)}")
    return form


def _html(report: Report) -> str:
    from bench.reports.to_html import to_html

    return to_html(report)


def _markdown(report: Report) -> str:
    from bench.reports.to_markdown import to_markdown

    return to_markdown(report)


def _json(report: Report) -> str:
    from bench.reports.to_json import to_json

    return to_json(report)


REPORTS: dict[str, Callable[[Report], str]] = {"html": _html, "md": _markdown, "json": _json}
