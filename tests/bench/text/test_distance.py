"""KL over a text: against the definition written out, kept whole or compactly, and against llama-perplexity itself."""

import math
import os
from pathlib import Path

import numpy as np
import pytest

from bench.settings import RunSettings, Runtime
from bench.text.distance import (
    QUANTILES,
    BaselineWriter,
    Differences,
    TextDistance,
    baseline_bytes,
    kl_of_token,
    read_baseline,
    tokens_to_keep,
)
from bench.text.perplexity import Chunks, chunks, nats_of, scored_blocks
from bench.text.run import TextRequest, run_text
from medlite.errors import EngineError, RecordError
from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.helpers.toy_engine import N_VOCAB, ToyEngine

TEXT = "The patient takes metformin daily for diabetes. " * 20


def keep(path: Path, engine: ToyEngine, cut: Chunks, max_tokens: int) -> None:
    with BaselineWriter(path, cut, N_VOCAB, max_tokens) as writer:
        for rows, targets in scored_blocks(engine, cut):
            writer.add(rows, nats_of(rows, targets))


def distance(path: Path, engine: ToyEngine, cut: Chunks) -> TextDistance:
    found = Differences()
    for (rows, targets), (base_nats, base) in zip(
        scored_blocks(engine, cut), read_baseline(path, cut, N_VOCAB), strict=True
    ):
        found.add(base, base_nats, rows, nats_of(rows, targets))
    return found.distance()


def rows_of(engine: ToyEngine, cut: Chunks) -> tuple[np.ndarray, np.ndarray]:
    blocks = list(scored_blocks(engine, cut))
    return np.concatenate([rows for rows, _ in blocks]), np.concatenate([targets for _, targets in blocks])


@pytest.fixture
def cut() -> Chunks:
    return chunks(ToyEngine(), TEXT, 100)


def test_every_measure_is_its_definition(tmp_path: Path, cut: Chunks) -> None:
    base, candidate = ToyEngine(), ToyEngine(noise=0.7)
    keep(tmp_path / "kept", base, cut, 0)
    found = distance(tmp_path / "kept", candidate, cut)
    (log_p, targets), (log_q, _) = rows_of(base, cut), rows_of(candidate, cut)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    at = np.arange(targets.size)
    delta = np.exp(log_q[at, targets]) - np.exp(log_p[at, targets])
    n = found.n_tokens
    assert (n, found.exact, found.kl_gap) == (kl.size, True, 0.0)
    assert found.kl.value == pytest.approx(kl.mean(), abs=1e-6)
    assert found.kl.standard_error == pytest.approx(kl.std(ddof=1) / math.sqrt(n), abs=1e-6)
    assert found.kl_quantiles == pytest.approx(np.quantile(kl, QUANTILES), abs=1e-6)
    assert found.same_top.value == (log_p.argmax(axis=1) == log_q.argmax(axis=1)).mean()
    assert found.delta_p.value == pytest.approx(delta.mean(), abs=1e-9)
    assert found.rms_delta_p.value == pytest.approx(math.sqrt((delta**2).mean()), abs=1e-9)
    assert found.log_ratio.value == pytest.approx((log_p - log_q)[at, targets].mean(), abs=1e-6)


@pytest.mark.parametrize("max_tokens", [16, 64, 120])
def test_what_is_kept_compactly_holds_the_exact_value_between_its_bounds(
    tmp_path: Path, cut: Chunks, max_tokens: int
) -> None:
    base, candidate = ToyEngine(), ToyEngine(noise=0.7)
    keep(tmp_path / "whole", base, cut, 0)
    keep(tmp_path / "compact", base, cut, max_tokens)
    exact, found = (distance(tmp_path / name, candidate, cut) for name in ("whole", "compact"))
    assert not found.exact
    assert found.kl.value <= exact.kl.value <= found.kl.value + found.kl_gap
    assert (found.same_top, found.n_tokens) == (exact.same_top, exact.n_tokens)
    assert (found.delta_p, found.log_ratio) == (exact.delta_p, exact.log_ratio)
    assert (tmp_path / "compact").stat().st_size < (tmp_path / "whole").stat().st_size
    assert (tmp_path / "compact").stat().st_size < baseline_bytes(cut, N_VOCAB, max_tokens) + 2000 * len(cut.pieces)


