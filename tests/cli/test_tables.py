"""The terminal tables fit 80 columns and say what they must."""

import dataclasses
import io

import pytest
from rich.console import Console
from rich.table import Table

from bench.compare.compare import compare
from bench.compare.summary import SummaryRow, summarize
from medlite.cli.bench.tables import comparison_table, memory_cell, record_table, speed_cell, verdict_table
from tests.helpers.bench_toys import answers, record_of


def drawn(table: Table) -> str:
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def wide_rows() -> list[SummaryRow]:
    """Rows as wide as they get: a 70B model, losses of two digits."""
    old = [0] * 800 + [1] * 200
    new = [1] * 300 + [0] * 500 + [1] * 50 + [0] * 150
    rows = summarize(
        record_of(answers(old)),
        [record_of(answers(new), recipe="Q4_K_M"), record_of(answers(new[::-1]), recipe="IQ3_XXS")],
    )
    return [
        dataclasses.replace(
            r, n_bytes=141_117_918_976, peak_rss_bytes=144_117_918_976, prefill_tokens_per_second=12345.6
        )
        for r in rows
    ]


def test_the_comparison_fits_eighty_columns_without_a_cut() -> None:
    text = drawn(comparison_table(wide_rows()))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    for cell in ("IQ3_XXS", "141 GB", "+15.0", "300", "12,346", "accuracy", "broke: right to wrong"):
        assert cell in text


def test_the_verdicts_fit_eighty_columns_without_a_cut() -> None:
    base = record_of(answers([0, 0, 1, 1] * 100))
    found = compare(base, record_of(answers([0, 1, 1, 0] * 100), recipe="IQ3_XXS"))
    text = drawn(verdict_table([found], [1e-9]))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    assert "inconclusive" in text
    assert "<1e-6" in text


def test_gpu_memory_stands_below_the_processes_where_it_was_measured() -> None:
    rows = [dataclasses.replace(row, peak_vram_bytes=141_000_000_000) for row in wide_rows()]
    text = drawn(comparison_table(rows))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "GPU 141 GB" in text
    assert "…" not in text
    assert memory_cell(3_000_000, None) == "3 MB"
    run = record_of(answers([0, 1]))
    run = dataclasses.replace(run, performance=dataclasses.replace(run.performance, peak_vram_bytes=5 * 10**9))
    assert "GPU 5 GB" in drawn(record_table([run]))


def test_long_names_of_several_models_are_folded_and_never_cut() -> None:
    names = ("Meta-Llama-3.1-70B-Instruct-Q4_K_M", "medgemma-27b-text-it-IQ3_XXS")
    base = dataclasses.replace(record_of(answers([0, 0, 1, 1] * 100)), label=names[0])
    other = dataclasses.replace(record_of(answers([0, 1, 1, 0] * 100)), label=names[1])
    found = compare(base, other)
    run = dataclasses.replace(base, artifact=dataclasses.replace(base.artifact, recipe=names[0]))
    for table in (verdict_table([found], [0.5]), comparison_table(summarize(base, [other])), record_table([run])):
        text = drawn(table)
        assert max(len(line) for line in text.splitlines()) <= 80
        assert "…" not in text
    assert "questions" in drawn(verdict_table([found], [0.5]))


@pytest.mark.parametrize(("speed", "cell"), [(0.0, "·"), (3.14159, "3.1"), (99.9, "99.9"), (12345.6, "12,346")])
def test_speed_cells(speed: float, cell: str) -> None:
    assert speed_cell(speed) == cell
