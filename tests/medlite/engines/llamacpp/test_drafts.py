"""Guessing ahead changes the speed and nothing else: the tokens are those of plain decoding, greedy and sampled."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from medlite.cli import cli
from medlite.engines import open_engine
from medlite.engines.engine import DraftCounts, GenerationSettings, OpenSettings, ReadsAhead
from medlite.engines.json_schema import lark_from_json_schema
from medlite.engines.llamacpp.drafts import FEWEST, MOST, GuessLength, Lookup
from medlite.engines.llamacpp.engine import LlamaCppEngine
from medlite.errors import EngineError, MedliteError
from tests.helpers.demo_files import write_demo
from tests.helpers.tiny_gguf import write_tiny_gguf

# fmt: off
QUESTIONS = ("What class of drug is metformin?", "Name the antidote for paracetamol.",
             "metformin is a biguanide. warfarin is an anticoagulant. metformin is a biguanide. warfarin is")
# fmt: on


@pytest.fixture(scope="module")
def demo_paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_demo(tmp_path_factory.mktemp("drafts"), "BF16", "Q2_K")


@pytest.fixture(scope="module")
def demo(demo_paths: list[Path]) -> Iterator[LlamaCppEngine]:
    with closing(open_engine(demo_paths[0], OpenSettings(device="cpu", n_threads=1))) as engine:
        yield engine


def texts(engine: LlamaCppEngine, settings: GenerationSettings) -> tuple[list[list[int]], DraftCounts]:
    found, counts = [], DraftCounts()
    for question in QUESTIONS:
        found.append([step.token for step in engine.generate(engine.tokenize(question), settings)])
        counts.n_drafted += engine.draft_counts.n_drafted
        counts.n_accepted += engine.draft_counts.n_accepted
    return found, counts


# fmt: off
SETTINGS = {
    "greedy": GenerationSettings(max_tokens=60),
    "sampled": GenerationSettings(max_tokens=60, temperature=1.0, seed=3),
    "penalised": GenerationSettings(max_tokens=60, repeat_penalty=1.2, temperature=0.7),
    "json": GenerationSettings(max_tokens=60, grammar=lark_from_json_schema(
        {"type": "object", "properties": {"drug": {"type": "string", "maxLength": 9}}, "required": ["drug"]})),
}
# fmt: on


@pytest.mark.parametrize("name", SETTINGS)
def test_a_draft_does_not_change_what_is_said(demo: LlamaCppEngine, demo_paths: list[Path], name: str) -> None:
    demo.set_draft(None)
    plain, none = texts(demo, SETTINGS[name])
    assert none.n_drafted == 0
    for draft in ("lookup", demo_paths[1]):
        demo.set_draft(draft)
        found, counts = texts(demo, SETTINGS[name])
        assert found == plain
        assert 0 <= counts.n_accepted <= counts.n_drafted
        if name == "greedy":
            assert counts.n_accepted > 5
    demo.set_draft(None)


class Wrong:
    """Guesses that are never right, often too many for what is left."""

    def propose(self, tokens: Sequence[int], n_most: int) -> list[int]:
        return [(tokens[-1] + 1 + i) % 200 for i in range(min(7, n_most))]

    def free(self) -> None:
        pass


def test_wrong_guesses_do_no_harm_up_to_the_end_of_the_context(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", n_context=64)
    prompt = list(range(40))
    for settings in (GenerationSettings(max_tokens=100), GenerationSettings(max_tokens=5, temperature=1.0)):
        with closing(open_engine(path, OpenSettings(device="cpu", n_threads=1))) as engine:
            plain = list(engine.generate(prompt, settings))
        with closing(open_engine(path, OpenSettings(device="cpu", n_threads=1))) as engine:
            engine.set_draft(Wrong())
            steps = list(engine.generate(prompt, settings))
            assert [(s.token, s.finish) for s in steps] == [(s.token, s.finish) for s in plain]
            assert engine.draft_counts.n_drafted > 0
            again = list(engine.generate([*prompt, steps[0].token, 3], settings))  # the cache holds no wrong guess
            list(engine.logits([]))  # forgets the conversation
            engine.set_draft(None)
            assert [s.token for s in engine.generate([*prompt, steps[0].token, 3], settings)] == [
                s.token for s in again
            ]


def test_a_draft_of_another_vocabulary_is_refused_by_name(demo: LlamaCppEngine, tmp_path: Path) -> None:
    assert isinstance(demo, ReadsAhead)
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(EngineError, match=r"its vocabulary has \d+ tokens, the model's \d+"):
        demo.set_draft(tiny)
    raw = tiny.read_bytes()
    at = raw.index("Ġpat".encode())
    (tmp_path / "other.gguf").write_bytes(raw[:at] + "Ġpot".encode() + raw[at + 5 :])
    with closing(open_engine(tiny, OpenSettings(device="cpu", n_threads=1))) as engine:
        with pytest.raises(EngineError, match=r"its token .* the model's"):
            engine.set_draft(tmp_path / "other.gguf")
        with pytest.raises(MedliteError):
            engine.set_draft(tmp_path / "missing.gguf")
        engine._model.can_rewind = False
        with pytest.raises(EngineError, match="cannot be cut back"):
            engine.set_draft("lookup")


def test_lookup_guesses_what_followed_the_same_words() -> None:
    text = [9, 8, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3]
    assert Lookup().propose(text, 15) == [4, 5, 6]
    assert Lookup().propose(text, 2) == [4, 5]
    assert Lookup().propose(text[:9], 15) == []
    lookup = Lookup()
    for n in range(1, len(text)):
        lookup.propose(text[:n], 15)
    assert lookup.propose(text, 15) == [4, 5, 6]
    assert lookup.propose([*text, 4, 5, 6, 7], 15) == [1, 2, 3, 4, 5, 6, 7]  # all were right: more are guessed
    assert lookup.propose([1, 2, 3], 15) == []  # another text


def test_guesses_grow_while_they_are_right_and_shrink_when_not() -> None:
    length, tokens = GuessLength(), [0]
    numbers = []
    for _ in range(4):
        n = length.before(tokens, 99)
        numbers.append(n)
        length.after(tokens, [5] * n)
        tokens += [5] * n
    length.after(tokens, [5] * MOST)
    assert [*numbers, length.before([*tokens, 6], 99)] == [FEWEST, 7, 15, MOST, FEWEST]


def test_generate_tells_how_many_guesses_were_right(demo_paths: list[Path]) -> None:
    done = CliRunner().invoke(
        cli, ["generate", str(demo_paths[0]), QUESTIONS[0], "--device", "cpu", "--stats", "--draft", str(demo_paths[1])]
    )
    assert done.exit_code == 0
    assert "guesses right" in done.output
