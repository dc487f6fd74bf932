"""A report as one HTML file: no network, no script, light and dark, printable. The page is report.html, style.css."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.compare.floor import NoiseFloor
from bench.compare.published import published_beside
from bench.compare.runs import TaskComparison
from bench.reports.content import Report, evidence_of, mood, turned
from bench.reports.methods import method_lines
from bench.reports.plots import all_plots
from bench.reports.tables import published_table, tables_of
from bench.reports.to_markdown import option
from bench.reports.verdicts import answer_line, overview_table, verdict_table

FOLDER = Path(__file__).parent
# fmt: off
KINDS = {"right_to_wrong": "turned wrong", "wrong_to_other_wrong": "wrong in another way",
         "wrong_to_right": "turned right"}
# fmt: on


def to_html(report: Report) -> str:
    """The page: the verdicts, then task by task everything behind them. All text is escaped but the plots' SVG."""
    pages = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters["mood"] = mood
    return pages.get_template("report.html").render(
        style=Markup((FOLDER / "style.css").read_text(encoding="utf-8")),
        overview=overview_table(report.tasks, report.floors),
        tasks=[section(one, report.floors.get(one.task), f"t{i}") for i, one in enumerate(report.tasks)],
        published=[published_table(found) for found in published_beside(report.tasks)],
        kinds=KINDS,
        option=option,
    )


def section(one: TaskComparison, floor: NoiseFloor | None, prefix: str) -> dict[str, Any]:
    """One task for the page: answer, verdicts, figures, tables, the questions that turned, methods.

    prefix: of ids on the page. turned: each candidate with its changed answers, and how many of them turned wrong.
    """
    evidence = evidence_of(one, floor)
    changed = [(name, [answer for answer in marked if answer.question]) for name, marked in turned(one)]
    return {
        "name": one.task,
        "n_questions": f"{len(one.baseline.samples):,}",
        "answer": answer_line(one),
        "verdict": verdict_table(one, floor),
        "plots": all_plots(evidence, prefix),
        "tables": tables_of(evidence),
        "turned": [
            (name, shown, sum(answer.flip.kind == "right_to_wrong" for answer in shown))
            for name, shown in changed
            if shown
        ],
        "methods": method_lines(one),
    }
