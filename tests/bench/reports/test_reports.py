"""Reports: the same content in each form, nothing fetched, nothing executed, text escaped."""

import dataclasses
import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from bench.compare.calibration import calibrate, coverage_at_risk, expected_calibration_error, risk_by_coverage
from bench.compare.compare import compare
from bench.compare.floor import differences, noise_floor, noise_floors, within_floor
from bench.compare.runs import POOLED, compare_runs, pool, read_runs
from bench.compare.safety import RULES, count_topics, marked_flips, matched_terms
from bench.reports.content import Report
from bench.reports.forms import REPORTS, render, report_form
from bench.reports.to_json import summary_json
from bench.reports.verdicts import answer_line
from bench.run.record import RunRecord
from bench.score.scoring import score_samples
from medlite.errors import OutputError, RecordError
from tests.helpers.bench_toys import answers, make_items, record_of, scored
from tests.helpers.places import GOLDEN
from tests.helpers.toy_engine import ToyEngine

GOLDEN = GOLDEN / "bench_report.md"


def toy_run(noise: float, recipe: str, n: int = 24) -> RunRecord:
    record = record_of(list(score_samples(ToyEngine(noise=noise), make_items(n))), recipe=recipe)
    size = int(1e9 / (1 + noise))
    return dataclasses.replace(record, artifact=dataclasses.replace(record.artifact, n_bytes=size))


@pytest.fixture(scope="module")
def report() -> Report:
    base = {"demo": toy_run(0.0, "BF16")}
    found = compare_runs(base, [{"demo": toy_run(0.3, "Q4_K_M")}, {"demo": toy_run(1.5, "Q2_K")}])
    return Report(found, noise_floors(base, [{"demo": toy_run(0.02, "BF16")}]))


def test_markdown_equals_the_golden_file(report: Report) -> None:
    """To renew after an intended change: write `render(report, "md")` there and read the difference."""
    assert render(report, "md") == GOLDEN.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags, what they point to, and their ids."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open = self.open[:-1] if tag not in self.VOID else self.open

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "action") or name.startswith("on")
        ]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_html_is_well_formed_and_self_contained(report: Report) -> None:
    page = Page()
    page.feed(render(report, "html"))
    assert page.open == []
    assert {link[:1] for link in page.links} == {"#"}  # within the page only
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    assert "script" not in page.tags
    assert "http" not in render(report, "html")
    assert {"svg", "table", "details"} <= page.tags


def test_text_from_question_files_is_escaped() -> None:
    nasty = "<script>alert('x')</script> & \"q\""
    old = dataclasses.replace(scored(0, 0), question=nasty, options=(nasty,) * 4, subject=nasty)
    new = dataclasses.replace(scored(0, 1), question=nasty, options=(nasty,) * 4, subject=nasty)
    other = dataclasses.replace(scored(1, 0), subject="plain")
    found = compare_runs({"demo": record_of([old, other])}, [{"demo": record_of([new, other], recipe="Q4<b>")}])
    text = render(Report(found), "html")
    assert "<script" not in text
    assert "Q4<b>" not in text
    assert "&lt;script&gt;" in text


def test_json_holds_the_unrounded_numbers(report: Report) -> None:
    value = json.loads(render(report, "json"))
    comparison = report.tasks[0].comparisons[1]
    found = value["tasks"][0]["candidates"][1]["comparison"]
    assert found["loss_points"]["value"] == comparison.loss_points.value
    assert found["vocabulary_kl"]["mean"]["value"] == comparison.vocabulary_kl.mean.value  # type: ignore[union-attr]
    assert value["tasks"][0]["noise_floor"]["n_reruns"] == 1


@pytest.mark.parametrize("form", REPORTS)
def test_every_form_names_every_artifact(report: Report, form: str) -> None:
    text = render(report, form)
    assert all(name in text for name in ("BF16", "Q4_K_M", "Q2_K"))
    assert report_form(Path(f"r.{form}")) == form


def test_an_unknown_ending_is_refused() -> None:
    with pytest.raises(OutputError, match=r"no report has the ending '.docx'"):
        report_form(Path("r.docx"))


def test_a_report_without_distributions_or_questions_still_renders() -> None:
    bare = record_of([scored(i, i % 2) for i in range(4)])
    for form in REPORTS:
        assert render(Report(compare_runs({"demo": bare}, [{"demo": bare}])), form)


