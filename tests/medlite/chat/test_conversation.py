"""Conversations on the toy engine: turns, contexts, what is kept, what is saved."""

import stat
from pathlib import Path

import pytest

import medlite
from medlite.chat.conversation import Conversation
from medlite.chat.session import read_session
from medlite.engines.engine import GenerationSettings
from medlite.errors import ContextError, OutputError, RecordError
from medlite.formats.chat_template import ChatTemplate
from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.helpers.toy_engine import CHAT_TEMPLATE, ToyEngine, chat_knowledge

TOKENS = {"bos_token": "<|begin_of_text|>"}


# --- conversations ---------------------------------------------------------------------------------------------------


def conversation(n_context: int = 2048, **replies: str) -> Conversation:
    engine = ToyEngine(chat_knowledge({"Hi": "Grüß dich!", "And?": "Nothing.", **replies}), n_context=n_context)
    return Conversation(engine, ChatTemplate(CHAT_TEMPLATE, TOKENS))


def say(chat: Conversation, text: str) -> str:
    return "".join(step.text for step in chat.reply(text))


def test_replies_become_turns_and_are_counted() -> None:
    chat = conversation()
    assert (say(chat, "Hi"), say(chat, "And?")) == ("Grüß dich!", "Nothing.")
    assert [(turn.user, turn.finish) for turn in chat.turns] == [("Hi", "stop"), ("And?", "stop")]
    assert chat.last.n_tokens == len("Nothing.") + 1
    assert chat.last.finish == "stop"


def test_the_second_turn_does_not_read_the_first_again() -> None:
    chat = conversation()
    say(chat, "Hi")
    assert isinstance(chat.engine, ToyEngine)
    read, used = chat.engine.n_decoded, chat.context_used()
    next(chat.reply("And?"))
    assert chat.engine.n_decoded - read <= chat.last.n_prompt_tokens - used + 1


def test_an_interrupted_reply_is_kept_as_far_as_it_came() -> None:
    chat = conversation()
    steps = chat.reply("Hi")
    next(steps)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert [(turn.reply, turn.finish) for turn in chat.turns] == [("Gr", None)]
    assert say(chat, "And?") == "Nothing."


def test_a_full_context_refuses_and_says_how_many_turns_would_have_to_go() -> None:
    chat = conversation(n_context=120)
    say(chat, "Hi")
    say(chat, "Hi")
    assert (chat.turns_to_drop("And?"), chat.turns_to_drop("x" * 200)) == (1, None)
    with pytest.raises(ContextError, match="the context holds 120"):
        chat.reply("And?")
    assert len(chat.turns) == 2
    chat.drop_oldest(1)
    assert say(chat, "And?") == "Nothing."


def test_without_a_template_texts_and_replies_follow_each_other() -> None:
    chat = Conversation(ToyEngine({"metformin is": " a biguanide"}), None)
    assert say(chat, "metformin is") == " a biguanide"
    assert chat.engine.detokenize(chat.prompt_tokens(", and")) == b"metformin is a biguanide, and"


def test_undo_and_clear_take_turns_back() -> None:
    chat = conversation()
    say(chat, "Hi")
    turn = chat.undo()
    assert turn is not None
    assert (turn.user, chat.turns, chat.undo()) == ("Hi", [], None)
    say(chat, "Hi")
    chat.clear()
    assert chat.turns == []


def test_a_saved_conversation_comes_back_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    chat = conversation()
    chat.system = "Be brief."
    chat.set_temperature(0.5)
    say(chat, "Hi")
    path = tmp_path / "talk.json"
    chat.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(OutputError):
        chat.save(path)
    other = conversation()
    session, restored = other.load(path)
    assert (session.model, restored.n_tokens) == ("toy", 0)
    assert restored.reason
    assert (other.turns, other.system, other.settings.temperature) == (chat.turns, "Be brief.", 0.5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "medlite chat 1"}',
        "[" * 100000,
        "\xff",
        '{"format": "medlite chat 1", "model": "m", "system": "", "temperature": -1, "turns": []}',
        '{"format": "medlite chat 1", "model": "m", "system": "", "temperature": 0, "turns": [{"user": 1}]}',
    ],
)
def test_a_damaged_session_is_refused_and_changes_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "talk.json"
    path.write_bytes(text.encode("latin-1"))
    chat = conversation()
    say(chat, "Hi")
    with pytest.raises(RecordError):
        chat.load(path)
    assert len(chat.turns) == 1
    with pytest.raises(RecordError):
        read_session(tmp_path / "missing.json")


# --- from Python -----------------------------------------------------------------------------------------------------


def test_a_model_answers_in_three_lines(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    with medlite.load(str(path), medlite.OpenSettings("cpu", n_threads=1)) as model:
        answer = model.ask("What class of drug is metformin?", settings=GenerationSettings(max_tokens=8))
        assert answer == model.ask("What class of drug is metformin?", settings=GenerationSettings(max_tokens=8))
        assert model.complete("the patient", GenerationSettings(max_tokens=3))
        assert (model.artifact.recipe, model.template is not None) == ("F32", True)


def test_the_rendered_template_becomes_the_tokens_of_its_control_tokens(tmp_path: Path) -> None:
    with medlite.load(str(write_tiny_gguf(tmp_path / "tiny.gguf")), medlite.OpenSettings("cpu", n_threads=1)) as model:
        tokens = model.chat().prompt_tokens("a")
        special = [token for token in tokens if token >= model.engine.info.n_vocab - 5]
        begin, _, start, end, eot = range(model.engine.info.n_vocab - 5, model.engine.info.n_vocab)
        assert special == [begin, start, end, eot, start, end]


def test_importing_medlite_loads_neither_an_engine_nor_numpy() -> None:
    import subprocess
    import sys

    code = "import sys, medlite; print([m for m in ('numpy', 'llama_cpp', 'jinja2', 'rich') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