def test_each_token_lies_between_its_bounds(tmp_path: Path, cut: Chunks) -> None:
    keep(tmp_path / "compact", ToyEngine(), cut, 32)
    (log_p, _), (log_q, _) = rows_of(ToyEngine(), cut), rows_of(ToyEngine(noise=1.0), cut)
    kept = [one for _, block in read_baseline(tmp_path / "compact", cut, N_VOCAB) for one in block]
    for one, p, q in zip(kept, log_p, log_q, strict=True):
        low, high = kl_of_token(one, q)
        assert low - 1e-6 <= (np.exp(p) * (p - q)).sum() <= high + 1e-6


def test_a_short_text_is_kept_whole_and_a_long_one_compactly(cut: Chunks, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tokens_to_keep(cut, N_VOCAB, 64) == 0
    monkeypatch.setattr("bench.text.distance.WHOLE_BYTES", 1000)
    assert tokens_to_keep(cut, N_VOCAB, 64) == 64
    assert tokens_to_keep(cut, N_VOCAB, 0) == 0


def test_bounds_that_lie_far_apart_are_called_loose(tmp_path: Path, cut: Chunks) -> None:
    keep(tmp_path / "compact", ToyEngine(), cut, 16)
    keep(tmp_path / "whole", ToyEngine(), cut, 0)
    candidate = ToyEngine(noise=0.7)
    assert distance(tmp_path / "compact", candidate, cut).is_loose
    assert not distance(tmp_path / "whole", candidate, cut).is_loose


def test_a_model_that_cuts_the_text_otherwise_has_no_kl(tmp_path: Path, cut: Chunks) -> None:
    keep(tmp_path / "kept", ToyEngine(), cut, 0)
    with pytest.raises(RecordError, match="cut the text into other tokens"):
        next(read_baseline(tmp_path / "kept", chunks(ToyEngine(), TEXT, 90), N_VOCAB))
    with pytest.raises(RecordError, match="vocabularies of 261 and 300 tokens"):
        next(read_baseline(tmp_path / "kept", cut, 300))


def test_a_model_that_returns_nan_fails_loudly(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 2)
    with pytest.raises(EngineError, match="NaN"):
        run_text(
            TextRequest(
                write_tiny_gguf(tmp_path / "poisoned.gguf", poison=True),
                tmp_path / "text.txt",
                RunSettings(runtime=Runtime(n_context=64, device="cpu")),
            )
        )


@pytest.mark.slow
@pytest.mark.skipif(
    "MEDLITE_LLAMA_PERPLEXITY" not in os.environ, reason="MEDLITE_LLAMA_PERPLEXITY names no llama-perplexity"
)
@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q2_K"])
def test_llama_perplexity_prints_the_same_numbers(tmp_path: Path, recipe: str) -> None:
    """The demo model at two recipes: every measure within a tenth of the standard error that the program states."""
    from medlite.demo import checkpoint_path
    from quantize.gguf.plan import plan_gguf
    from quantize.gguf.recipes import find_recipe
    from quantize.match import match_checkpoint
    from quantize.source.checkpoint import open_checkpoint
    from quantize.stream.writer import write
    from tests.measure.text import demo_text, ours, theirs

    model = match_checkpoint(open_checkpoint(checkpoint_path()))
    base, candidate = tmp_path / "base.gguf", tmp_path / "candidate.gguf"
    write([plan_gguf(model, find_recipe(name)).output(path) for name, path in (("BF16", base), (recipe, candidate))])
    text = tmp_path / "text.txt"
    text.write_text(demo_text(), encoding="utf-8")
    found = ours(base, candidate, text, 256, tmp_path)
    for name, (value, error) in theirs(
        Path(os.environ["MEDLITE_LLAMA_PERPLEXITY"]), base, candidate, text, 256
    ).items():
        assert found[name][0] == pytest.approx(value, abs=max(0.1 * error, 0.01 * abs(value))), name