def test_pooling_counts_a_question_of_two_sets_once() -> None:
    one = record_of([scored(0, 0, cluster="both"), scored(1, 1)])
    two = record_of([scored(0, 0, cluster="both"), scored(2, 0)])
    two = dataclasses.replace(two, task=dataclasses.replace(two.task, name="other"))
    pooled = pool({"demo": one, "other": two})
    assert [s.subject for s in pooled.samples] == ["demo", "demo", "other", "other"]
    found = compare_runs({"demo": one, "other": two}, [{"demo": one, "other": two}])
    assert [c.task for c in found] == ["demo", "other", POOLED]
    assert (found[-1].comparisons[0].n_samples, found[-1].comparisons[0].n_distinct) == (4, 3)


def test_runs_of_other_tasks_are_refused() -> None:
    record = record_of([scored(0, 0)])
    with pytest.raises(RecordError, match="the baseline has tasks demo, a candidate medqa"):
        compare_runs({"demo": record}, [{"medqa": record}])


def test_artifacts_of_one_recipe_are_told_apart_by_their_files() -> None:
    one = record_of([scored(0, 0)])
    other = dataclasses.replace(one, artifact=dataclasses.replace(one.artifact, file_name="med42-BF16.gguf"))
    found = compare_runs({"demo": one}, [{"demo": other}, {"demo": other}])
    assert [c.candidate for c in found[0].comparisons] == ["med42-BF16", "med42-BF16 (2)"]
    assert found[0].comparisons[0].baseline == "toy-BF16"


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="holds no run record"):
        read_runs(tmp_path)


def test_the_noise_floor_is_the_greatest_loss_of_the_baseline_against_itself() -> None:
    base = record_of([scored(i, 0) for i in range(10)])
    rerun = record_of([scored(i, int(i == 0)) for i in range(10)], n_group=64)
    floor = noise_floor(base, [base, rerun])
    assert floor is not None
    assert (floor.loss_points, floor.n_flips, floor.differs_in) == (10.0, 1, ("group 128 -> 64",))
    moved = dataclasses.replace(base, engine={**base.engine, "device": "cuda", "n_threads": 8})
    assert differences(base, moved) == ["device cpu -> cuda", "threads None -> 8"]
    worse = record_of([scored(i, int(i < 2)) for i in range(10)])
    assert within_floor(compare(base, rerun), floor)
    assert not within_floor(compare(base, worse), floor)
    assert noise_floor(base, []) is None


def test_a_perfectly_calibrated_coin_has_no_calibration_error() -> None:
    confidence, correct = np.full(1000, 0.5), np.array([1.0, 0.0] * 500)
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.0)
    assert expected_calibration_error(np.full(1000, 0.9), correct) == pytest.approx(0.4)


def test_calibration_of_a_sure_and_right_model_is_near_zero() -> None:
    found = calibrate([scored(i, 0, confidence=20.0) for i in range(40)])
    assert found is not None
    assert max(found.ece.value, found.brier.value, found.nll_nats.value, found.aurc) < 1e-6
    assert calibrate([scored(0, -1, status="truncated")]) is None


def test_risk_falls_when_the_unsure_answers_are_held_back() -> None:
    risks = risk_by_coverage(np.array([0.9, 0.4, 0.8, 0.3]), np.array([1.0, 0.0, 1.0, 0.0]))
    assert risks.tolist() == pytest.approx([0.0, 0.0, 1 / 3, 0.5])
    assert coverage_at_risk(risks, 0.34) == 0.75
    assert coverage_at_risk(np.array([1.0, 1.0]), 0.1) == 0.0


# fmt: off
TERMS = {
    "dose": "The loading dose is 5 mg/kg", "drug": "She takes metoprolol", "contraindication": "is contraindicated",
    "pregnancy": "in the third trimester", "child": "A 3-month-old", "emergency": "in septic shock",
}
# fmt: on


@pytest.mark.parametrize("topic", RULES)
def test_each_topic_is_found_by_its_words(topic: str) -> None:
    assert topic in matched_terms(TERMS[topic])
    assert matched_terms("The nerve leaves the skull through a hole.") == {}


def test_changed_answers_come_worst_first_with_the_words_that_mark_them() -> None:
    question = "Which dose of digoxin in pregnancy?"
    old = [
        dataclasses.replace(scored(i, int(i == 2), confidence=1.0 + i), question=question, options=("a",) * 4)
        for i in range(3)
    ]
    new = [scored(0, 1), scored(1, 1), scored(2, 0)]
    found = compare(record_of(old), record_of(new))
    marked = marked_flips(old, found)
    assert [m.flip.id for m in marked] == ["q1", "q0", "q2"]
    assert marked[0].topics == {"dose": ("dose",), "pregnancy": ("pregnancy",)}
    counts = {row.topic: row for row in count_topics(old, found)}
    assert (counts["dose"].n, counts["dose"].right_to_wrong, counts["dose"].wrong_to_right) == (3, 2, 1)


