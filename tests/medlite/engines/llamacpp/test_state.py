"""A conversation's cache on disk: it saves the reading, fits only its own model, and no damage reaches llama.cpp."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from medlite.engines import open_engine
from medlite.engines.engine import GenerationSettings, KeepsState, OpenSettings
from medlite.engines.llamacpp import state as llama_state
from medlite.engines.llamacpp.engine import LlamaCppEngine
from medlite.engines.llamacpp.native import Context
from medlite.errors import EngineError, OutputError
from tests.helpers.tiny_gguf import write_tiny_gguf

PROMPT = list(range(1, 60))
NEXT_TURN = [7, 8, 9]
TEN = GenerationSettings(max_tokens=10)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLITE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("state") / "tiny.gguf")


@pytest.fixture
def engine(tiny: Path) -> Iterator[LlamaCppEngine]:
    with closing(opened(tiny)) as engine:
        yield engine


def opened(path: Path, **options: object) -> LlamaCppEngine:
    engine = open_engine(path, OpenSettings(device="cpu", n_threads=1, **options))  # type: ignore[arg-type]
    assert isinstance(engine, LlamaCppEngine)
    return engine


def continued(engine: LlamaCppEngine, tokens: list[int]) -> list[int]:
    return [step.token for step in engine.generate(tokens, TEN)]


def test_a_restored_state_is_not_read_again_and_continues_the_same(
    engine: LlamaCppEngine, tiny: Path, tmp_path: Path
) -> None:
    reply = continued(engine, PROMPT)
    saved = engine.save_state(tmp_path / "chat.state")
    assert saved == len(PROMPT) + len(reply) - 1  # the last token was never read
    turn = [*PROMPT, *reply, *NEXT_TURN]
    expected = continued(engine, turn)
    with closing(opened(tiny)) as other:
        assert isinstance(other, KeepsState)
        assert other.restore_state(tmp_path / "chat.state").n_tokens == saved
        before = other.n_tokens_read
        assert continued(other, turn) == expected
        assert other.n_tokens_read - before == 1 + len(NEXT_TURN) + len(expected) - 1


def test_only_the_owner_can_read_a_state_and_a_second_save_replaces_it(engine: LlamaCppEngine, tmp_path: Path) -> None:
    path = tmp_path / "chat.state"
    with pytest.raises(EngineError, match="nothing was read"):
        engine.save_state(path)
    assert not path.exists()
    for prompt in (PROMPT, PROMPT[:10]):
        list(engine.generate(prompt, GenerationSettings(max_tokens=1)))
        assert engine.save_state(path) == len(prompt)
        assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "chat.state"]
    assert engine.restore_state(path).n_tokens == 10
    with pytest.raises(OutputError):
        engine.save_state(tmp_path / "missing" / "chat.state")


def test_a_state_of_another_model_setting_or_length_is_refused_with_the_reason(
    engine: LlamaCppEngine, tiny: Path, tmp_path: Path
) -> None:
    list(engine.generate(PROMPT, TEN))
    path = tmp_path / "chat.state"
    engine.save_state(path)
    twin = write_tiny_gguf(tmp_path / "twin.gguf", seed=1)
    touched = tmp_path / "touched.gguf"
    touched.write_bytes(tiny.read_bytes())
    os.utime(touched, ns=(0, 0))
    for file, options, reason in (
        (twin, {}, "modified ns"),
        (touched, {}, "modified ns"),
        (tiny, {"kv_type": "q8_0"}, "kv type is 'f16', here 'q8_0'"),
        (tiny, {"n_context": 30}, "the context 30"),
    ):
        with closing(opened(file, **options)) as other:
            found = other.restore_state(path)
            assert found.n_tokens == 0
            assert reason in found.reason
            before = other.n_tokens_read
            assert len(continued(other, PROMPT[:20])) == 10
            assert other.n_tokens_read - before == 20 + 9  # nothing was restored


def test_no_damaged_state_reaches_the_native_library(
    engine: LlamaCppEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(engine.generate(PROMPT, TEN))
    path, bad = tmp_path / "chat.state", tmp_path / "bad.state"
    engine.save_state(path)
    raw = path.read_bytes()
    damaged = [raw[:n] for n in (0, 7, 60, 1000, len(raw) - 1)]
    damaged += [
        raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        for at in (0, 4, 8, 12, 500, len(raw) // 2, len(raw) - 120, len(raw) - 50, len(raw) - 20, len(raw) - 1)
    ]
    damaged += [raw + b"\0", b"\0" * 4096, os.urandom(4096) + llama_state.MAGIC]
    monkeypatch.setattr(Context, "load_sequence", lambda *_: pytest.fail("llama.cpp was given a damaged file"))
    for content in damaged:
        bad.write_bytes(content)
        found = engine.restore_state(bad)
        assert found.n_tokens == 0
        assert "state" in found.reason or "damaged" in found.reason
    assert "No such file" in engine.restore_state(tmp_path / "none.state").reason
    assert len(continued(engine, PROMPT)) == 10


def test_a_state_signed_with_another_key_is_refused(
    engine: LlamaCppEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(engine.generate(PROMPT, TEN))
    engine.save_state(tmp_path / "chat.state")
    monkeypatch.setenv("MEDLITE_CACHE", str(tmp_path / "another"))
    assert "another user or machine" in engine.restore_state(tmp_path / "chat.state").reason


def test_ctrl_c_between_a_decode_and_its_bookkeeping_leaves_the_next_reply_right(engine: LlamaCppEngine) -> None:
    reply = continued(engine, PROMPT)
    engine._resident.batch.fill_one(5, len(engine._resident.tokens))
    engine._resident.decode()  # read by llama.cpp, unknown to the list: what an interrupt leaves
    assert continued(engine, [*PROMPT, *reply, 1]) == fresh(engine, [*PROMPT, *reply, 1])


def fresh(engine: LlamaCppEngine, tokens: list[int]) -> list[int]:
    list(engine.logits([]))  # forgets the conversation
    return continued(engine, tokens)
