"""A table of results, drawn for the terminal."""

import textwrap
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:
    from bench.reports.content import Table

WIDTH = 80  # columns of the narrowest terminal that is drawn for
WORDS_WIDTH = 8  # to which a column of words may be folded
STYLES = {"good": "green", "bad": "red", "open": "yellow"}
NUMBER_STARTS = tuple("0123456789+-−–<≥±")


def draw_table(table: "Table") -> Group:
    """The table as rich draws it within WIDTH columns, its note below.

    Columns of numbers stay whole, those of words are folded. What is wider goes on below, under the first column again.
    """
    bands: list[list[int]] = [[]]
    for i in range(1, len(table.columns)):
        if bands[-1] and sum(_least_width(table, j) + 1 for j in (0, *bands[-1], i)) > WIDTH:
            bands.append([])
        bands[-1].append(i)
    title = [Text(table.title, style="bold")] if table.title else []
    return Group(*title, *(_band(table, [0, *band]) for band in bands), Text(table.note, style="dim italic"))


def _cells(table: "Table", i: int) -> list[str]:
    return [row[i] for row in table.rows]


def _is_numbers(table: "Table", i: int) -> bool:
    return i > 0 and all(cell.startswith(NUMBER_STARTS) for cell in _cells(table, i))


def _width(table: "Table", i: int) -> int:
    """Of the longest line of a cell, or word of the head."""
    lines = [line for cell in _cells(table, i) for line in cell.splitlines()]
    return max(map(len, (*lines, *table.columns[i].split())), default=1)


def _least_width(table: "Table", i: int) -> int:
    return _width(table, i) if _is_numbers(table, i) else min(_width(table, i), WORDS_WIDTH)


def _band(table: "Table", columns: list[int]) -> RichTable:
    """Some columns of the table."""
    from bench.reports.content import mood

    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0), header_style="bold")
    for i in columns:
        numbers = _is_numbers(table, i)
        head = "\n".join(textwrap.wrap(table.columns[i], _width(table, i), break_on_hyphens=False))
        drawn.add_column(Text(head), justify="right" if numbers else "left", no_wrap=numbers, overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(row[i], style=STYLES.get(mood(row[i]), "")) for i in columns))
    return drawn
