"""Comparisons of hand-made records whose right result is known."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.compare.compare import compare
from bench.compare.verdict import INCONCLUSIVE, INFERIOR, NON_INFERIOR
from bench.score.scoring import score_samples
from medlite.errors import RecordError
from tests.helpers.bench_toys import answers, make_items, record_of, scored
from tests.helpers.toy_engine import ToyEngine

PREDICTIONS = st.lists(st.integers(-1, 3), min_size=4, max_size=12)


def test_flips_by_kind_and_loss_in_points() -> None:
    found = compare(record_of(answers([0, 0, 0, 1, 1, 1, 2, 0])), record_of(answers([0, 1, 0, 0, 2, 1, -1, 0])))
    assert [found.count(k) for k in ("right_to_wrong", "wrong_to_right", "wrong_to_other_wrong")] == [1, 1, 2]
    assert [flip.id for flip in found.flips] == ["q1", "q3", "q4", "q6"]
    assert found.baseline_accuracy.value == found.candidate_accuracy.value == 0.5
    assert found.loss_points.value == 0.0
    assert found.warnings[0] == "candidate BF16: 1 of 8 samples truncated, counted as wrong"


@settings(deadline=None, max_examples=25)
@given(PREDICTIONS, st.randoms(use_true_random=False))
def test_flips_of_b_against_a_mirror_flips_of_a_against_b(first: list[int], random: object) -> None:
    second = [random.choice([-1, 0, 1, 2, 3]) for _ in first]  # type: ignore[attr-defined]
    a, b = record_of(answers(first)), record_of(answers(second))
    there, back = compare(a, b, n_resamples=200), compare(b, a, n_resamples=200)
    assert there.count("right_to_wrong") == back.count("wrong_to_right")
    assert there.count("wrong_to_other_wrong") == back.count("wrong_to_other_wrong")
    assert there.loss_points.value == -back.loss_points.value
    assert there.mcnemar_p == back.mcnemar_p


def test_a_record_against_itself_loses_nothing() -> None:
    record = record_of(list(score_samples(ToyEngine(), make_items(8))))
    found = compare(record, record)
    assert found.flips == ()
    assert (found.loss_points.value, found.mcnemar_p) == (0.0, 1.0)
    assert found.vocabulary_kl is not None
    assert found.vocabulary_kl.greatest == pytest.approx(0.0, abs=1e-12)
    assert found.top_token_agreement is not None
    assert found.top_token_agreement.value == 1.0


def test_more_noise_is_more_divergence() -> None:
    items = make_items(12)
    base = record_of(list(score_samples(ToyEngine(), items)))
    means = []
    for noise in (0.1, 0.5, 2.0):
        found = compare(base, record_of(list(score_samples(ToyEngine(noise=noise), items))))
        assert found.vocabulary_kl is not None
        assert found.option_kl is not None
        means.append((found.vocabulary_kl.mean.value, found.option_kl.mean.value))
    assert means == sorted(means)


def test_identical_questions_count_once() -> None:
    twins = [scored(i, 1 if i < 2 else 0, cluster="twin" if i < 2 else "") for i in range(4)]
    found = compare(record_of(answers([0, 0, 0, 0])), record_of(answers([0, 0, 0, 0])))
    assert found.n_distinct == 4
    old = [scored(i, 0, cluster="twin" if i < 2 else "") for i in range(4)]
    found = compare(record_of(old), record_of(twins))
    assert (found.n_samples, found.n_distinct) == (4, 3)
    assert found.loss_points.value == pytest.approx(100 / 3)


def test_flips_tell_near_ties_from_confident_reversals() -> None:
    old = [scored(0, 0, confidence=0.1), scored(1, 0, confidence=3.0)]
    new = [scored(0, 1), scored(1, 1)]
    found = compare(record_of(old), record_of(new))
    assert [flip.near_tie for flip in found.flips] == [True, False]


def test_subjects_are_reported_apart() -> None:
    old = [scored(i, 0, subject="ab"[i % 2]) for i in range(8)]
    new = [scored(i, i % 2, subject="ab"[i % 2]) for i in range(8)]
    rows = compare(record_of(old), record_of(new)).subjects
    assert [(row.subject, row.n, row.loss_points.value) for row in rows] == [("a", 4, 0.0), ("b", 4, 100.0)]


def simulated(n: int, n_lost: int, n_gained: int) -> tuple[list[int], list[int]]:
    old = [0] * n_lost + [1] * n_gained + [0] * (n - n_lost - n_gained)
    new = [1] * n_lost + [0] * n_gained + [0] * (n - n_lost - n_gained)
    return old, new


@pytest.mark.parametrize(
    ("n", "lost", "gained", "margin", "kind"),
    [
        (4000, 20, 20, 1.0, NON_INFERIOR),
        (4000, 400, 100, 1.0, INFERIOR),
        (200, 4, 2, 1.0, INCONCLUSIVE),
        (5, 0, 0, 1.0, INCONCLUSIVE),  # five questions without a flip prove nothing
        (4000, 0, 0, 1.0, NON_INFERIOR),
        (4000, 60, 20, 2.0, NON_INFERIOR),  # a real loss of one point, within a margin of two
    ],
)
def test_the_verdict_on_a_pair_of_known_loss(n: int, lost: int, gained: int, margin: float, kind: str) -> None:
    old, new = simulated(n, lost, gained)
    assert compare(record_of(answers(old)), record_of(answers(new)), margin_points=margin).verdict.kind == kind


def test_an_inconclusive_verdict_names_the_n_that_decides() -> None:
    old, new = simulated(500, 13, 12)
    verdict = compare(record_of(answers(old)), record_of(answers(new)), margin_points=1.0).verdict
    assert verdict.kind == INCONCLUSIVE
    # ((1.96 + 0.84) * sd / (1 - 0.2))^2 with sd^2 = 5 % - 0.2 %^2
    assert verdict.n_needed == pytest.approx(7.849 * (100**2 * 0.05 - 0.04) / 0.8**2, rel=0.01)


def test_without_a_flip_the_verdict_still_names_the_n_that_decides() -> None:
    """The n is enough: as many questions without a flip are non-inferior; a third of it is not."""
    verdict = compare(record_of(answers([0] * 60)), record_of(answers([0] * 60)), margin_points=1.0).verdict
    assert (verdict.kind, verdict.n_needed > 60) == (INCONCLUSIVE, True)
    for n, kind in ((verdict.n_needed, NON_INFERIOR), (100, INCONCLUSIVE)):
        assert compare(record_of(answers([0] * n)), record_of(answers([0] * n)), margin_points=1.0).verdict.kind == kind


def test_the_margin_comes_from_the_run_unless_given() -> None:
    a, b = record_of(answers([0, 1])), record_of(answers([0, 1]), margin_points=3.0)
    assert compare(a, b).verdict.margin_points == 3.0
    assert compare(a, b, margin_points=0.5).verdict.margin_points == 0.5


TASK = record_of([]).task
DIFFERENCES = {
    "another question": ({"samples": tuple(answers([0, 1])[::-1])}, "id of sample q0 is 'q0' in the baseline, 'q1'"),
    "another prompt": (
        {"samples": tuple(dataclasses.replace(s, prompt_sha256="other") for s in answers([0, 1]))},
        "prompt_sha256 of sample q0",
    ),
    "another key": ({"samples": tuple(dataclasses.replace(s, answer=3) for s in answers([0, 1]))}, "answer of sample"),
    "fewer samples": ({"samples": tuple(answers([0]))}, "number of samples 2 against 1"),
    "unfinished": ({"complete": False}, "candidate BF16: unfinished, 2 of 2 samples"),
    "empty": ({"samples": ()}, "holds no sample"),
    "another protocol": ({"settings": record_of([], protocol="cloze").settings}, "protocol 'letters' against 'cloze'"),
    "other shots": ({"settings": record_of([], n_shots=5).settings}, "shots 0 against 5"),
    "another task": ({"task": dataclasses.replace(TASK, name="medqa")}, "task 'demo' against 'medqa'"),
    "another revision": ({"task": dataclasses.replace(TASK, revision="abc")}, "dataset revision"),
    "another question set": ({"task": dataclasses.replace(TASK, dataset_sha256="00")}, "dataset_sha256"),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_records_that_do_not_match_are_refused_with_the_reason(name: str) -> None:
    changes, message = DIFFERENCES[name]
    record = record_of(answers([0, 1]))
    with pytest.raises(RecordError, match=message):
        compare(record, dataclasses.replace(record, **changes))


@pytest.mark.parametrize(
    ("protocol", "changes", "reason"),
    [
        ("chat", {}, "the chat templates differ, prompt_sha256 of sample q0"),
        ("letters", {}, "compared: prompt_sha256 of sample q0"),
        ("chat", {"task": dataclasses.replace(TASK, dataset_sha256="00")}, "the question sets differ, prompt_sha256"),
        ("letters", {"environment": {"medlite": "9.9"}}, "made by medlite None and 9.9, prompt_sha256"),
    ],
)
def test_other_prompts_are_refused_with_what_changed_them(
    protocol: str, changes: dict[str, object], reason: str
) -> None:
    record = record_of(answers([0]), protocol=protocol)
    task = dataclasses.replace(TASK, n_all=1, n_samples=1)
    other = tuple(dataclasses.replace(s, prompt_sha256="other") for s in record.samples)
    with pytest.raises(RecordError, match=reason):
        compare(
            dataclasses.replace(record, task=task),
            dataclasses.replace(record, **{"task": task, "samples": other, **changes}),
        )  # type: ignore[arg-type]


def test_another_vocabulary_gives_no_kl_and_says_so() -> None:
    items = make_items(2)
    one = list(score_samples(ToyEngine(), items))
    other = [dataclasses.replace(s, distribution=dataclasses.replace(s.distribution, n_vocab=999)) for s in one]
    found = compare(record_of(one), record_of(other))
    assert found.vocabulary_kl is None
    assert any("no KL over the vocabulary" in warning for warning in found.warnings)


def test_true_mass_is_compared_as_a_mean() -> None:
    old = [dataclasses.replace(scored(i, 0), true_options=(0, 1)) for i in range(6)]
    new = [dataclasses.replace(scored(i, 1), true_options=(0, 1)) for i in range(6)]
    found = compare(record_of(old, measure="true_mass"), record_of(new, measure="true_mass"))
    p = np.exp([-1.0, -3.0, -3.0, -3.0])
    assert found.baseline_accuracy.value == pytest.approx(p[:2].sum() / p.sum())
    assert found.flips == ()


def test_a_comparison_is_json() -> None:
    found = compare(record_of(answers([0, 0])), record_of(answers([0, 1])))
    assert json.loads(json.dumps(found.to_json()))["flip_counts"]["right_to_wrong"] == 1
