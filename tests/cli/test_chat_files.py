"""What a chat reads and writes: typed lines, saved conversations with the engine's state, records of the loss."""

import dataclasses
import io
import stat
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

import medlite
from bench.compare.nearby import Loss
from medlite.chat import LoadedModel
from medlite.chat.session import state_path
from medlite.cli.chat.command import kept_history, show_banner, talk
from medlite.cli.chat.commands import ChatState, run_command
from medlite.cli.chat.input import NO_HISTORY, default_history, prepare_history
from medlite.cli.chat.loss import signed
from medlite.cli.chat.screen import Drawing
from medlite.engines.engine import GenerationSettings
from medlite.formats.artifact import open_artifact
from medlite.formats.chat_template import ChatTemplate
from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.helpers.toy_engine import CHAT_TEMPLATE, ToyEngine, chat_knowledge


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv(NO_HISTORY, raising=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("files") / "tiny.gguf")


def toy_state(tiny: Path) -> ChatState:
    loaded = LoadedModel(
        open_artifact(tiny),
        ToyEngine(chat_knowledge({"Hi": "Hello."})),
        ChatTemplate(CHAT_TEMPLATE, {"bos_token": "<|begin_of_text|>"}),
    )
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    return ChatState(loaded, loaded.chat(), console, open_model=lambda _: loaded)


def shown(state: ChatState) -> str:
    assert isinstance(state.console.file, io.StringIO)
    return " ".join(state.console.file.getvalue().split())


def type_into(state: ChatState, keys: str, history: Path | None = None) -> None:
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        keyboard.send_text(keys)
        talk(state, history, Drawing())


# --- typed lines -----------------------------------------------------------------------------------------------------


def test_typed_lines_are_kept_for_the_next_chat_and_only_their_owner_reads_them(tiny: Path) -> None:
    state = toy_state(tiny)
    history = kept_history(state)
    assert history is not None
    type_into(state, "Hi\r\x04", history)
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700
    assert "Hello" not in history.read_text()
    again = toy_state(tiny)
    type_into(again, "\x1b[A\r\x04", history)
    assert [turn.user for turn in again.conversation.turns] == ["Hi"]


def test_a_readable_history_is_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_text("+old\n")
    path.chmod(0o644)
    assert prepare_history(path) == ""
    assert (stat.S_IMODE(path.stat().st_mode), path.read_text()) == (0o600, "+old\n")