def test_the_answer_names_the_smallest_artifact_that_may_stand_in() -> None:
    base = record_of([scored(i, 0) for i in range(4000)])

    def low(recipe: str, n_bytes: int, n_wrong: int) -> dict[str, RunRecord]:
        record = record_of([scored(i, int(i < n_wrong)) for i in range(4000)], recipe=recipe)
        return {"demo": dataclasses.replace(record, artifact=dataclasses.replace(record.artifact, n_bytes=n_bytes))}

    fine, small, broken = low("Q8_0", 1024, 0), low("Q4_K_M", 512, 4), low("Q2_K", 256, 400)
    (one,) = compare_runs({"demo": base}, [fine, small, broken])
    assert answer_line(one) == (
        "Smallest artifact that is non-inferior at a margin of 1 point: Q4_K_M, 512 B, 25 % of BF16."
    )
    served = dataclasses.replace(base, artifact=dataclasses.replace(base.artifact, n_bytes=0))
    (one,) = compare_runs({"demo": served}, [small])
    assert answer_line(one).endswith("non-inferior at a margin of 1 point: Q4_K_M, 512 B.")
    (one,) = compare_runs({"demo": base}, [broken])
    assert "No artifact is shown to be non-inferior" in answer_line(one)


@pytest.mark.parametrize("form", ["md", "html"])
def test_several_tasks_begin_with_all_verdicts(form: str) -> None:
    runs = [
        {
            name: dataclasses.replace(record, task=dataclasses.replace(record.task, name=name))
            for name in ("demo", "other")
        }
        for record in (toy_run(0.0, "BF16", 6), toy_run(0.3, "Q4_K_M", 6))
    ]
    text = render(Report(compare_runs(runs[0], runs[1:])), form)
    assert text.index("All tasks") < text.index("demo: 6 questions") < text.index("pooled: 12 questions")


def test_models_are_told_apart_by_their_files_even_at_different_recipes() -> None:
    large, small = record_of([scored(0, 0)]), record_of([scored(0, 0)], recipe="Q8_0")
    other = dataclasses.replace(small.artifact, n_params=10, file_name="s-Q8_0.gguf")
    small = dataclasses.replace(small, artifact=other)
    (one,) = compare_runs({"demo": large}, [{"demo": small}])
    assert (one.comparisons[0].baseline, one.comparisons[0].candidate) == ("toy-BF16", "s-Q8_0")


def test_what_was_not_measured_is_a_dash_and_its_reason_a_line_of_the_methods() -> None:
    record = record_of([scored(0, 0)])
    note = "energy of the processor was not measured: no counter"
    silent = dataclasses.replace(record, performance=dataclasses.replace(record.performance, notes=(note,)))
    told = dataclasses.replace(
        silent,
        performance=dataclasses.replace(
            silent.performance, peak_vram_bytes=3_000_000_000, cpu_joules=6.0, gpu_joules=9.5
        ),
    )
    text = render(Report(compare_runs({"demo": silent}, [{"demo": told}])), "md")
    assert f"- All runs: {note}." in text
    (memory,) = [line for line in text.splitlines() if line.startswith("| toy-BF16 | toy, cpu |") and "| – |" in line]
    assert "0 B" not in memory.split("|")[-2]
    assert "3 GB" in text
    assert "| 6 | 9.5 |" in text


def test_published_scores_stand_after_the_tasks_in_every_form() -> None:
    samples = [scored(i, int(i > 700)) for i in range(1273)]
    record = record_of(samples)
    artifact = dataclasses.replace(record.artifact, source="meta-llama/Meta-Llama-3-8B")
    record = dataclasses.replace(record, task=dataclasses.replace(record.task, name="medqa"), artifact=artifact)
    report = Report(compare_runs({"medqa": record}, [{"medqa": record}]))
    for form in ("md", "html"):
        text = render(report, form)
        assert "Published scores, llama3-8b" in text
        assert "60.02" in text
    assert json.loads(render(report, "json"))["published"][0]["rows"][0]["score"]["value"] == 60.02


def test_a_summary_has_a_row_each_and_is_json() -> None:
    base, other = record_of(answers([0, 0, 1])), record_of(answers([0, 1, 1]), recipe="Q4_K_M")
    rows = summary_json(compare_runs({"demo": base}, [{"demo": other}])[0])
    assert [row["name"] for row in rows] == ["BF16", "Q4_K_M"]
    assert rows[0]["loss_points"] is None
    assert (rows[1]["right_to_wrong"], rows[1]["wrong_to_right"]) == (1, 0)
    assert json.loads(json.dumps(rows))[1]["loss_points"]["value"] == pytest.approx(100 / 3)
