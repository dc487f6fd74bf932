"""lm-evaluation-harness as judge: the same prompts byte for byte, the same log-likelihoods, the same answers.

Slow, and skipped without lm_eval, torch and real rows: MEDLITE_DATA names a folder with the question files in the
common form (medqa_us_4opt_test.jsonl, medmcqa_dev.jsonl, pubmedqa_labeled.jsonl, mmlu_medical_{test,dev}.jsonl,
truthfulqa_mc.jsonl). Run with: MEDLITE_DATA=... pytest -m slow tests/bench/test_judge.py
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.ask.question import LETTERS, Prompt, Sample
from bench.compare.compare import credits_of
from bench.score.scoring import ScoredSample, score_samples
from bench.tasks import find_task, medmcqa, medqa, mmlu_medical, pubmedqa, truthfulqa
from bench.tasks.fetch import first_of_each_subject
from tests.helpers.tiny_checkpoint import make_llama

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("MEDLITE_DATA" not in os.environ, reason="MEDLITE_DATA names no folder of question files"),
    pytest.mark.filterwarnings("default"),  # of the harness and its dependencies
]
N = 100
TOLERANCE_NATS = 1e-3
Row = dict[str, Any]


def rows_of(name: str) -> list[Row]:
    with (Path(os.environ["MEDLITE_DATA"]) / name).open(encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def options_of(row: Row) -> list[str]:
    return [row["options"][letter] for letter in sorted(row["options"])]


def medqa_row(row: Row) -> Row:
    return {
        "id": row["id"],
        "sent1": row["question"],
        "sent2": "",
        "label": LETTERS.index(row["answer"]),
        **{f"ending{i}": option for i, option in enumerate(options_of(row))},
    }


def medmcqa_row(row: Row) -> Row:
    return {
        "id": row["id"],
        "question": row["question"],
        "cop": LETTERS.index(row["answer"]),
        "subject_name": row["subject"],
        **{f"op{c}": o for c, o in zip("abcd", options_of(row), strict=True)},
    }


def pubmedqa_row(row: Row) -> Row:
    return {
        "id": row["id"],
        "QUESTION": row["question"],
        "CONTEXTS": row["context"],
        "final_decision": row["options"][row["answer"]],
    }


def mmlu_row(row: Row) -> Row:
    return {
        "question": row["question"],
        "subject": row["subject"],
        "choices": options_of(row),
        "answer": LETTERS.index(row["answer"]),
    }


def truthfulqa_row(row: Row) -> Row:
    choices = options_of(row)
    return {
        "question": row["question"],
        "mc1_targets": {"choices": choices, "labels": [1] + [0] * (len(choices) - 1)},
        "mc2_targets": {"choices": row["mc2_choices"], "labels": row["mc2_labels"]},
    }


def hub_rows(repository: str, name: str | None) -> dict[str, list[Row]]:
    """Rows as the hub's datasets have them, by split."""
    if repository == "GBaker/MedQA-USMLE-4-options-hf":
        rows = [medqa_row(row) for row in rows_of("medqa_us_4opt_test.jsonl")]
        return {"train": rows[:10], "validation": rows[:10], "test": rows}
    if repository == "openlifescienceai/medmcqa":
        rows = [medmcqa_row(row) for row in rows_of("medmcqa_dev.jsonl")]
        return {"train": rows[:10], "validation": rows}
    if repository == "bigbio/pubmed_qa":
        rows = [pubmedqa_row(row) for row in rows_of("pubmedqa_labeled.jsonl") if row["split"] == "test"]
        return {"train": rows[:10], "validation": rows[:10], "test": rows}
    if repository == "cais/mmlu":
        test, dev = (
            [mmlu_row(row) for row in rows_of(f"mmlu_medical_{split}.jsonl") if row["subject"] == name]
            for split in ("test", "dev")
        )
        return {"test": test, "dev": dev, "validation": test[:5]}
    if repository == "truthfulqa/truthful_qa":
        return {"validation": [truthfulqa_row(row) for row in rows_of("truthfulqa_mc.jsonl")]}
    raise AssertionError(repository)


# fmt: off
CASES: dict[str, tuple[str, int, Callable[[], list[Sample]]]] = {
    "medqa_4options": ("medqa", 0, lambda: [
        medqa.sample_of_four(row, i)
        for i, row in enumerate(hub_rows("GBaker/MedQA-USMLE-4-options-hf", None)["test"])]),
    "medmcqa": ("medmcqa", 0, lambda: [
        medmcqa.to_sample(row, 0) for row in hub_rows("openlifescienceai/medmcqa", None)["validation"]]),
    "pubmedqa": ("pubmedqa", 0, lambda: [
        pubmedqa.to_sample((row["id"], row), 0) for row in hub_rows("bigbio/pubmed_qa", None)["test"]]),
    "truthfulqa_mc1": ("truthfulqa_mc1", 0, lambda: [
        truthfulqa.to_sample(row, i, targets="mc1_targets")
        for i, row in enumerate(hub_rows("truthfulqa/truthful_qa", None)["validation"])]),
    "truthfulqa_mc2": ("truthfulqa_mc2", 0, lambda: [
        truthfulqa.to_sample(row, i, targets="mc2_targets")
        for i, row in enumerate(hub_rows("truthfulqa/truthful_qa", None)["validation"])]),
}
# fmt: on
for _subject in mmlu_medical.SUBJECTS:
    for _shots in (0, 5):
        CASES[f"mmlu_{_subject}:{_shots}"] = (
            "mmlu_medical",
            _shots,
            lambda subject=_subject: [  # type: ignore[misc]
                mmlu_medical.to_sample(row, i, subject=subject, split="test")
                for i, row in enumerate(hub_rows("cais/mmlu", subject)["test"])
            ],
        )


