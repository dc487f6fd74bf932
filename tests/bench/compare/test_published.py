"""Published accuracies: every row of the table, and which of them stand beside a local run."""

import dataclasses
from pathlib import Path

import pytest

from bench.compare.published import (
    ATTAINABLE,
    DATASETS,
    MEAN_OF_NINE,
    NINE,
    PROTOCOLS,
    local_accuracy,
    model_of,
    published_beside,
    read_scores,
)
from bench.compare.runs import compare_runs
from bench.run.record import RunRecord
from bench.tasks import TASKS
from medlite.errors import TaskError
from medlite.models.catalog import read_catalog
from tests.helpers.bench_toys import record_of, scored

SCORES = read_scores()
REPOSITORY = "meta-llama/Meta-Llama-3-8B"


def test_every_row_has_a_source_a_known_model_and_a_value_of_its_kind() -> None:
    assert len(SCORES) == 573
    for score in SCORES:
        assert score.source
        assert score.protocol
        assert score.system
        assert not score.model or score.model in read_catalog()
        assert score.value >= 0
        assert "memory" not in score.source


def test_no_two_rows_say_the_same() -> None:
    assert len(set(SCORES)) == len(SCORES)


def gives(value: float, n: int) -> bool:
    """Whether k of n questions, as a percentage, rounds to `value` at its own number of decimals."""
    _, _, decimals = repr(value).partition(".")
    return any(abs(100 * k / n - value) <= 0.5 * 10.0 ** -len(decimals) + 1e-9 for k in range(n + 1))


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_flag_agrees_with_counting(dataset: str) -> None:
    """An independent check of the column: is there a k such that k of n gives the value?"""
    n = DATASETS[dataset][2]
    for score in SCORES:
        if score.dataset == dataset and score.attainable != "na":
            assert gives(score.value, n) == (score.attainable == "yes"), score
            assert score.attainable != "n-1" or gives(score.value, n - 1), score


def test_the_sets_have_the_sizes_of_the_task_table() -> None:
    for task in {task for task, _, _ in DATASETS.values()}:
        assert TASKS[task].n_samples == sum(n for name, _, n in DATASETS.values() if name == task)


def test_every_protocol_that_counts_as_ours_occurs() -> None:
    assert set(PROTOCOLS) <= {score.protocol for score in SCORES}
    assert set(PROTOCOLS.values()) == {"letters"}


def run_of(
    task: str, *, n_right: int = 600, source: str = REPOSITORY, recipe: str = "BF16", **settings: object
) -> RunRecord:
    """A record of a whole published set with n_right right answers."""
    names = [(subject, n) for name, subject, n in DATASETS.values() if name == task]
    samples = [
        scored(i, int(i >= n_right), subject=subject, cluster=f"{subject}{i}") for subject, n in names for i in range(n)
    ]
    record = record_of(samples, recipe=recipe, **settings)
    return dataclasses.replace(
        record,
        task=dataclasses.replace(record.task, name=task),
        artifact=dataclasses.replace(record.artifact, source=source),
    )


def test_the_same_model_questions_and_protocol_stand_side_by_side() -> None:
    base, low = run_of("medqa", n_right=764), run_of("medqa", n_right=700, recipe="Q4_K_M")
    (found,) = published_beside(compare_runs({"medqa": base}, [{"medqa": low}]))
    assert (found.model, found.matched_by, found.names) == ("llama3-8b", REPOSITORY, ("BF16", "Q4_K_M"))
    assert [row.score.value for row in found.rows] == [60.02, 59.78, 59.8]  # three dated runs of one leaderboard
    local = found.rows[0].local
    assert local[0] is not None
    assert local[1] is not None
    assert (round(local[0].value, 2), round(local[1].value, 2)) == (60.02, 54.99)
    assert local[0].low < 60.02 < local[0].high


@pytest.mark.parametrize(
    "other",
    [
        run_of("medqa", protocol="cloze"),
        run_of("medqa", n_shots=5),
        run_of("medqa", protocol="chat"),
        dataclasses.replace(run_of("medqa"), task=dataclasses.replace(run_of("medqa").task, n_all=1000)),
    ],
)
def test_another_protocol_other_shots_and_another_set_are_counted_and_not_shown(other: RunRecord) -> None:
    (found,) = published_beside(compare_runs({"medqa": other}, [{"medqa": other}]))
    assert found.rows == ()
    assert found.n_other == sum(s.model == "llama3-8b" and s.dataset == "medqa4" for s in SCORES)
    assert sum(n for _, n in found.other_protocols) == found.n_other


def test_a_model_that_nobody_published_has_no_table() -> None:
    unknown = run_of("medqa", source="someone/their-model")
    assert published_beside(compare_runs({"medqa": unknown}, [{"medqa": unknown}])) == []


def test_a_value_typed_into_a_leaderboard_is_shown_with_what_counting_says() -> None:
    typed = run_of("mmlu_medical", source="aaditya/Llama3-OpenBioLLM-70B")
    (found,) = published_beside(compare_runs({"mmlu_medical": typed}, [{"mmlu_medical": typed}]))
    flags = {row.score.dataset: row.score.attainable for row in found.rows}
    assert flags["mmlu_anatomy"] == "no"
    assert flags["mmlu_professional_medicine"] == "yes"
    assert set(flags.values()) <= set(ATTAINABLE)


def test_the_mean_of_nine_needs_all_nine_and_weighs_them_alike() -> None:
    (score,) = [s for s in SCORES if s.dataset == MEAN_OF_NINE and s.model == "llama3-70b-instruct"]
    tasks = dict.fromkeys(task for task, _, _ in (DATASETS[name] for name in NINE))
    runs = {task: run_of(task, n_right=50) for task in tasks}
    found = local_accuracy(runs, score)
    assert found is not None
    assert found.value == pytest.approx(sum(5000 / DATASETS[name][2] for name in NINE) / 9)
    del runs["pubmedqa"]
    assert local_accuracy(runs, score) is None


def test_the_receipt_names_the_model_before_the_header_does() -> None:
    record = run_of("medqa")
    assert model_of(record) == ("llama3-8b", REPOSITORY)
    header = dataclasses.replace(record.artifact, source="", model_name="Meta Llama 3 8B")
    assert model_of(dataclasses.replace(record, artifact=header)) == ("llama3-8b", "Meta Llama 3 8B")
    nothing = dataclasses.replace(record.artifact, source="", model_name="")
    assert model_of(dataclasses.replace(record, artifact=nothing)) == ("", "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"system": "x"}', "line 1"),
        ("{", "line 1"),
        (
            '{"system":"x","model":"","dataset":"medqa4","value":1.0,"precision":"","shots":0,"protocol":"p","source":"s",'
            '"evidence":"R","single_run":true,"attainable":"perhaps"}',
            "attainable 'perhaps'",
        ),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(TaskError, match=message):
        read_scores(path)
