"""The task table, and each published set's row format, on rows made up here: the sets themselves are not shipped."""

import hashlib
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest

from bench.ask.question import HubFile, Prompt, Sample, Task, samples_sha256
from bench.tasks import GROUPS, TASKS, fetch, find_task, medmcqa, medqa, mmlu_medical, pubmedqa, task_names, truthfulqa
from medlite.errors import TaskError


@pytest.mark.parametrize("name", TASKS)
def test_a_row_of_the_table_says_where_its_data_is_from(name: str) -> None:
    task = TASKS[name]
    assert task.name == name
    assert task.title
    assert task.licence
    assert task.source
    for file in (*task.files, *task.shots_files):
        assert re.fullmatch("[0-9a-f]{40}", file.revision), "a revision must be a commit, or the data may change"
        assert task.n_samples > 0


@pytest.mark.parametrize("name", TASKS)
def test_every_task_builds_a_prompt_with_a_continuation_an_option(name: str) -> None:
    sample = Sample("x", "Which?", ("yes", "no", "maybe"), 0, context="C", subject="anatomy", true_options=(0, 1))
    prompt = TASKS[name].build_prompt(sample, [])
    assert isinstance(prompt, Prompt)
    assert len(prompt.continuations) == 3
    assert not prompt.context.endswith(" ")
    assert all(continuation.startswith(" ") for continuation in prompt.continuations)


def test_names_and_groups() -> None:
    assert task_names(["truthfulqa", "demo", "truthfulqa_mc1"]) == ["truthfulqa_mc1", "truthfulqa_mc2", "demo"]
    assert all(find_task(name) for names in GROUPS.values() for name in names)
    with pytest.raises(TaskError, match="medqua: no such task"):
        task_names(["medqua"])


# fmt: off
FOUR = {"id": "0", "sent1": "Q?", "sent2": "", "ending0": "a", "ending1": "b", "ending2": "c", "ending3": "d",
        "label": 2}
# fmt: on


def test_medqa_rows(tmp_path: Path) -> None:
    path = tmp_path / "test.json"
    path.write_text(json.dumps(FOUR) + "\n")
    assert medqa.read_four([path]) == [Sample("test-00000", "Q?", ("a", "b", "c", "d"), 2)]


def test_medqa_five_rows_come_from_inside_the_archive(tmp_path: Path) -> None:
    row = {
        "question": "Q?",
        "answer": "e",
        "options": {"A": "a", "B": "b", "C": "c", "D": "d", "E": "e"},
        "meta_info": "step1",
        "answer_idx": "E",
    }
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("data_clean/questions/US/test.jsonl", json.dumps(row) + "\n")
        archive.writestr("data_clean/questions/US/4_options/phrases_no_exclude_test.jsonl", "{}")
        archive.writestr("__MACOSX/data_clean/questions/US/test.jsonl", "x")
    (sample,) = medqa.read_five([tmp_path / "data.zip"])
    assert (sample.options, sample.answer, sample.subject) == (("a", "b", "c", "d", "e"), 4, "step1")


def test_pubmedqa_rows(tmp_path: Path) -> None:
    entry = {"QUESTION": "Is it?", "CONTEXTS": ["One.", "Two."], "final_decision": "maybe"}
    with zipfile.ZipFile(tmp_path / "pqal.zip", "w") as archive:
        archive.writestr("pqal_test_set.json", json.dumps({"123": entry}))
    (sample,) = pubmedqa.read([tmp_path / "pqal.zip"])
    assert sample == Sample("123", "Is it?", ("yes", "no", "maybe"), 2, context="One.\nTwo.")


def write_parquet(path: Path, *rows: dict[str, object]) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra [data]")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def test_medmcqa_rows_keep_equal_options(tmp_path: Path) -> None:
    row = {"id": "u", "question": "Q?", "opa": "a", "opb": "a", "opc": "c", "opd": "d", "cop": 2, "subject_name": "S"}
    (sample,) = medmcqa.read([write_parquet(tmp_path / "v.parquet", row)])
    assert sample == Sample("u", "Q?", ("a", "a", "c", "d"), 2, subject="S")


def test_mmlu_rows_know_their_subject(tmp_path: Path) -> None:
    row = {"question": "Q?", "subject": "x", "choices": ["a", "b", "c", "d"], "answer": 3}
    paths = [write_parquet(tmp_path / f"{subject}.parquet", row) for subject in mmlu_medical.SUBJECTS]
    samples = mmlu_medical.read(paths)
    assert [s.subject for s in samples] == list(mmlu_medical.SUBJECTS)
    assert samples[0].id == "anatomy-test-000"
    assert len({s.cluster for s in samples}) == 1


