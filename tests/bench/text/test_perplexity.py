"""Perplexity by llama-perplexity's definition, against the definition written out, and paired differences."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from bench.run.record import ArtifactFacts
from bench.score.scoring import log_softmax
from bench.settings import RunSettings, Runtime
from bench.text.perplexity import TextScore, chunks, nats_of, paired_difference, read_text, scored_blocks, text_score
from bench.text.run import TextRequest, run_text
from medlite.engines.engine import LogitsRequest
from medlite.errors import RecordError, TaskError
from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.helpers.toy_engine import ToyEngine

TEXT = "The patient takes metformin daily for diabetes. " * 8


def test_chunks_begin_with_the_first_token_and_leave_the_rest_out() -> None:
    engine = ToyEngine()
    found = chunks(engine, TEXT, 64)
    tokens = engine.tokenize(TEXT)
    assert len(found.pieces) == len(tokens) // 64
    assert all(piece[0] == tokens[0] and len(piece) == 64 for piece in found.pieces)
    assert found.pieces[1][1:] == tuple(tokens[65:128])
    assert found.targets(1).tolist() == tokens[97:128]


@pytest.mark.parametrize("n_context", [64, 65, 160])
def test_the_second_half_of_each_chunk_is_scored(n_context: int) -> None:
    engine = ToyEngine(noise=0.5)
    cut = chunks(engine, TEXT, n_context)
    found = np.concatenate([nats_of(rows, targets) for rows, targets in scored_blocks(engine, cut)])
    expected = []
    for piece in cut.pieces:
        for j in range(n_context // 2, n_context - 1):
            (logits,) = engine.logits([LogitsRequest(piece[: j + 1], (j,))])
            expected.append(-log_softmax(logits)[0, piece[j + 1]])
    assert found.tolist() == pytest.approx(expected, abs=1e-9)
    assert found.size == len(cut.pieces) * cut.n_scored
    facts = ArtifactFacts("a.gguf", "0", "gguf", "a", "F32", 1, 1, 32.0)
    assert text_score(facts, cut, "abc", found).perplexity == pytest.approx(math.exp(np.mean(expected)))


def score(*chunk_nats: float) -> TextScore:
    facts = ArtifactFacts("a.gguf", "0", "gguf", "a", "F32", 1, 1, 32.0)
    return TextScore(facts, 64, 31, "abc", chunk_nats, 1.0)


def test_perplexity_is_the_exponential_of_the_mean() -> None:
    assert score(1.0, 3.0).perplexity == pytest.approx(math.exp(2.0))
    assert score(1.0, 3.0).standard_error == pytest.approx(math.exp(2.0) * math.sqrt(1 / 61))


def test_differences_are_paired_by_chunk() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(2.0, 0.5, 50)
    found = paired_difference(score(*base), score(*(base + 0.01)))
    assert (found.value, found.low, found.high) == pytest.approx((0.01, 0.01, 0.01))


@pytest.mark.parametrize("change", [{"text_sha256": "x"}, {"n_context": 32}, {"chunk_nats": (1.0,)}])
def test_scores_of_other_texts_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(RecordError, match="cannot be compared"):
        paired_difference(score(1.0, 2.0), dataclasses.replace(score(1.0, 2.0), **change))


def test_a_short_text_is_refused() -> None:
    with pytest.raises(TaskError, match="the text has 385 tokens, 400 are needed"):
        chunks(ToyEngine(), TEXT, 200)


def test_a_real_file_is_scored_in_a_process_of_its_own(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "text.txt").write_text(TEXT * 4)
    settings = RunSettings(runtime=Runtime(n_context=64, device="cpu"), max_tokens=0)
    kept = run_text(TextRequest(model, tmp_path / "text.txt", settings, keep=tmp_path / "kept"))
    found = kept.score
    assert kept.distance is None
    assert 1 < found.perplexity < 5000  # random weights do worse than guessing among 321 tokens
    assert found.n_scored == 31
    second = run_text(TextRequest(model, tmp_path / "text.txt", settings, against=tmp_path / "kept"))
    again, distance = second.score, second.distance
    assert paired_difference(found, again).value == 0.0
    assert distance is not None
    assert distance.exact
    assert (distance.kl.value, distance.same_top.value) == (pytest.approx(0.0, abs=1e-7), 1.0)


def test_the_last_newline_is_left_out_as_llama_perplexity_does(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"two lines\n\n")
    assert read_text(tmp_path / "text.txt")[0] == "two lines\n"


def test_a_text_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskError, match=r"bad.txt: cannot be read as UTF-8"):
        run_text(TextRequest(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "bad.txt"))
