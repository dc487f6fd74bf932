"""Figures: the page's colours and font, unlike ids, equal bytes, units on the axes; tooltips and the Pareto front."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.compare.compare import compare
from bench.compare.runs import TaskComparison
from bench.reports.content import Evidence, evidence_of
from bench.reports.drawing import VARIABLES, draw, legend_columns, tick_text
from bench.reports.front import file_bytes, memory_bytes, on_front, pareto
from bench.reports.plots import all_plots
from bench.run.record import RunRecord
from bench.score.scoring import score_samples
from tests.helpers.bench_toys import make_items, record_of, scored
from tests.helpers.places import ROOT
from tests.helpers.toy_engine import ToyEngine


def toy_run(noise: float, recipe: str) -> RunRecord:
    record = record_of(list(score_samples(ToyEngine(noise=noise), make_items(24))), recipe=recipe)
    n_bytes = int(2e9 / (1 + noise))
    return dataclasses.replace(
        record,
        label=recipe,
        artifact=dataclasses.replace(record.artifact, n_bytes=n_bytes),
        performance=dataclasses.replace(record.performance, peak_rss_bytes=n_bytes + 10**8),
    )


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    base, low = toy_run(0.0, "BF16"), toy_run(1.5, "Q2_K")
    return evidence_of(TaskComparison("demo", base, (low,), (compare(base, low),)), None)


@pytest.fixture(scope="module")
def pictures(evidence: Evidence) -> dict[str, str]:
    """Title -> <svg>."""
    plots = all_plots(evidence, "t0")
    assert all(plot.caption.endswith((".", "questions.")) for plot in plots)
    return {re.search('aria-label="([^"]*)"', plot.svg)[1]: plot.svg for plot in plots}  # type: ignore[index]


AXES = {
    "Loss with its interval and the margin": ["loss, percentage points"],
    "Accuracy against peak memory": ["peak memory, GB", "accuracy, %"],
    "Accuracy against file size": ["file size, GB", "accuracy, %"],
    "Changed answers by kind": ["share of all questions, %"],
    "Distribution of the KL divergence": ["KL divergence, nats (log scale)", "questions below, %"],
    "Reliability diagram": ["confidence, %", "accuracy, %"],
    "Risk and coverage": ["answered, most confident first, %", "errors among them, %"],
    "prefill, tokens per second": ["prefill, tokens per second"],
    "decode, tokens per second": ["decode, tokens per second"],
    "Peak memory by use": ["peak resident memory, GB"],
    "Loss by subject, Q2_K": ["loss, percentage points"],
}


def test_every_figure_is_there(pictures: dict[str, str]) -> None:
    assert list(pictures) == list(AXES)


@pytest.mark.parametrize("title", AXES)
def test_axes_carry_their_units_as_text(pictures: dict[str, str], title: str) -> None:
    for words in AXES[title]:
        assert f">{words}</text>" in pictures[title]


def test_colours_are_the_pages_and_the_font_too(pictures: dict[str, str]) -> None:
    for picture in pictures.values():
        assert not re.search(r":\s*#[0-9a-f]{3,6}\b", picture)
        assert "font-family" not in picture
        assert "var(--" in picture
        assert "http" not in picture


def test_ids_of_two_figures_never_meet(pictures: dict[str, str]) -> None:
    ids = [one for picture in pictures.values() for one in re.findall(r' id="([^"]*)"', picture)]
    assert len(set(ids)) == len(ids) > 0


def test_the_same_evidence_gives_the_same_bytes(evidence: Evidence, pictures: dict[str, str]) -> None:
    assert [plot.svg for plot in all_plots(evidence, "t0")] == list(pictures.values())


def test_a_figure_without_data_is_left_out() -> None:
    bare = dataclasses.replace(record_of([scored(i, 0, status="truncated") for i in range(4)]), label="bare")
    bare = dataclasses.replace(
        bare, performance=dataclasses.replace(bare.performance, prefill_tokens_per_second=0.0, peak_rss_bytes=0)
    )
    plots = all_plots(evidence_of(TaskComparison("demo", bare, (bare,), (compare(bare, bare),)), None), "t0")
    titles = {re.search('aria-label="([^"]*)"', plot.svg)[1] for plot in plots}  # type: ignore[index]
    assert titles == {
        "Loss with its interval and the margin",
        "Accuracy against file size",
        "Changed answers by kind",
        "decode, tokens per second",
    }


def test_what_a_point_stands_for_is_its_tooltip(pictures: dict[str, str]) -> None:
    assert "<title>Q2_K: 0.8 GB, " in pictures["Accuracy against file size"]


def test_names_from_files_are_escaped() -> None:
    nasty = dataclasses.replace(toy_run(0.5, "Q2_K"), label='</svg><script>alert(1)</script>&"')
    base = toy_run(0.0, "BF16")
    for plot in all_plots(evidence_of(TaskComparison("demo", base, (nasty,), (compare(base, nasty),)), None), "t0"):
        assert "<script" not in plot.svg
        assert plot.svg.count("</svg>") == 1


def test_names_of_any_script_and_with_dollars_are_shown_as_they_are(evidence: Evidence) -> None:
    """matplotlib would warn of letters that its font lacks, and set what stands between dollars as a formula."""
    old = [scored(i, 0, subject=("内科", "$5_a$ & $x^2$")[i % 2]) for i in range(8)]
    record = dataclasses.replace(record_of(old), label="模型 $\\frac$")
    one = TaskComparison("demo", record, (record,), (compare(record, record),))
    text = "".join(plot.svg for plot in all_plots(evidence_of(one, None), "t0"))
    for name in ("内科 (4)", "$5 a$ &amp; $x^2$ (4)", "模型 $\\frac$"):
        assert f">{name}</text>" in text


def test_the_front_keeps_what_no_other_beats_in_both() -> None:
    assert pareto([(3, 0.7), (1, 0.5), (2, 0.4), (4, 0.7)]) == [(1, 0.5), (3, 0.7)]


def test_the_front_by_memory_counts_the_gpus_and_leaves_out_what_was_not_measured() -> None:
    base = record_of([scored(i, 0) for i in range(4)])
    on_gpu = dataclasses.replace(base, performance=dataclasses.replace(base.performance, peak_vram_bytes=10**9))
    unknown = dataclasses.replace(base, performance=dataclasses.replace(base.performance, peak_rss_bytes=0))
    assert on_front([on_gpu, base, unknown], memory_bytes) == [False, True, False]
    assert on_front([on_gpu, base, unknown], file_bytes) == [True, True, True]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (1e-6, "1e-6"), (998, "998"), (20000, "20k"), (-0.5, "-0.5"), (3e6, "3e6")],
)
def test_ticks_are_short(value: float, text: str) -> None:
    assert tick_text(value) == text


def test_a_legend_has_as_many_columns_as_fit() -> None:
    assert legend_columns(["BF16", "Q8_0", "Q4_K_M", "Q2_K"]) == 3
    assert legend_columns(["Llama-3.2-1B-Instruct-Q4_K_M"] * 4) == 1
    assert legend_columns([]) == 1


def test_every_colour_of_a_plot_is_one_of_the_style_sheet() -> None:
    style = (ROOT / "bench/reports/style.css").read_text(encoding="utf-8")

    for variable in VARIABLES.values():
        assert f"{variable[4:-1]}:" in style


def test_drawing_keeps_its_font_list_in_our_cache_and_says_nothing(tmp_path: Path) -> None:
    """matplotlib alone would write into the user's home, and warn on stderr where it cannot."""
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.mkdir()
    code = (
        "import json, os, sys; from bench.reports.drawing import draw; before = dict(os.environ);"
        "svg = draw('x', 'title', 100, lambda axes: None);"
        "print(json.dumps([svg[:4], before == dict(os.environ)]))"
    )
    environment = {
        "HOME": str(home),
        "MEDLITE_CACHE": str(cache),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert json.loads(found.stdout) == ["<svg", True]
    assert found.stderr == ""
    assert list(home.iterdir()) == []
    assert [path.name[:8] for path in (cache / "matplotlib").iterdir()] == ["fontlist"]


def test_a_matplotlibrc_of_the_users_own_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    def one() -> str:
        return draw("x", "title", 100, lambda axes: axes.plot([1, 2]) and None)

    plain = one()
    monkeypatch.setitem(matplotlib.rcParams, "lines.linewidth", 20.0)
    assert one() == plain
    assert matplotlib.rcParams["lines.linewidth"] == 20.0