def test_the_environment_switches_the_history_off(tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_history() == tmp_path / "state/medlite/history"
    monkeypatch.setenv(NO_HISTORY, "1")
    assert default_history() is None
    type_into(toy_state(tiny), "Hi\r\x04", default_history())
    assert not (tmp_path / "state").exists()


def test_a_history_that_cannot_be_kept_costs_a_word_and_not_the_chat(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a folder was needed")
    state = toy_state(tiny)
    assert kept_history(state) is None
    assert "typed lines are not kept" in shown(state)


def test_the_banner_says_where_typed_lines_go(tiny: Path, tmp_path: Path) -> None:
    state = toy_state(tiny)
    show_banner(state, Path("/home/you/history"))
    assert "typed lines are kept in /home/you/history (--no-history)" in shown(state)
    state = toy_state(tiny)
    show_banner(state, None)
    assert "typed lines" not in shown(state)


# --- saved conversations ---------------------------------------------------------------------------------------------


@pytest.fixture
def llama_state(tiny: Path) -> ChatState:
    loaded = medlite.load(str(tiny), medlite.OpenSettings("cpu", n_threads=1))
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    return ChatState(loaded, loaded.chat("", GenerationSettings(max_tokens=5)), console, open_model=lambda _: loaded)


def ask(state: ChatState, text: str) -> None:
    for _ in state.conversation.reply(text):
        pass


def test_a_loaded_conversation_is_not_read_again(llama_state: ChatState, tiny: Path, tmp_path: Path) -> None:
    ask(llama_state, "the patient takes metformin daily for diabetes and what class of drug is it")
    path = tmp_path / "talk.json"
    run_command(llama_state, f"/save {path}")
    assert "what was read is in talk.json.state" in shown(llama_state)
    assert stat.S_IMODE(state_path(path).stat().st_mode) == 0o600
    n_before = llama_state.conversation.context_used()
    with medlite.load(str(tiny), medlite.OpenSettings("cpu", n_threads=1)) as other:
        state = dataclasses.replace(
            llama_state, loaded=other, conversation=other.chat("", GenerationSettings(max_tokens=5))
        )
        run_command(state, f"/load {path}")
        assert "loaded 1 turn; restored, nothing is read again" in shown(state)
        ask(state, "and")
        assert state.conversation.last.n_prompt_tokens > n_before
        # The reply's text may be cut into other tokens than were drawn, since the weights are random: 10 at most.
        assert state.conversation.last.n_read_tokens <= state.conversation.last.n_prompt_tokens - n_before + 10
        restored = [turn.reply for turn in state.conversation.turns]
    ask(llama_state, "and")
    assert [turn.reply for turn in llama_state.conversation.turns] == restored
    llama_state.loaded.close()


def test_without_a_fitting_state_the_conversation_is_read_again_and_the_chat_says_why(
    llama_state: ChatState, tiny: Path, tmp_path: Path
) -> None:
    ask(llama_state, "the patient takes metformin")
    path = tmp_path / "talk.json"
    run_command(llama_state, f"/save {path}")
    other = write_tiny_gguf(tmp_path / "other.gguf", seed=1)
    with medlite.load(str(other), medlite.OpenSettings("cpu", n_threads=1)) as loaded:
        state = dataclasses.replace(llama_state, loaded=loaded, conversation=loaded.chat())
        run_command(state, f"/load {path}")
        assert "the next question reads it again (" in shown(state)
        ask(state, "and")
        assert state.conversation.last.n_read_tokens == state.conversation.last.n_prompt_tokens
    state_path(path).unlink()
    run_command(llama_state, f"/load {path}")
    assert "not there" in shown(llama_state)
    state_path(path).write_bytes(b"no state")
    run_command(llama_state, f"/load {path}")
    assert "not a saved state" in shown(llama_state)
    ask(llama_state, "and")
    assert len(llama_state.conversation.turns) == 2
    llama_state.loaded.close()


def test_a_state_that_is_no_longer_the_conversations_is_not_kept(llama_state: ChatState, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"

    def kept() -> bool:
        run_command(llama_state, f"/save {path} --force")
        return state_path(path).exists()

    assert not kept()
    for text in ("the patient takes metformin", "what class of drug", "and"):
        ask(llama_state, text)
    assert kept()
    run_command(llama_state, "/undo")
    assert kept()
    run_command(llama_state, "/drop 1")
    assert not kept()
    ask(llama_state, "and")
    assert kept()
    run_command(llama_state, "/system Be brief.")
    assert not kept()
    run_command(llama_state, "/system -")
    run_command(llama_state, f"/load {path}")
    assert not kept()
    ask(llama_state, "and")
    assert kept()
    run_command(llama_state, f"/load {path}")
    assert kept()
    llama_state.loaded.close()


def test_an_engine_without_a_state_saves_the_conversation_alone(tiny: Path, tmp_path: Path) -> None:
    state = toy_state(tiny)
    ask(state, "Hi")
    run_command(state, f"/save {tmp_path / 'talk.json'}")
    assert not state_path(tmp_path / "talk.json").exists()
    run_command(state, f"/load {tmp_path / 'talk.json'}")
    assert "this engine keeps no state" in shown(state)


# --- the measured loss -----------------------------------------------------------------------------------------------


def test_the_status_line_and_the_model_command_show_the_loss(tiny: Path) -> None:
    state = toy_state(tiny)
    state.losses = [Loss(-0.1, -0.4, 0.3, "demo", 1456, "BF16")]
    state.refresh_status()
    assert "−0.1 points on demo" in state.status
    run_command(state, "/model")
    assert "accuracy −0.1 points [−0.4, +0.3] against BF16 (demo, n = 1,456)" in shown(state)
    state.find_loss = lambda loaded: []
    run_command(state, "/model other")
    assert state.losses == []
    assert (signed(0.04), signed(-0.04), signed(1.25)) == ("0.0", "0.0", "+1.2")