def test_truthfulqa_rows(tmp_path: Path) -> None:
    row = {
        "question": "Q?",
        "mc1_targets": {"choices": ["t", "f"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["t", "u", "f"], "labels": [1, 1, 0]},
    }
    path = write_parquet(tmp_path / "v.parquet", row)
    (one,) = truthfulqa.MC1.read([path])
    (two,) = truthfulqa.MC2.read([path])
    assert (one.options, one.answer, one.true_options) == (("t", "f"), 0, ())
    assert (two.options, two.true_options) == (("t", "u", "f"), (0, 1))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({**FOUR, "label": 7}, "answer 7 of 4 options"),
        ({**FOUR, "label": None}, "line 1: not a MedQA row"),
        ({**FOUR, "ending1": "a"}, "options A and B are the same text"),
        ({**FOUR, "ending3": " "}, "D is empty"),
        ({"question": "another set"}, "line 1: not a MedQA row: KeyError"),
    ],
)
def test_a_published_row_that_cannot_be_scored_is_named(tmp_path: Path, rows: object, message: str) -> None:
    path = tmp_path / "test.json"
    path.write_text(json.dumps(rows) + "\n")
    with pytest.raises(TaskError, match=message):
        medqa.read_four([path])


@pytest.mark.parametrize(
    "make",
    [lambda path: path.write_text("no archive"), lambda path: zipfile.ZipFile(path, "w").writestr("other.json", "{}")],
)
def test_a_damaged_archive_is_named(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "pqal.zip")
    with pytest.raises(TaskError, match=r"pqal\.zip: (no zip file|0 members)"):
        pubmedqa.read([tmp_path / "pqal.zip"])


FILE = HubFile("org/questions", "test.json", "ab" * 20)
# fmt: off
PINNED = Task(name="pinned", title="t", n_samples=1, licence="x", source="org/questions", files=(FILE,),
              read=medqa.read_four, build_prompt=medqa.MEDQA.build_prompt)
# fmt: on


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDLITE_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "datasets"


def put(cache: Path, text: str) -> None:
    """The file, where the hub's client caches that revision."""
    path = cache / "datasets--org--questions" / "snapshots" / FILE.revision / FILE.path
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_without_network_and_cache_the_error_says_what_to_do(cache: Path) -> None:
    assert not fetch.is_local(PINNED)
    with pytest.raises(TaskError, match=r"pinned: org/questions/test.json is not in the cache, and") as caught:
        fetch.load(PINNED)
    assert "--data" in str(caught.value.hint)


def test_what_was_fetched_once_is_read_offline(cache: Path) -> None:
    put(cache, json.dumps(FOUR) + "\n")
    assert fetch.is_local(PINNED)
    samples, shots = fetch.load(PINNED)
    assert (len(samples), shots) == (1, [])


def test_a_file_that_is_not_the_pinned_one_is_refused(cache: Path) -> None:
    import dataclasses

    put(cache, json.dumps(FOUR) + "\n")
    pinned = dataclasses.replace(PINNED, files=(dataclasses.replace(FILE, sha256="00" * 32),))
    with pytest.raises(TaskError, match="0000 was needed"):
        fetch.load(pinned)


def test_a_file_without_a_known_hash_is_held_to_that_of_its_first_fetch(cache: Path) -> None:
    put(cache, json.dumps(FOUR) + "\n")
    assert fetch.known_sha256(FILE) is None
    fetch.load(PINNED)
    assert fetch.known_sha256(FILE) == hashlib.sha256(json.dumps(FOUR).encode() + b"\n").hexdigest()
    (cache / "datasets--org--questions" / "snapshots" / FILE.revision / FILE.path).write_text(json.dumps(FOUR) + "\n\n")
    with pytest.raises(TaskError, match="was needed"):
        fetch.load(PINNED)


@pytest.mark.parametrize("kind", ["sha256", "git"])
def test_a_file_must_be_what_the_pinned_commit_calls_it(cache: Path, kind: str) -> None:
    """The hub's client stores content under its etag and links to it."""
    raw = json.dumps(FOUR).encode() + b"\n"
    of_git = hashlib.sha1(b"blob %d\0" % len(raw) + raw)
    name = hashlib.sha256(raw).hexdigest() if kind == "sha256" else of_git.hexdigest()
    blob = cache / "datasets--org--questions" / "blobs" / name
    link = cache / "datasets--org--questions" / "snapshots" / FILE.revision / FILE.path
    for path in (blob, link):
        path.parent.mkdir(parents=True)
    blob.write_bytes(raw)
    link.symlink_to(blob)
    assert len(fetch.load(PINNED)[0]) == 1
    fetch.HASHES.path.unlink()
    blob.write_bytes(raw.replace(b"A", b"B", 1) + b" ")
    with pytest.raises(TaskError, match="is not the file of commit abababababab: sha256"):
        fetch.load(PINNED)


def test_shots_are_refused_where_there_are_none(cache: Path) -> None:
    with pytest.raises(TaskError, match="has no few-shot examples"):
        fetch.load(PINNED, n_shots=5)


def test_the_first_shots_of_each_subject_are_taken() -> None:
    samples = [Sample(str(i), "q", ("a", "b"), 0, subject="xy"[i % 2]) for i in range(8)]
    assert [s.id for s in fetch.first_of_each_subject(samples, 2)] == ["0", "1", "2", "3"]


def test_the_digest_of_a_set_sees_every_field_and_the_order() -> None:
    one, two = Sample("1", "q", ("a", "b"), 0), Sample("2", "q", ("a", "b"), 0)
    sets = [
        [one, two],
        [two, one],
        [one],
        [one, Sample("2", "q", ("a", "b"), 1)],
        [one, Sample("2", "q", ("a", "b"), 0, context="c")],
    ]
    assert len({samples_sha256(samples) for samples in sets}) == len(sets)
