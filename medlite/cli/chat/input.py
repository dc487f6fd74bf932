"""Reads what the user types: prompt_toolkit in a terminal, plain input() in a dumb one; keeps the lines if wanted."""

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlite.cli.chat.commands import COMMANDS, ChatState
from medlite.files import state_folder

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History

PROMPT = "› "
NO_HISTORY = "MEDLITE_NO_HISTORY"


def default_history() -> Path | None:
    """Where typed lines are kept: the user's state folder (XDG), or nowhere where the environment says so."""
    if os.environ.get(NO_HISTORY, "").lower() not in ("", "0", "false", "no"):
        return None
    return state_folder() / "history"


def prepare_history(path: Path) -> str:
    """Make the file readable by its owner only; what is wrong if it cannot be kept, else an empty text."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        path.chmod(0o600)
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    return ""


class Asker:
    """The line editor of a chat. history: the file of typed lines, None to keep them in memory only."""

    def __init__(self, state: ChatState, history: Path | None) -> None:
        self.state = state
        self.session: PromptSession[str] | None = None
        if not state.console.is_dumb_terminal:
            self.session = _prompt_session(state, history)

    def line(self) -> str:
        """What the user types next. Raises EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C."""
        default, self.state.edit = self.state.edit, ""
        if self.session is None:
            return input(PROMPT)
        self.state.refresh_status()
        return self.session.prompt(PROMPT, default=default)


def _history(path: Path | None) -> "History":
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class KeptLines(FileHistory):
        """Lines in a file; a disk that is full costs the line, not the chat."""

        def store_string(self, string: str) -> None:
            with suppress(OSError):
                super().store_string(string)

    return KeptLines(str(path)) if path else InMemoryHistory()


def _prompt_session(state: ChatState, history: Path | None) -> "PromptSession[str]":
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer, Completion
    from prompt_toolkit.key_binding import KeyBindings

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
        history=_history(history),
        completer=Commands(),
        key_bindings=keys,
        multiline=True,
        complete_while_typing=True,
        prompt_continuation=lambda width, _line, _wrap: " " * width,
        bottom_toolbar=lambda: state.status,
        erase_when_done=False,
    )
