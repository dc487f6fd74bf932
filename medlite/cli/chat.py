"""`medlite chat`: a conversation in the terminal, or over a pipe."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from medlite.cli.generate import load_shown, model_options, sampling_options, sampling_settings
from medlite.errors import ContextError, MedliteError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

    from medlite.cli.chat_commands import ChatState

PROMPT = "› "


@click.command(epilog="""\b
Examples:
  medlite chat demo
  medlite chat model.gguf --system "Answer in one sentence." --temperature 0.7
  medlite chat model.gguf --kv-type q8_0 --context 16384
  printf 'What is metformin?\\nIts side effects?\\n' | medlite chat model.gguf --json

Nothing is written unless you /save it. No medical device, not for diagnosis.""")
@click.argument("model", default="demo")
@click.option("--system", default="", metavar="TEXT", help="Instructions before the conversation.")
@click.option("--confidence", is_flag=True, help="Shade the tokens that the model was unsure of.")
@click.option("--history", "history_path", type=click.Path(dir_okay=False), metavar="FILE",
              help="Keep the lines you type in FILE. Default: in memory only.")
@click.option("--load", "session_path", type=click.Path(dir_okay=False), metavar="FILE",
              help="Continue a saved conversation.")
@click.option("--json", "as_json", is_flag=True, help="Read lines from stdin, print one JSON object per reply.")
@sampling_options
@model_options
def command(model: str, system: str, confidence: bool, history_path: str | None, session_path: str | None,
            as_json: bool, **options: Any) -> None:
    """Talk with MODEL, offline. MODEL: a .gguf file, or demo, the demonstration model."""
    from pathlib import Path

    from medlite.cli import display
    from medlite.cli.chat_commands import ChatState
    from medlite.cli.chat_screen import banner
    from medlite.files import cache_folder
    from medlite.registry import DEMO_NAME

    settings = sampling_settings(options)
    loaded = load_shown(model, quiet=as_json, **options)
    interactive = sys.stdin.isatty() and not as_json
    state = ChatState(loaded, loaded.chat(system, settings), display.stdout,
                      open_model=lambda text: load_shown(text, quiet=as_json, **options))
    try:
        if not as_json:
            demo = loaded.artifact.path.is_relative_to(cache_folder() / DEMO_NAME)
            console = display.stdout if interactive else display.stderr
            console.print(banner(loaded.artifact, loaded.engine.info, demo=demo,
                                 has_template=loaded.template is not None))
        if session_path:
            state.conversation.load(Path(session_path))
        if interactive:
            _talk(state, history_path, shade=confidence)
        else:
            _answer_lines(state, as_json=as_json, shade=confidence)
    finally:
        state.loaded.close()


# --- over a pipe -----------------------------------------------------------------------------------------------------


def _answer_lines(state: "ChatState", *, as_json: bool, shade: bool) -> None:
    """Each line of stdin is a turn, or a command if it begins with /."""
    from medlite.cli.chat_commands import run_command

    for raw in sys.stdin.buffer:
        text = raw.decode("utf-8", errors="replace").strip()
        if not text:
            continue
        if text.startswith("/"):
            run_command(state, text)
            if state.leaving:
                return
            text, state.send = state.send or "", None
            if not text:
                continue
        if as_json:
            _print_turn(state, text)
        else:
            _reply(state, text, shade=shade)


def _print_turn(state: "ChatState", text: str) -> None:
    for _ in state.conversation.reply(text):
        pass
    last = state.conversation.last
    click.echo(json.dumps({
        "user": text, "reply": state.conversation.turns[-1].reply if last.n_tokens else "", "finish": last.finish,
        "n_prompt_tokens": last.n_prompt_tokens, "n_tokens": last.n_tokens,
        "first_token_seconds": last.first_token_seconds, "tokens_per_second": last.tokens_per_second,
        "mean_log_probability_nats": last.log_probability / last.n_tokens if last.n_tokens else None,
    }, ensure_ascii=False))


# --- in a terminal ---------------------------------------------------------------------------------------------------


def _talk(state: "ChatState", history_path: str | None, *, shade: bool) -> None:
    """Ask and answer until the user leaves. An error ends a reply, never the chat."""
    from medlite.cli.chat_commands import run_command

    ask = _Asker(state, history_path)
    interrupted = False
    while not state.leaving:
        try:
            text = state.send if state.send is not None else ask.line().strip()
            state.send = None
        except KeyboardInterrupt:
            if interrupted and _confirm_leaving(state):
                return
            interrupted = True
            state.say("Ctrl-C again leaves, and so does Ctrl-D")
            continue
        except EOFError:
            return
        interrupted = False
        if not text:
            continue
        try:
            if text.startswith("/") and "\n" not in text:
                run_command(state, text)
            elif _make_room(state, text):
                _reply(state, text, shade=shade)
                state.console.print()
        except MedliteError as error:
            state.console.print(f"[red]error:[/red] {_plain(str(error))}")
            if error.hint:
                state.console.print(f"[cyan]hint:[/cyan] {_plain(error.hint)}")
        except (KeyboardInterrupt, click.Abort):
            state.say("interrupted")


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


class _Asker:
    """Reads what the user types: prompt_toolkit in a terminal, plain input() in a dumb one."""

    def __init__(self, state: "ChatState", history_path: str | None) -> None:
        self.state = state
        self.session: PromptSession[str] | None = None
        if not state.console.is_dumb_terminal:
            self.session = _prompt_session(state, history_path)

    def line(self) -> str:
        default, self.state.edit = self.state.edit, ""
        if self.session is None:
            return input(PROMPT)
        self.state.refresh_status()
        return self.session.prompt(PROMPT, default=default)


def _prompt_session(state: "ChatState", history_path: str | None) -> "PromptSession[str]":
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer, Completion
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings

    from medlite.cli.chat_commands import COMMANDS

    class Commands(Completer):
        """Completes a / at the start of the line to a command."""

        def get_completions(self, document: Any, _event: Any) -> Any:
            typed = document.text_before_cursor
            if typed.startswith("/") and " " not in typed:
                for row in COMMANDS:
                    if row.name.startswith(typed[1:]):
                        yield Completion(f"/{row.name}", start_position=-len(typed), display_meta=row.help)

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: Any) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(
        history=FileHistory(history_path) if history_path else InMemoryHistory(), completer=Commands(),
        key_bindings=keys, multiline=True, complete_while_typing=True,
        prompt_continuation=lambda width, _line, _wrap: " " * width,
        bottom_toolbar=lambda: state.status, erase_when_done=False)


def _confirm_leaving(state: "ChatState") -> bool:
    """Whether to leave; asks only if a conversation would be lost."""
    if state.saved or not state.conversation.turns:
        return True
    try:
        return click.confirm("Leave, and lose this conversation?", default=False)
    except click.Abort:
        return True


def _make_room(state: "ChatState", text: str) -> bool:
    """Whether `text` may be sent: it fits, or the user agrees to drop the oldest turns."""
    n = state.conversation.turns_to_drop(text)
    if n == 0:
        return True
    state.unsent = text
    total = state.conversation.engine.info.n_context
    if n is None:
        n_tokens = len(state.conversation.prompt_tokens(text, []))
        raise ContextError(f"this text alone has {n_tokens} tokens and a reply needs {state.conversation.reply_room}; "
                           f"the context holds {total}", hint="shorten it, or start with a larger --context")
    turns = "turn" if n == 1 else f"{n} turns"
    state.console.print(f"[yellow]The context is full[/yellow] ({total} tokens). The oldest {turns} must go "
                        "for this to fit.")
    if not click.confirm(f"Drop the oldest {turns}?", default=True):
        state.say("nothing sent, nothing dropped; /retry sends it again, /save keeps the conversation")
        return False
    state.conversation.drop_oldest(n)
    return True


def _reply(state: "ChatState", text: str, *, shade: bool) -> None:
    """Stream the reply to `text`; Ctrl-C stops it and keeps what came."""
    from medlite.cli.chat_screen import show_reply

    conversation = state.conversation
    state.unsent = text
    n_turns = len(conversation.turns)
    steps = conversation.reply(text)
    try:
        show_reply(state.console, steps, shade=shade)
    except KeyboardInterrupt:
        getattr(steps, "close", lambda: None)()
        begun = len(conversation.turns) > n_turns
        state.say("stopped" if begun else "stopped before the reply began; /retry asks again")
    if len(conversation.turns) > n_turns:
        state.unsent, state.saved = "", False
    if conversation.last.finish == "length":
        full = conversation.last.n_tokens < conversation.settings.max_tokens
        state.say("the context is full: the reply is cut here" if full
                  else f"cut after --max-tokens {conversation.settings.max_tokens}")
