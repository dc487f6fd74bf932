"""The slash commands of a chat: a table, and one function for each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from medlite.chat import LoadedModel
from medlite.chat.conversation import Conversation
from medlite.chat.session import state_path, write_private
from medlite.cli.chat.loss import full_loss, loss_line
from medlite.cli.chat.screen import as_markdown, printable, status_line
from medlite.errors import MedliteError, OutputError
from medlite.files import format_bytes

if TYPE_CHECKING:
    from bench.compare.nearby import Loss

MAX_TEMPERATURE = 10.0
END_OF_TURN_TOKENS = 8  # a template may write so many behind a reply, which the engine has not read


class ChatError(MedliteError):
    """A command that cannot be done as typed."""


@dataclass
class ChatState:
    """What commands act on. send: a text that goes to the model next. edit: a text to put into the input line."""

    loaded: LoadedModel
    conversation: Conversation
    console: Console
    open_model: Callable[[str], LoadedModel]
    find_loss: Callable[[LoadedModel], "list[Loss]"] = lambda loaded: []
    losses: "list[Loss]" = field(default_factory=list)
    unsent: str = ""  # the last text that got no reply
    send: str | None = None
    edit: str = ""
    leaving: bool = False
    saved: bool = True
    status: str = ""  # the line under the prompt

    def refresh_status(self) -> None:
        """Count the context anew; this tokenizes the conversation, so not at every key."""
        self.status = status_line(
            self.loaded, self.conversation, self.conversation.context_used(), self.losses[0] if self.losses else None
        )

    def say(self, text: str) -> None:
        self.console.print(Text(text, style="dim"))


@dataclass(frozen=True)
class ChatCommand:
    """A row of COMMANDS. argument: how /help shows it, in brackets if optional."""

    name: str
    argument: str
    help: str
    run: Callable[[ChatState, str], None]


def run_command(state: ChatState, line: str) -> None:
    """Do what a line that begins with / asks for. Raises MedliteError, with the conversation unchanged."""
    name, _, argument = line[1:].partition(" ")
    matches = [c for c in COMMANDS if c.name == name] or [c for c in COMMANDS if name and c.name.startswith(name)]
    if len(matches) != 1:
        known = ", ".join(f"/{c.name}" for c in matches) if matches else "/help lists all"
        raise ChatError(f"no command /{name}", hint=known)
    chosen, argument = matches[0], argument.strip()
    if not argument and chosen.argument and not chosen.argument.startswith("["):
        raise ChatError(f"/{chosen.name} needs {chosen.argument}")
    chosen.run(state, argument)


def _help(state: ChatState, _: str) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for command in COMMANDS:
        table.add_row(Text(f"/{command.name} {command.argument}".rstrip(), style="bold"), command.help)
    state.console.print(table)


def _model(state: ChatState, argument: str) -> None:
    if not argument:
        artifact, info = state.loaded.artifact, state.loaded.engine.info
        state.say(f"{artifact.name}, {artifact.recipe}, {artifact.path}; {info.engine_version} on {info.device}")
        for loss in state.losses:
            state.say(full_loss(loss))
        return
    new = state.open_model(argument)
    state.loaded.close()
    old, state.loaded = state.conversation, new
    state.losses = state.find_loss(new)
    state.conversation = new.chat(old.system, old.settings)
    state.conversation.turns = old.turns
    state.say(f"now talking with {new.artifact.name}, {new.artifact.recipe}; the conversation is kept")
    for line in (*new.engine.info.warnings, new.prompt_note, loss_line(state.losses, new.artifact)):
        if line:
            state.say(line)


def _system(state: ChatState, argument: str) -> None:
    if not argument:
        state.say(state.conversation.system or "no system text; /system TEXT sets one, /system - removes it")
        return
    if state.conversation.template is None:
        raise ChatError("this model has no chat template, so it takes no system text")
    state.conversation.system = "" if argument == "-" else argument
    state.say("system text removed" if argument == "-" else "system text set; it holds from the next reply on")


def _temp(state: ChatState, argument: str) -> None:
    if argument:
        try:
            temperature = float(argument)
        except ValueError:
            temperature = -1.0
        if not 0 <= temperature <= MAX_TEMPERATURE:
            raise ChatError(f"temperature {argument!r}", hint=f"a number from 0 to {MAX_TEMPERATURE:g}")
        state.conversation.set_temperature(temperature)
    state.say(f"temperature {state.conversation.settings.temperature:g}")


def _stats(state: ChatState, _: str) -> None:
    last = state.conversation.last
    if not last.n_tokens:
        raise ChatError("no reply yet")
    state.say(
        f"prompt {last.n_prompt_tokens} tokens, {last.n_read_tokens} of them read, first token after "
        f"{last.first_token_seconds:.2f} s; reply "
        f"{last.n_tokens} tokens at {last.tokens_per_second:.1f} tokens/s, mean log-probability "
        f"{last.log_probability / last.n_tokens:.2f} nats, ended by {last.finish or 'you'}"
    )


def _retry(state: ChatState, _: str) -> None:
    if state.unsent:
        state.send = state.unsent
        return
    turn = state.conversation.undo()
    if turn is None:
        raise ChatError("nothing to retry")
    if state.conversation.settings.temperature == 0:
        state.say("at temperature 0 the reply stays the same; /temp 0.7 varies it")
    else:
        state.conversation.reseed()
    state.send = turn.user


def _edit(state: ChatState, _: str) -> None:
    if state.unsent:
        state.edit, state.unsent = state.unsent, ""
        return
    turn = state.conversation.undo()
    if turn is None:
        raise ChatError("nothing to edit")
    state.edit = turn.user


def _undo(state: ChatState, _: str) -> None:
    turn = state.conversation.undo()
    if turn is None:
        raise ChatError("nothing to undo")
    state.say(f"took back: {turn.user[:60]}")


def _clear(state: ChatState, _: str) -> None:
    state.conversation.clear()
    state.unsent, state.saved = "", True
    state.say("forgot the conversation; system text and settings stay")


def _save(state: ChatState, argument: str) -> None:
    path, force = _output_path(argument)
    n_kept = state.conversation.save(path, force=force)
    state.saved = True
    kept = state_path(path)
    beside = f"; what was read is in {kept.name} ({format_bytes(kept.stat().st_size)})" if n_kept else ""
    state.say(f"saved {turns_text(len(state.conversation.turns))} to {path}, readable by you only{beside}")


def _load(state: ChatState, argument: str) -> None:
    load_session(state, Path(argument).expanduser())


def load_session(state: ChatState, path: Path) -> None:
    """Continue the conversation saved at `path`, and say whether it must be read again."""
    session, restored = state.conversation.load(path)
    state.saved, state.unsent = True, ""
    other = "" if session.model == state.loaded.engine.info.model_name else f", which were held with {session.model}"
    used = state.conversation.context_used()
    if not restored.n_tokens:
        again = f"the next question reads it again ({restored.reason})"
    elif restored.n_tokens + END_OF_TURN_TOKENS >= used:
        again = "restored, nothing is read again"
    else:
        again = f"restored {restored.n_tokens:,} of {used:,} tokens, the next question reads the rest"
    state.say(f"loaded {turns_text(len(session.turns))}{other}; {again}")


def turns_text(n: int) -> str:
    return "1 turn" if n == 1 else f"{n} turns"


def _export(state: ChatState, argument: str) -> None:
    path, force = _output_path(argument)
    write_private(path, state.conversation.to_markdown(), force=force)
    state.say(f"wrote {path} as Markdown, readable by you only")


def _output_path(argument: str) -> tuple[Path, bool]:
    """The path of /save and /export, and whether `--force` follows it. Raises OutputError if it would overwrite."""
    force = argument.endswith(" --force")
    path = Path(argument.removesuffix(" --force").strip()).expanduser()
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already", hint="another name, or --force after it")
    return path, force


def _context(state: ChatState, _: str) -> None:
    conversation = state.conversation
    total, used = conversation.engine.info.n_context, conversation.context_used()
    state.say(
        f"{used} of {total} tokens used by {len(conversation.turns)} turns; a reply needs "
        f"{conversation.reply_room} free. /drop N forgets the N oldest turns"
    )


def _drop(state: ChatState, argument: str) -> None:
    n_turns = len(state.conversation.turns)
    if not argument.isdigit() or not 1 <= int(argument) <= n_turns:
        raise ChatError(f"/drop {argument}", hint=f"a number from 1 to {n_turns}" if n_turns else "there are no turns")
    state.conversation.drop_oldest(int(argument))
    state.say("forgot the oldest turn" if argument == "1" else f"forgot the {argument} oldest turns")


def _show(state: ChatState, _: str) -> None:
    for turn in state.conversation.turns:
        state.console.print(Text(f"› {printable(turn.user)}", style="bold"))
        state.console.print(as_markdown(printable(turn.reply)))


def _quit(state: ChatState, _: str) -> None:
    state.leaving = True


COMMANDS: tuple[ChatCommand, ...] = (
    ChatCommand("help", "", "list the commands", _help),
    ChatCommand("model", "[NAME]", "show the model, or change it and keep the conversation", _model),
    ChatCommand("system", "[TEXT]", "show or set the system text; - removes it", _system),
    ChatCommand("temp", "[NUMBER]", "show or set the temperature; 0 repeats answers", _temp),
    ChatCommand("stats", "", "speed and length of the last reply", _stats),
    ChatCommand("retry", "", "ask the last question again", _retry),
    ChatCommand("edit", "", "take the last question back into the input line", _edit),
    ChatCommand("undo", "", "take the last question and reply back", _undo),
    ChatCommand("show", "", "show the conversation again", _show),
    ChatCommand("clear", "", "forget the conversation", _clear),
    ChatCommand("save", "FILE", "write the conversation to FILE, readable by you only", _save),
    ChatCommand("load", "FILE", "continue a saved conversation", _load),
    ChatCommand("export", "FILE", "write the conversation as Markdown", _export),
    ChatCommand("context", "", "how full the context is", _context),
    ChatCommand("drop", "N", "forget the N oldest turns", _drop),
    ChatCommand("quit", "", "leave (also Ctrl-D)", _quit),
)
