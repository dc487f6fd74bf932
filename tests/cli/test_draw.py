"""Every table fits 80 columns and says what it must, drawn for a terminal."""

import dataclasses
import io

import pytest
from rich.console import Console

from bench.compare.runs import TaskComparison, compare_runs
from bench.reports import tables as documents
from bench.reports import verdicts
from bench.reports.content import NOTHING, Report, Table, evidence_of, number
from bench.reports.to_terminal import cost_table, memory, record_table, to_terminal, verdict_table
from bench.run.record import RunRecord
from medlite.cli.draw import draw_table
from tests.helpers.bench_toys import answers, record_of


def drawn(table: Table) -> str:
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    console.print(draw_table(table))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def compared(baseline: RunRecord, *candidates: RunRecord) -> TaskComparison:
    (found,) = compare_runs({"demo": baseline}, [{"demo": one} for one in candidates])
    return found


def grown(record: RunRecord, n_gpu_bytes: int | None = None) -> RunRecord:
    """The record with sizes and speeds of a 70B model."""
    return dataclasses.replace(
        record,
        artifact=dataclasses.replace(record.artifact, n_bytes=141_117_918_976),
        performance=dataclasses.replace(
            record.performance,
            peak_rss_bytes=144_117_918_976,
            prefill_tokens_per_second=12345.6,
            peak_vram_bytes=n_gpu_bytes,
        ),
    )


def wide(n_gpu_bytes: int | None = None) -> TaskComparison:
    """Rows as wide as they get: a 70B model, losses of two digits."""
    old = [0] * 800 + [1] * 200
    new = [1] * 300 + [0] * 500 + [1] * 50 + [0] * 150
    records = (
        record_of(answers(old)),
        record_of(answers(new), recipe="Q4_K_M"),
        record_of(answers(new[::-1]), recipe="IQ3_XXS"),
    )
    return compared(*(grown(record, n_gpu_bytes) for record in records))


def test_the_comparison_fits_eighty_columns_without_a_cut() -> None:
    text = drawn(cost_table(wide()))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    for cell in ("IQ3_XXS", "141 GB", "+15.0", "300", "12,346", "accuracy", "broke: right to wrong"):
        assert cell in text


def test_the_verdicts_fit_eighty_columns_without_a_cut() -> None:
    old, new = [0] * 300 + [0, 0, 1, 1] * 25, [1] * 50 + [0] * 250 + [0, 1, 1, 0] * 25
    found = compared(record_of(answers(old)), record_of(answers(new), recipe="IQ3_XXS"))
    text = drawn(verdict_table(found, Report([found])))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    assert "inferior" in text
    assert "<1e-6" in text


def test_gpu_memory_stands_below_the_processes_where_it_was_measured() -> None:
    text = drawn(cost_table(wide(141_000_000_000)))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "GPU 141 GB" in text
    assert "…" not in text
    run = record_of(answers([0, 1]))
    assert memory(run) == "100 MB"
    run = dataclasses.replace(run, performance=dataclasses.replace(run.performance, peak_vram_bytes=5 * 10**9))
    assert "GPU 5 GB" in drawn(record_table([run]))


def test_long_names_of_several_models_are_folded_and_never_cut() -> None:
    names = ("Meta-Llama-3.1-70B-Instruct-Q4_K_M", "medgemma-27b-text-it-IQ3_XXS")
    records = [record_of(answers([0, 0, 1, 1] * 100)), record_of(answers([0, 1, 1, 0] * 100))]
    base, other = (
        dataclasses.replace(record, artifact=dataclasses.replace(record.artifact, recipe=name))
        for record, name in zip(records, names, strict=True)
    )
    found = compared(base, other)
    assert found.comparisons[0].candidate == names[1]
    for table in (verdict_table(found, Report([found])), cost_table(found), record_table([base])):
        text = drawn(table)
        assert max(len(line) for line in text.splitlines()) <= 80
        assert "…" not in text
    assert "questions" in drawn(verdict_table(found, Report([found])))


def test_a_cell_is_text_and_no_markup() -> None:
    text = drawn(Table("[bold]t", ("a", "b"), (("[red]name", "[/red]1"),), "[note]"))
    assert all(part in text for part in ("[bold]t", "[red]name", "[/red]1", "[note]"))


def test_a_report_in_the_terminal_has_two_tables_a_task_and_a_sentence() -> None:
    parts = list(to_terminal(Report([wide()])))
    assert [type(part) for part in parts] == [str, Table, Table, str]
    assert parts[0] == "demo  1,000 questions"


@pytest.mark.parametrize(("speed", "cell"), [(0.0, NOTHING), (3.14159, "3.14"), (99.9, "99.9"), (12345.6, "12,346")])
def test_speed_cells(speed: float, cell: str) -> None:
    assert number(speed) == cell


def test_a_table_of_the_documents_goes_on_below_where_it_is_too_wide() -> None:
    found = wide(141_000_000_000)
    for table in (verdicts.verdict_table(found, None), *documents.tables_of(evidence_of(found, None))):
        lines = drawn(table).splitlines()
        assert max(map(len, lines)) <= 80
        numbers = {cell for row in table.rows for cell in row[1:] if cell[:1].isdigit()}
        assert all(any(cell in line for line in lines) for cell in numbers)
        assert all(any(line.startswith(f" {row[0]}") for line in lines) for row in table.rows)
