"""A report as Markdown, for a model card."""

from bench.ask.question import LETTERS
from bench.compare.published import published_beside
from bench.compare.safety import Marked
from bench.reports.content import Report, Table, evidence_of, turned
from bench.reports.methods import method_lines
from bench.reports.tables import published_table, tables_of
from bench.reports.verdicts import answer_line, overview_table, verdict_table

MOST_QUESTIONS = 20  # listed in full; the HTML report and the JSON have them all


def to_markdown(report: Report) -> str:
    """The verdicts first, then every table of every task, the questions that turned wrong, the methods."""
    parts = [
        "# What the low bits cost",
        "",
        "Research and demonstration: a verdict about a question set, not about patients.",
        "",
    ]
    overview = overview_table(report.tasks, report.floors)
    parts += table_lines(overview, level=2) if overview else []
    for one in report.tasks:
        floor = report.floors.get(one.task)
        parts += [f"## {one.task}: {len(one.baseline.samples):,} questions", "", answer_line(one), ""]
        for table in (verdict_table(one, floor), *tables_of(evidence_of(one, floor))):
            parts += table_lines(table)
        for name, marked in turned(one):
            parts += question_lines(name, marked)
        parts += ["### Methods", "", *(f"- {line}" for line in method_lines(one)), ""]
    for found in published_beside(report.tasks):
        parts += table_lines(published_table(found), level=2)
    return "\n".join(parts)


def table_lines(table: Table, level: int = 3) -> list[str]:
    """A GitHub table under its title, its note below; the note alone where there is no row."""
    title, note = [f"{'#' * level} {table.title}", ""], [table.note, ""] if table.note else []
    if not table.rows:
        return [*title, *note]
    rows = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in table.rows]
    rule = f"|{'---|' * len(table.columns)}"
    return [*title, f"| {' | '.join(table.columns)} |", rule, *rows, "", *note]


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