@pytest.fixture(scope="module")
def harness() -> Iterator[Callable[[str], Any]]:
    """A function that gives the harness's own task object over the local rows."""
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    def load_dataset(path: str, name: str | None = None, **_: object) -> Any:
        return datasets.DatasetDict({s: datasets.Dataset.from_list(r) for s, r in hub_rows(path, name).items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", load_dataset)
        manager = TaskManager()

        def find(name: str) -> Any:
            plain, _, shots = name.partition(":")
            task = manager.load([plain])["tasks"][plain]
            task.set_config("num_fewshot", int(shots or 0))
            task.set_fewshot_seed(1234)
            task.build_all_requests(limit=N, rank=0, world_size=1)
            return task

        yield find


def ours(name: str) -> list[tuple[Sample, Prompt]]:
    """The first N samples of a case with our prompts."""
    task_name, n_shots, make = CASES[name]
    shots = (
        [
            mmlu_medical.to_sample(mmlu_row(row), i, subject=row["subject"], split="dev")
            for i, row in enumerate(rows_of("mmlu_medical_dev.jsonl"))
        ]
        if n_shots
        else []
    )
    shots = first_of_each_subject(shots, n_shots)
    build = find_task(task_name).build_prompt
    return [(s, build(s, [shot for shot in shots if shot.subject == s.subject])) for s in make()[:N]]


@pytest.mark.parametrize("name", CASES)
def test_prompts_equal_the_harness_byte_for_byte(harness: Callable[[str], Any], name: str) -> None:
    theirs: dict[int, list[tuple[str, str]]] = {}
    for instance in harness(name).instances:
        theirs.setdefault(instance.doc_id, []).append(instance.args)
    items = ours(name)
    assert len(theirs) == len(items)
    for i, (_, prompt) in enumerate(items):
        assert [(prompt.context, c) for c in prompt.continuations] == theirs[i]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama whose context holds five shots."""
    return make_llama(tmp_path_factory.mktemp("judge") / "tiny", dtype="F32", max_position_embeddings=16384)


@pytest.fixture(scope="module")
def their_model(checkpoint: Path) -> Any:
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(checkpoint), device="cpu", dtype="float32", batch_size=4)


@pytest.fixture(scope="module")
def our_scores(checkpoint: Path) -> Callable[[str], list[ScoredSample]]:
    pytest.importorskip("torch")
    from medlite.engines.engine import OpenSettings
    from medlite.engines.torch import open_torch_reference

    engine = open_torch_reference(checkpoint, OpenSettings(device="cpu", dtype="float32"))
    return lambda name: list(score_samples(engine, ours(name)))


# fmt: off
LIKELIHOOD_CASES = ["medqa_4options", "medmcqa", "pubmedqa", "truthfulqa_mc1", "truthfulqa_mc2", "mmlu_anatomy:0",
                    "mmlu_medical_genetics:5"]
# fmt: on


@pytest.mark.parametrize("name", LIKELIHOOD_CASES)
def test_log_likelihoods_equal_the_harness(
    harness: Callable[[str], Any], their_model: Any, our_scores: Callable[[str], list[ScoredSample]], name: str
) -> None:
    task = harness(name)
    theirs: dict[int, list[float]] = {}
    for instance, (log_likelihood, _) in zip(
        task.instances, their_model.loglikelihood(task.instances, True), strict=True
    ):
        theirs.setdefault(instance.doc_id, []).append(log_likelihood)
    found = our_scores(name)
    worst = max(
        abs(a - b) for i, s in enumerate(found) for a, b in zip(s.option_log_probabilities, theirs[i], strict=True)
    )
    assert worst < TOLERANCE_NATS
    docs = list(task.eval_docs)[:N]
    metric = [task.process_results(docs[i], [(ll, False) for ll in theirs[i]])["acc"] for i in range(len(found))]
    measure = find_task(CASES[name][0]).measure
    assert credits_of(found, measure).tolist() == pytest.approx([float(value) for value in metric], abs=1e-3)


def test_the_f32_gguf_on_llama_cpp_gives_the_same_answers(
    checkpoint: Path, our_scores: Callable[[str], list[ScoredSample]], tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp")
    from medlite.engines import open_engine
    from medlite.engines.engine import OpenSettings
    from quantize.gguf.plan import plan_gguf
    from quantize.gguf.recipes import find_recipe
    from quantize.match import match_checkpoint
    from quantize.source.checkpoint import open_checkpoint
    from quantize.stream.writer import write

    path = tmp_path / "tiny-F32.gguf"
    write([plan_gguf(match_checkpoint(open_checkpoint(checkpoint)), find_recipe("F32")).output(path)])
    engine = open_engine(path, OpenSettings(device="cpu", n_context=4096))
    for name in ("medqa_4options", "pubmedqa", "mmlu_anatomy:0"):
        reference, found = our_scores(name), list(score_samples(engine, ours(name)))
        worst = max(
            abs(a - b)
            for r, f in zip(reference, found, strict=True)
            for a, b in zip(r.option_log_probabilities, f.option_log_probabilities, strict=True)
        )
        same = sum(r.prediction == f.prediction for r, f in zip(reference, found, strict=True))
        assert worst < 2e-2
        assert same >= 0.99 * len(found)
    engine.close()
