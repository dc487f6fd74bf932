"""Run records: what is written is read back, and damage is named."""

import json
from pathlib import Path

import pytest

from bench.run.record import SCHEMA, Performance, RecordWriter, RunRecord, header_line, read_record
from bench.score.scoring import ScoredSample, score_samples
from medlite.errors import OutputError, RecordError
from medlite.files import part_path
from tests.helpers.bench_toys import answers, make_items, record_of
from tests.helpers.places import GOLDEN
from tests.helpers.toy_engine import ToyEngine


def write(path: Path, record: RunRecord) -> Path:
    with RecordWriter(path, record) as writer:
        for sample in record.samples:
            writer.add(sample)
        writer.finish(record.performance, record.samples)
    return path


def same(one: ScoredSample, two: ScoredSample) -> bool:
    """Equal in every field, arrays included."""
    from bench.run.record import sample_line

    return sample_line(one) == sample_line(two)


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    record = record_of(answers([0, 1, -1, 2]))
    assert read_record(write(tmp_path / "run.jsonl", record)) == record


def test_a_record_of_the_first_version_is_read_and_written_byte_for_byte(tmp_path: Path) -> None:
    """bench_record.jsonl was written by 8c2a6c1, before settings had parts and lines were decoded by type."""
    golden = GOLDEN / "bench_record.jsonl"
    record = read_record(golden)
    assert record.complete
    assert (record.settings.prompting.n_shots, record.settings.runtime.device) == (5, "cuda")
    assert (record.settings.server.model, record.settings.margin_points) == ("toy-70b", 2.5)
    assert write(tmp_path / "run.jsonl", record).read_bytes() == golden.read_bytes()


def test_distributions_survive_the_file(tmp_path: Path) -> None:
    samples = list(score_samples(ToyEngine(), make_items(2)))
    found = read_record(write(tmp_path / "run.jsonl", record_of(samples))).samples
    assert all(same(a, b) for a, b in zip(samples, found, strict=True))


def test_a_stopped_run_leaves_a_part_and_no_record(tmp_path: Path) -> None:
    record = record_of(answers([0, 1]))

    def stopped() -> None:
        with RecordWriter(tmp_path / "run.jsonl", record) as writer:
            writer.add(record.samples[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not (tmp_path / "run.jsonl").exists()
    with pytest.raises(RecordError, match="no such run record"):
        read_record(tmp_path / "run.jsonl")
    assert read_record(tmp_path / "run.jsonl.part").samples == record.samples[:1]


def test_a_record_cut_at_any_byte_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    record = record_of(answers([0, 1, 2]))
    whole = write(tmp_path / "run.jsonl", record).read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(ends[0], len(whole)):
        (tmp_path / "cut.jsonl").write_bytes(whole[:cut])
        found = read_record(tmp_path / "cut.jsonl")
        assert not found.complete
        assert found.samples == record.samples[: sum(end <= cut for end in ends) - 1]


def test_a_resumed_record_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    record = record_of(answers([0, 1, 2, 3]), n_group=2)
    whole = write(tmp_path / "whole.jsonl", record).read_bytes()
    path = tmp_path / "run.jsonl"
    part_path(path).write_bytes(whole[: whole.index(b'"q3"') + 30])  # the fourth sample's line is cut
    with RecordWriter(path, record, resume=True) as writer:
        assert writer.done == record.samples[:2]  # the third was not the last of its group
        for sample in record.samples[len(writer.done) :]:
            writer.add(sample)
        writer.finish(record.performance, record.samples)
    assert path.read_bytes() == whole


def test_a_run_killed_between_its_end_line_and_its_name_is_resumed(tmp_path: Path) -> None:
    record = record_of(answers([0, 1]))
    whole = write(tmp_path / "whole.jsonl", record).read_bytes()
    path = tmp_path / "run.jsonl"
    part_path(path).write_bytes(whole)
    with RecordWriter(path, record, resume=True) as writer:
        assert writer.done == record.samples
        writer.finish(record.performance, record.samples)
    assert path.read_bytes() == whole


def test_a_part_of_another_run_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    part_path(path).write_text(header_line(record_of(answers([0]))) + "\n")
    with pytest.raises(RecordError, match="begun with another settings"):
        RecordWriter(path, record_of(answers([0]), n_shots=5), resume=True)


def test_a_finished_record_is_not_replaced_unasked(tmp_path: Path) -> None:
    record = record_of(answers([0]))
    path = write(tmp_path / "run.jsonl", record)
    with pytest.raises(OutputError, match="exists already"):
        RecordWriter(path, record)


def _edit(line: int, **changes: object) -> object:
    def edit(lines: list[str]) -> list[str]:
        lines[line] = json.dumps({**json.loads(lines[line]), **changes})
        return lines

    return edit


DAMAGE = {
    "unknown schema": (_edit(0, schema="medlite.run/9"), f"schema 'medlite.run/9', this version reads '{SCHEMA}'"),
    "no header": (lambda lines: lines[1:], "the first line is no header"),
    "a header without an artifact": (_edit(0, artifact=None), "malformed header"),
    "a setting of another version": (_edit(0, settings={"wings": 2}), "malformed header.*wings"),
    "a sample without an answer": (_edit(2, answer=None), "line 3: malformed sample"),
    "a sample of another kind": (_edit(2, kind="note"), "line 3: malformed sample: kind 'note'"),
    "a line that is no json": (lambda lines: [lines[0], "{", *lines[1:]], "line 2: not JSON"),
    "a line that is no object": (lambda lines: [lines[0], "[]", *lines[1:]], "line 2: expected object, found array"),
    "a line that is gone": (lambda lines: [lines[0], *lines[2:]], "totals say 1 of 2 right, the lines say 0 of 1"),
    "an end without totals": (_edit(3, totals={}), "line 4: malformed end line"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    edit, message = DAMAGE[name]
    path = write(tmp_path / "run.jsonl", record_of(answers([0, 1])))
    path.write_text("\n".join(edit(path.read_text().splitlines())) + "\n")
    with pytest.raises(RecordError, match=message):
        read_record(path)


def test_an_empty_file_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").touch()
    with pytest.raises(RecordError, match="no whole line"):
        read_record(tmp_path / "run.jsonl")


def test_energy_that_was_not_measured_is_none_in_the_file_and_a_question(tmp_path: Path) -> None:
    record = record_of(answers([0, 1]))
    assert record.performance.joules_per_question(record.performance.cpu_joules) is None
    assert record.performance.joules_per_question(3.0) == 1.5
    assert Performance().joules_per_question(3.0) is None
    found = read_record(write(tmp_path / "run.jsonl", record)).performance
    assert (found.peak_vram_bytes, found.cpu_joules, found.gpu_joules) == (None, None, None)


def test_speed_of_a_run_that_scored_nothing_is_zero_and_not_an_error() -> None:
    assert Performance().questions_per_second == 0.0
