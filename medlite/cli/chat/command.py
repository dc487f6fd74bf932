"""`medlite chat`: a conversation in the terminal, or over a pipe."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medlite.cli.loading import LoadOptions, decode_stdin, load_shown, model_options, sampling_options, warn_of_system
from medlite.cli.params import json_option
from medlite.errors import ContextError, MedliteError

if TYPE_CHECKING:
    from rich.console import Console

    from medlite.cli.chat.commands import ChatState
    from medlite.cli.chat.screen import Drawing
    from medlite.engines.engine import GenerationSettings


@click.command(
    epilog="""\b
Examples:
  medlite chat demo
  medlite chat model.gguf --system "Answer in one sentence." --temperature 0.7
  medlite chat model.gguf --kv-type q8_0 --context 16384
  printf 'What is metformin?\\nIts side effects?\\n' | medlite chat model.gguf --json

Nothing is written unless you /save it. It is not a medical device."""
)
@click.argument("model", default="demo")
@click.option("--system", default="", metavar="TEXT", help="Instructions before the conversation.")
@click.option("--confidence", is_flag=True, help="Shade the tokens that the model was unsure of.")
@click.option("--thinking", "shows_thinking", is_flag=True, help="Show <think> blocks instead of folding them.")
@click.option(
    "--history/--no-history",
    "keeps_history",
    default=True,
    help="Keep the lines you type, readable by you only, for the arrow keys of the next chat. Default: yes; "
    "MEDLITE_NO_HISTORY=1 says no.",
)
@click.option(
    "--load", "session_path", type=click.Path(dir_okay=False), metavar="FILE", help="Continue a saved conversation."
)
@json_option("Read lines from stdin, print one JSON object per reply.")
@sampling_options
@model_options
def command(
    model: str,
    system: str,
    confidence: bool,
    shows_thinking: bool,
    keeps_history: bool,
    session_path: str | None,
    as_json: bool,
    settings: "GenerationSettings",
    load_options: LoadOptions,
) -> None:
    """Talk with MODEL, offline.

    MODEL: a .gguf file, an ONNX folder, a name that `medlite models` lists, or demo, the demonstration model.
    """
    from bench.compare.nearby import find_losses
    from medlite.cli import display
    from medlite.cli.chat.commands import ChatState, load_session
    from medlite.cli.chat.screen import Drawing

    drawing = Drawing(shade=confidence, fold=not shows_thinking)
    interactive = sys.stdin.isatty() and not as_json
    loaded = load_shown(model, load_options, quiet=as_json)
    # Over a pipe, stdout holds replies and nothing else.
    state = ChatState(
        loaded,
        loaded.chat(system, settings),
        display.stdout if interactive else display.stderr,
        open_model=lambda text: load_shown(text, load_options, quiet=as_json),
        find_loss=lambda new: [] if as_json else find_losses(new.artifact),
    )
    try:
        state.losses = state.find_loss(loaded)
        history = kept_history(state) if interactive and keeps_history else None
        if not as_json:
            show_banner(state, history)
        warn_of_system(system, takes_none=loaded.template is None)
        if session_path:
            load_session(state, Path(session_path))
        if interactive:
            talk(state, history, drawing)
        else:
            _answer_lines(state, drawing, as_json=as_json)
    finally:
        state.loaded.close()


def kept_history(state: "ChatState") -> Path | None:
    """Where this chat keeps typed lines; None where the user or the environment does not want it, or it cannot be."""
    from medlite.cli.chat.input import default_history, prepare_history

    history = None if state.console.is_dumb_terminal else default_history()
    if history is not None and (wrong := prepare_history(history)):
        state.say(f"typed lines are not kept: {wrong}")
        return None
    return history


def show_banner(state: "ChatState", history: Path | None) -> None:
    """What the user should know before the first question."""
    from medlite.cli.chat.loss import loss_line
    from medlite.cli.chat.screen import banner
    from medlite.files import cache_folder
    from medlite.models.registry import DEMO_NAME

    artifact = state.loaded.artifact
    is_demo = artifact.path.is_relative_to(cache_folder() / DEMO_NAME)
    state.console.print(banner(state.loaded, loss_line(state.losses, artifact), history, is_demo=is_demo))


# --- over a pipe -----------------------------------------------------------------------------------------------------


def _answer_lines(state: "ChatState", drawing: "Drawing", *, as_json: bool) -> None:
    """Each line of stdin is a turn, or a command if it begins with /. One that fails is said, and the next is read.

    Ends with code 1 if any failed.
    """
    failed = False
    for raw in sys.stdin.buffer:
        text = decode_stdin(raw).strip()
        try:
            if text:
                _answer_line(state, text, drawing, as_json=as_json)
        except MedliteError as error:
            failed = True
            if as_json:
                click.echo(json.dumps({"user": text, "error": str(error), "hint": error.hint}, ensure_ascii=False))
            else:
                click.echo(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""), err=True)
        if state.leaving:
            break
    if failed:
        sys.exit(1)


def _answer_line(state: "ChatState", text: str, drawing: "Drawing", *, as_json: bool) -> None:
    from medlite.cli.chat.commands import run_command

    if text.startswith("/"):
        run_command(state, text)
        text, state.send = state.send or "", None
    if text and as_json:
        _print_turn(state, text)
    elif text:
        from medlite.cli.display import stdout

        _reply(state, text, stdout, drawing)


def _print_turn(state: "ChatState", text: str) -> None:
    for _ in state.conversation.reply(text):
        pass
    last = state.conversation.last
    click.echo(
        json.dumps(
            {
                "user": text,
                "reply": state.conversation.turns[-1].reply if last.n_tokens else "",
                "finish": last.finish,
                "n_prompt_tokens": last.n_prompt_tokens,
                "n_tokens": last.n_tokens,
                "first_token_seconds": last.first_token_seconds,
                "tokens_per_second": last.tokens_per_second,
                "mean_log_probability_nats": last.log_probability / last.n_tokens if last.n_tokens else None,
            },
            ensure_ascii=False,
        )
    )


# --- in a terminal ---------------------------------------------------------------------------------------------------


def talk(state: "ChatState", history: Path | None, drawing: "Drawing") -> None:
    """Ask and answer until the user leaves. An error ends a reply, never the chat."""
    from rich.markup import escape

    from medlite.cli.chat.commands import run_command
    from medlite.cli.chat.input import Asker

    ask = Asker(state, history)
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
                _reply(state, text, state.console, drawing)
                state.console.print()
        except MedliteError as error:
            state.console.print(f"[red]error:[/red] {escape(str(error))}")
            if error.hint:
                state.console.print(f"[cyan]hint:[/cyan] {escape(error.hint)}")
        except (KeyboardInterrupt, click.Abort):
            state.say("interrupted")


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
        raise ContextError(
            f"this text alone has {n_tokens} tokens and a reply needs {state.conversation.reply_room}; "
            f"the context holds {total}",
            hint="shorten it, or start with a larger --context",
        )
    turns = "turn" if n == 1 else f"{n} turns"
    state.console.print(
        f"[yellow]The context is full[/yellow] ({total} tokens). The oldest {turns} must go for this to fit."
    )
    if not click.confirm(f"Drop the oldest {turns}?", default=True):
        state.say("nothing sent, nothing dropped; /retry sends it again, /save keeps the conversation")
        return False
    state.conversation.drop_oldest(n)
    return True


def _reply(state: "ChatState", text: str, console: "Console", drawing: "Drawing") -> None:
    """Stream the reply to `text` onto `console`; Ctrl-C stops it and keeps what came."""
    from medlite.cli.chat.screen import show_reply

    conversation = state.conversation
    state.unsent = text
    n_turns = len(conversation.turns)
    inside = conversation.template is not None and conversation.template.starts_thinking
    try:
        show_reply(console, partial(conversation.reply, text), drawing, inside_thinking=inside)
    except KeyboardInterrupt:
        begun = len(conversation.turns) > n_turns
        state.say("stopped" if begun else "stopped before the reply began; /retry asks again")
    if len(conversation.turns) > n_turns:
        state.unsent, state.saved = "", False
    if conversation.last.finish == "length":
        full = conversation.last.n_tokens < conversation.settings.max_tokens
        cut = f"cut after --max-tokens {conversation.settings.max_tokens}"
        state.say("the context is full: the reply is cut here" if full else cut)
