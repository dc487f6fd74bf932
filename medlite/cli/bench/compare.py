"""`medlite bench compare`: what runs lost against a baseline, as tables and as a report."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from medlite.cli import warn
from medlite.cli.params import PATH, json_option, value_option

if TYPE_CHECKING:
    from bench.reports.content import Report

report_option = click.option(
    "--report", type=PATH, metavar="FILE", help="Write a report; the ending (.html, .md, .json) decides its form."
)


@click.command(
    "compare",
    epilog="""\b
Examples:
  medlite bench compare bf16.jsonl q8.jsonl q4.jsonl
  medlite bench compare runs/bf16/ runs/q4/ --margin 2.0
  medlite bench compare bf16.jsonl q4.jsonl --report report.html
  medlite bench compare bf16.jsonl q4.jsonl --report card.md""",
)
@click.argument("baseline", type=PATH)
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option(
    "--margin",
    "margin_points",
    type=click.FloatRange(0),
    help="Tolerable loss in percentage points. Default: what the run declared.",
)
@click.option(
    "--floor",
    "reruns",
    multiple=True,
    type=PATH,
    metavar="RUN",
    help="The baseline run again (other device, threads, dtype): its loss is the noise floor.",
)
@value_option("--seed", click.IntRange(0), 0, "Of the bootstrap.")
@report_option
@json_option()
def command(
    baseline: Path,
    runs: tuple[Path, ...],
    margin_points: float | None,
    reruns: tuple[Path, ...],
    seed: int,
    report: Path | None,
    as_json: bool,
) -> None:
    """What each of RUNS lost against BASELINE. Each is a record, or a folder with a record a task."""
    from bench.compare.floor import noise_floors
    from bench.compare.runs import compare_runs, read_runs
    from bench.reports.content import Report

    check_report(report)
    base = read_runs(baseline)
    found = compare_runs(base, [read_runs(run) for run in runs], margin_points=margin_points, seed=seed)
    show_report(Report(found, noise_floors(base, [read_runs(run) for run in reruns])), report, as_json=as_json)


def check_report(path: Path | None) -> None:
    """Raise OutputError now, not after everything was measured, if the report could not be written."""
    from bench.reports.forms import report_form
    from medlite.files import check_writable

    if path:
        report_form(path)
        check_writable(path, force=True)


def show_report(found: "Report", path: Path | None, *, as_json: bool) -> None:
    """Write the report file, and print the comparisons: as tables, or as data."""
    from bench.reports.forms import render, write_report
    from bench.reports.to_terminal import to_terminal
    from medlite.cli.display import stdout
    from medlite.cli.draw import draw_table

    if path:
        write_report(found, path)
    if as_json:
        click.echo(render(found, "json"), nl=False)
        return
    for part in to_terminal(found):
        stdout.print(part if isinstance(part, str) else draw_table(part), markup=False)
    for warning in dict.fromkeys(w for task in found.tasks for c in task.comparisons for w in c.warnings):
        warn(warning)
    if path:
        stdout.print(f"report: {path}", style="dim", soft_wrap=True)
