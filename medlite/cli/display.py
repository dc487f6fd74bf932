"""How the command line draws: one console for results, one for progress, tables, bars in bytes or counts.

Results go to stdout, everything that moves goes to stderr, so that a pipe receives only results.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

stdout = Console(highlight=False, soft_wrap=False)
stderr = Console(stderr=True, highlight=False)


def result_table(*columns: str, words: Collection[str] = ()) -> Table:
    """A table of results; the first column and those in `words` are of words, the others of numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, justify="left" if name == columns[0] or name in words else "right", no_wrap=True)
    return table


@contextmanager
def progress_bar(
    title: str, total: int, *, unit: str = "count", quiet: bool = False
) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's stderr; the yielded function advances it. unit "bytes" shows speed; quiet draws nothing."""
    if quiet or not stderr.is_terminal:
        yield lambda n: None
        return
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(bar_width=24)]
    columns += [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    columns.append(TimeRemainingColumn(compact=True, elapsed_when_finished=True))
    with Progress(*columns, console=stderr) as bars:
        task = bars.add_task(title, total=total)
        yield lambda n: bars.advance(task, n)


@contextmanager
def loading_status(*, quiet: bool) -> Iterator[Callable[[float], None] | None]:
    """A line on a terminal's stderr while a model loads; the yielded function takes the loaded share, 0 to 1."""
    if quiet or not stderr.is_terminal:
        yield None
        return
    with stderr.status("loading") as status:
        yield lambda share: status.update(f"loading {share:.0%}")
