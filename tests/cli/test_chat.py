"""`medlite chat` and `medlite generate` as a user runs them: piped, as JSON, and typed into a terminal."""

import io
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from medlite.chat import LoadedModel
from medlite.cli.chat.command import command as chat
from medlite.cli.chat.command import talk
from medlite.cli.chat.commands import COMMANDS, ChatState, run_command
from medlite.cli.chat.screen import Drawing, finished_length, fold_thinking, printable, shade_of, show_reply
from medlite.cli.generate import command as generate
from medlite.engines.engine import GeneratedToken, OnPrompt
from medlite.errors import MedliteError
from medlite.formats.artifact import open_artifact
from medlite.formats.chat_template import ChatTemplate
from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.helpers.toy_engine import CHAT_TEMPLATE, ToyEngine, chat_knowledge

REPLIES = {"Hi": "Hello **you**.", "And?": "Nothing.", "List": "1. one\n2. two\n\nDone.", "Why?": "\x1b[31mred\x07"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def run(command: click.Command, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """Exit code, stdout and stderr. MedliteErrors are raised, as `main` sees them."""
    result = CliRunner().invoke(command, [*arguments, "--threads", "1"], input=stdin, standalone_mode=False)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


# --- generate --------------------------------------------------------------------------------------------------------


def test_generate_prints_only_the_answer_on_stdout(tiny: Path) -> None:
    code, out, err = run(generate, str(tiny), "what class of drug", "--max-tokens", "5")
    assert (code, err) == (0, "")
    assert out.endswith("\n")
    assert len(out) > 1


def test_generate_reads_stdin_and_answers_the_same(tiny: Path) -> None:
    argument = run(generate, str(tiny), "what class", "--max-tokens", "5")[1]
    assert run(generate, str(tiny), "-", "--max-tokens", "5", stdin=b"what class\n")[1] == argument
    assert run(generate, str(tiny), "--max-tokens", "5", stdin=b"what class\n")[1] == argument


def test_generate_as_json_says_what_made_the_answer(tiny: Path) -> None:
    answer = json.loads(run(generate, str(tiny), "what class", "--max-tokens", "5", "--seed", "3", "--json")[1])
    assert (answer["n_tokens"], answer["finish"], answer["recipe"], answer["device"]) == (5, "length", "F32", "cpu")
    assert answer["settings"]["seed"] == 3
    assert answer["mean_log_probability_nats"] < 0


def test_generate_raw_sends_the_prompt_without_the_template(tiny: Path) -> None:
    raw = json.loads(run(generate, str(tiny), "what class", "--raw", "--max-tokens", "2", "--json")[1])
    chat_ = json.loads(run(generate, str(tiny), "what class", "--max-tokens", "2", "--json")[1])
    assert raw["n_prompt_tokens"] < chat_["n_prompt_tokens"]


def test_generate_says_when_a_model_has_no_template(tmp_path: Path) -> None:
    plain = write_tiny_gguf(tmp_path / "base.gguf", template=None)
    assert "no chat template" in run(generate, str(plain), "what class", "--max-tokens", "2")[2]
    for command, stdin in ((generate, b"what class"), (chat, b"what class\n")):
        said = run(command, str(plain), "--system", "Be brief.", "--max-tokens", "2", stdin=stdin)[2]
        assert "no place for --system" in said


def test_generate_survives_bytes_that_are_no_text(tiny: Path) -> None:
    code, _, err = run(generate, str(tiny), "-", "--max-tokens", "2", stdin=b"\xff\xfe what")
    assert code == 0
    assert "not valid UTF-8" in err


def test_generate_refuses_what_it_cannot_do(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(MedliteError, match="no such file"):
        run(generate, str(tmp_path / "missing.gguf"), "hi")
    with pytest.raises(MedliteError, match="neither a file nor the name"):
        run(generate, "nosuchmodel", "hi")
    with pytest.raises(MedliteError, match="the context holds 512"):
        run(generate, str(tiny), "what " * 2000)
    with pytest.raises(click.UsageError, match="empty"):
        run(generate, str(tiny), " ")


def test_the_demo_model_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEDLITE_CACHE", str(tmp_path))
    with pytest.raises(MedliteError) as missing:
        run(generate, "demo", "hi")
    assert missing.value.hint == "medlite demo"
    (tmp_path / "demo").mkdir()
    write_tiny_gguf(tmp_path / "demo/demo-Q4_K_M.gguf")
    assert run(generate, "demo", "hi", "--max-tokens", "1")[0] == 0
    assert "knows a few hundred facts" in " ".join(run(chat, "demo", stdin=b"hi\n")[2].split())


# --- chat over a pipe ------------------------------------------------------------------------------------------------


def test_a_piped_chat_answers_each_line_and_keeps_the_banner_off_stdout(tiny: Path) -> None:
    code, out, err = run(chat, str(tiny), "--max-tokens", "3", stdin=b"the patient\n\nwhat drug\n")
    assert code == 0
    assert "Not a medical device, not for diagnosis." in err
    assert "medical device" not in out
    commands = run(chat, str(tiny), "--max-tokens", "3", stdin=b"the patient\n/stats\n/context\n")
    assert commands[1] == out[: len(commands[1])]
    assert "first token after" in commands[2]


def test_a_chat_as_json_is_one_object_per_reply(tiny: Path) -> None:
    lines = b"the patient\nwhat drug\n/undo\n/quit\nnot read\n"
    out = run(chat, str(tiny), "--json", "--max-tokens", "3", stdin=lines)[1]
    turns = [json.loads(line) for line in out.splitlines()]
    assert [turn["user"] for turn in turns] == ["the patient", "what drug"]
    assert turns[1]["n_prompt_tokens"] > turns[0]["n_prompt_tokens"]


def test_a_line_that_fails_is_said_and_the_next_is_answered(tiny: Path) -> None:
    lines = b"what " * 600 + b"\n/nosuch\nthe patient\n"
    code, out, err = run(chat, str(tiny), "--json", "--max-tokens", "3", stdin=lines)
    turns = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert "the context holds 512" in turns[0]["error"]
    assert "no command /nosuch" in turns[1]["error"]
    assert turns[2]["n_tokens"] == 3
    code, _, err = run(chat, str(tiny), "--max-tokens", "3", stdin=lines)
    assert (code, err.count("error: ")) == (1, 2)


def test_a_piped_chat_survives_bytes_that_are_no_text(tiny: Path) -> None:
    code, _, err = run(chat, str(tiny), "--max-tokens", "2", stdin=b"\xff\xfe what\n")
    assert code == 0
    assert "not valid UTF-8" in err


def test_a_vocabulary_without_the_templates_tokens_is_said(tmp_path: Path) -> None:
    path = write_tiny_gguf(
        tmp_path / "odd.gguf", template="{% for m in messages %}<|im_start|>{{ m.content }}<|eot_id|>{% endfor %}"
    )
    assert "no <|im_start|>, which" in run(generate, str(path), "what class", "--max-tokens", "2")[2]


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def state(tiny: Path) -> ChatState:
    return new_state(tiny)


def new_state(tiny: Path, n_context: int = 2048) -> ChatState:
    engine = ToyEngine(chat_knowledge(REPLIES), n_context=n_context)
    loaded = LoadedModel(open_artifact(tiny), engine, ChatTemplate(CHAT_TEMPLATE, {"bos_token": "<|begin_of_text|>"}))
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    return ChatState(loaded, loaded.chat(), console, open_model=lambda _: loaded)


def shown(state: ChatState) -> str:
    assert isinstance(state.console.file, io.StringIO)
    return state.console.file.getvalue()


def ask(state: ChatState, text: str) -> None:
    for _ in state.conversation.reply(text):
        pass


def test_help_lists_every_command(state: ChatState) -> None:
    run_command(state, "/help")
    for command in COMMANDS:
        assert f"/{command.name}" in shown(state)


def test_commands_change_the_conversation(state: ChatState, tmp_path: Path) -> None:
    ask(state, "Hi")
    ask(state, "And?")
    run_command(state, "/undo")
    assert [turn.user for turn in state.conversation.turns] == ["Hi"]
    run_command(state, "/system Be brief.")
    run_command(state, "/temp 0.5")
    assert (state.conversation.system, state.conversation.settings.temperature) == ("Be brief.", 0.5)
    run_command(state, f"/save {tmp_path / 'talk.json'}")
    assert stat.S_IMODE((tmp_path / "talk.json").stat().st_mode) == 0o600
    run_command(state, "/clear")
    run_command(state, "/system -")
    run_command(state, f"/load {tmp_path / 'talk.json'}")
    assert (len(state.conversation.turns), state.conversation.system) == (1, "Be brief.")
    run_command(state, f"/export {tmp_path / 'talk.md'}")
    assert "Hello **you**." in (tmp_path / "talk.md").read_text()
    run_command(state, "/retry")
    assert (state.send, state.conversation.turns) == ("Hi", [])
    ask(state, "Hi")
    run_command(state, "/edit")
    assert (state.edit, state.conversation.turns) == ("Hi", [])
    state.edit, state.unsent = "", "too long"
    run_command(state, "/edit")
    assert (state.edit, state.unsent) == ("too long", "")
    for line in ("/stats", "/context", "/model", "/show", "/system", "/temp"):
        run_command(state, line)
    run_command(state, "/q")
    assert state.leaving


@pytest.mark.parametrize(
    "line",
    [
        "/nosuch",
        "/",
        "/s",
        "/save",
        "/load missing.json",
        "/temp hot",
        "/temp 11",
        "/temp nan",
        "/drop 1",
        "/drop x",
        "/undo",
        "/edit",
        "/retry",
        "/stats",
    ],
)
def test_a_command_that_cannot_be_done_says_so_and_changes_nothing(state: ChatState, line: str) -> None:
    with pytest.raises(MedliteError):
        run_command(state, line)
    assert (state.conversation.turns, state.conversation.system, state.leaving) == ([], "", False)


def test_a_file_is_not_overwritten_without_force(state: ChatState, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text("mine")
    with pytest.raises(MedliteError, match="exists already"):
        run_command(state, f"/save {path}")
    assert path.read_text() == "mine"
    run_command(state, f"/save {path} --force")
    assert path.read_text() != "mine"


# --- in a terminal ---------------------------------------------------------------------------------------------------


def type_into(state: ChatState, keys: str, *, shade: bool = False) -> str:
    """What the screen shows after `keys` were typed into the chat."""
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        keyboard.send_text(keys)
        talk(state, None, Drawing(shade=shade))
    return shown(state)


def test_typed_questions_are_answered_as_markdown_until_ctrl_d(state: ChatState) -> None:
    screen = type_into(state, "Hi\rList\r\x04")
    assert "Hello you." in screen
    assert " 2 two" in screen
    assert [turn.user for turn in state.conversation.turns] == ["Hi", "List"]
    assert "context" in state.status


def test_alt_enter_makes_a_line_and_tab_completes_a_command(state: ChatState) -> None:
    type_into(state, "one\x1b\rtwo\r/sta\t\r\x04")
    assert state.conversation.turns[0].user == "one\ntwo"
    assert "tokens/s" in shown(state)


def test_an_error_ends_a_command_but_not_the_chat(state: ChatState) -> None:
    screen = type_into(state, "/nosuch\rHi\r\x04")
    assert "no command /nosuch" in screen
    assert "Hello you." in screen


def test_a_reply_cannot_steer_the_terminal(state: ChatState) -> None:
    assert "\x07" not in type_into(state, "Why?\r\x04")
    assert "\x1b[31m" not in shown(state)
    assert printable("a\x1b[2J\tb\n\x9bc\x7f") == "a[2J\tb\nc"


def test_a_second_ctrl_c_at_the_prompt_leaves(state: ChatState) -> None:
    assert "Ctrl-C again leaves" in type_into(state, "\x03\x03")


def test_a_full_context_asks_before_it_drops(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, True])
    monkeypatch.setattr(click, "confirm", lambda *_, **__: next(answers))
    state = new_state(tiny, n_context=120)
    screen = type_into(state, "Hi\rHi\rAnd?\r/retry\r\x04")
    assert "The context is full" in screen
    assert "nothing dropped" in screen
    assert [turn.user for turn in state.conversation.turns] == ["Hi", "And?"]
    assert "this text alone has" in type_into(state, "x" * 200 + "\r\x04")


def test_unsure_tokens_are_shaded(state: ChatState) -> None:
    assert "Hello **you**." in type_into(state, "Hi\r\x04", shade=True)
    assert (shade_of(-0.1), shade_of(-1.0), shade_of(-3.0)) == ("", "yellow", "bold red")


def steps(*texts: str) -> Iterator[GeneratedToken]:
    return (GeneratedToken(0, text, 0.0) for text in texts)


def test_a_long_prompt_tells_how_far_it_is_read() -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})

    def begin(on_prompt: OnPrompt) -> Iterator[GeneratedToken]:
        for n_read in (0, 1024, 4096):
            on_prompt(n_read, 4096)
        yield from steps("Yes", ".")

    for shade in (False, True):
        show_reply(console, begin, Drawing(shade=shade))
        assert isinstance(console.file, io.StringIO)
        screen = console.file.getvalue()
        assert "reading 1,024 of 4,096 tokens" in screen
        assert "Yes." in screen.rsplit("1,024", 1)[1]
        console.file.truncate(0)


def test_thoughts_that_the_template_opened_are_folded_too() -> None:
    console = Console(file=io.StringIO())
    assert "".join(fold_thinking(steps("hm", "</think>", "Yes."), console, inside=True)) == "Yes."
    assert "".join(fold_thinking(steps("hm"), console, inside=True)) == "*(still thinking after 1 tokens)*"


def test_thoughts_are_shown_to_those_who_ask() -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    show_reply(console, lambda _: steps("<think>", "\nhm\n\n", "</think>\n\n", "Yes."), Drawing(fold=False))
    assert isinstance(console.file, io.StringIO)
    assert re.search(r"<think>\s+hm", console.file.getvalue())


def test_what_looks_like_html_is_not_left_out() -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    show_reply(console, lambda _: steps("Take <drug> daily.\n\n<b>Not</b> two.\n\n", "<div>\nthird"), Drawing())
    assert isinstance(console.file, io.StringIO)
    for text in ("Take <drug> daily.", "<b>Not</b> two.", "<div>"):
        assert text in console.file.getvalue()


def test_thinking_is_folded_and_other_text_is_not() -> None:
    console = Console(file=io.StringIO())
    assert "".join(fold_thinking(steps("<th", "ink>", "hm", "</think>\n\n", "Yes", "."), console)) == "Yes."
    assert "".join(fold_thinking(steps("<", "b>bold"), console)) == "<b>bold"
    assert "".join(fold_thinking(steps("<th"), console)) == "<th"
    assert "still thinking" in "".join(fold_thinking(steps("<think>", "hm"), console))
    assert isinstance(console.file, io.StringIO)
    assert "thought for 4 tokens" in console.file.getvalue()


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("a", 0),
        ("a\n\n", 3),
        ("a\n\nb", 3),
        ("```\na\n\nb\n", 0),
        ("```\na\n\nb\n```\n\nc", 14),
        ("\n\n", 0),
        ("a\n \nb\n\nc", 7),
    ],
)
def test_markdown_blocks_are_finished_at_blank_lines_outside_fences(text: str, length: int) -> None:
    assert finished_length(text) == length
