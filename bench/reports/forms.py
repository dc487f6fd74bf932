"""The table of document forms. To add one: one file next to this one, one row here."""

from collections.abc import Callable
from pathlib import Path

from bench.reports.content import Report
from bench.reports.to_html import to_html
from bench.reports.to_json import to_json
from bench.reports.to_markdown import to_markdown
from medlite.errors import OutputError
from medlite.files import write_text_whole

# suffix of the file -> the document as text
REPORTS: dict[str, Callable[[Report], str]] = {"html": to_html, "md": to_markdown, "json": to_json}


def report_form(path: Path) -> str:
    """The form that a file's ending asks for. Raises OutputError for an unknown one."""
    form = path.suffix.lower().lstrip(".")
    if form not in REPORTS:
        raise OutputError(f"{path}: no report has the ending {path.suffix!r}", hint=f"one of .{', .'.join(REPORTS)}")
    return form


def render(report: Report, form: str) -> str:
    """The document as text. form: a key of REPORTS."""
    return REPORTS[form](report)


def write_report(report: Report, path: Path) -> None:
    """Write the document whose form `path` ends in, whole or not at all. Raises OutputError for an unknown ending."""
    write_text_whole(path, render(report, report_form(path)))
