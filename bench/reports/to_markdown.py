"""A report as Markdown, for a model card."""

from typing import TYPE_CHECKING

from bench.reports.content import Table, method_lines, tables_of, turned
from bench.safety import Marked
from bench.task import LETTERS

if TYPE_CHECKING:
    from bench.reports import Report

MOST_QUESTIONS = 20  # listed in full; the HTML report and the JSON have them all


def to_markdown(report: "Report") -> str:
    """Every table of every task, the questions that turned wrong, the methods."""
    parts = ["# What the low bits cost", "",
             "Research and demonstration: a verdict about a question set, not about patients.", ""]
    for one in report.tasks:
        parts += [f"## {one.task}: {len(one.baseline.samples):,} questions", ""]
        for table in tables_of(one, report.floors.get(one.task)):
            parts += table_lines(table)
        for name, marked in turned(one):
            parts += question_lines(name, marked)
        parts += ["### Methods", "", *(f"- {line}" for line in method_lines(one)), ""]
    return "\n".join(parts)


def table_lines(table: Table) -> list[str]:
    """A GitHub table under its title, its note below."""
    rows = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in table.rows]
    rule = f"|{'---|' * len(table.columns)}"
    note = [table.note, ""] if table.note else []
    return [f"### {table.title}", "", f"| {' | '.join(table.columns)} |", rule, *rows, "", *note]


def question_lines(name: str, marked: tuple[Marked, ...]) -> list[str]:
    """The questions that a candidate got wrong and the baseline right; the first MOST_QUESTIONS of them."""
    lost = [m for m in marked if m.flip.kind == "right_to_wrong" and m.question]
    if not lost:
        return []
    lines = [f"### Right at the baseline, wrong at {name}", ""]
    for one in lost[:MOST_QUESTIONS]:
        flip = one.flip
        given = option(one, flip.candidate_prediction)
        topics = f" [{', '.join(one.topics)}]" if one.topics else ""
        lines.append(f"- {' '.join(one.question.split())} **{option(one, flip.answer)}**; {name}: {given}{topics}")
    more = len(lost) - MOST_QUESTIONS
    return [*lines, *([f"- and {more} more in the HTML report"] if more > 0 else []), ""]


def option(one: Marked, index: int) -> str:
    """ "B. aspirin", or that there was no answer."""
    return f"{LETTERS[index]}. {one.options[index]}" if 0 <= index < len(one.options) else "no answer"
