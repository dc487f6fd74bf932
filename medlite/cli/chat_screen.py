"""How a chat draws: replies as Markdown while they stream, the banner, the status line."""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

if TYPE_CHECKING:
    from medlite.artifact import Artifact
    from medlite.chat.conversation import Conversation
    from medlite.engines.engine import EngineInfo, GeneratedToken

REFRESH_SECONDS = 0.08           # drawing takes time from the model, which shares the cores
UNSURE = ((0.2, "bold red"), (0.5, "yellow"))   # probability of a token below which it is shaded
THINK_START, THINK_END = "<think>", "</think>"
NOT_A_DEVICE = "Not a medical device, not for diagnosis."


CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """`text` without control characters: what a model says must not steer the terminal."""
    return CONTROLS.sub("", text)


@contextmanager
def quiet_keys() -> Iterator[None]:
    """Keep the terminal from echoing keys (^C too) into what is being drawn; what is typed waits for the next line."""
    try:
        import termios

        before = termios.tcgetattr(sys.stdin)
    except (ImportError, OSError, ValueError, termios.error):
        yield
        return
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


class Tail:
    """The end of a Markdown text, cropped to the screen's height: a live display must not scroll."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(Markdown(self.text), options.update(height=None), pad=False)
        for line in lines[-max(1, console.size.height - 2):]:
            yield from line
            yield Segment.line()


class MarkdownStream:
    """Draws text as Markdown while it grows: finished blocks are printed for good, the last one is redrawn."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._rest = ""
        self._drawn = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="visible")

    def __enter__(self) -> "MarkdownStream":
        self._live.start()
        self._live.update(Text("reading …", style="dim"), refresh=True)
        return self

    def push(self, text: str) -> None:
        self._rest += text
        n_finished = finished_length(self._rest) if "\n" in text else 0
        if n_finished:
            block, self._rest = self._rest[:n_finished], self._rest[n_finished:]
            self._live.update(Text(), refresh=True)
            self.console.print(Markdown(block))
            self.console.print()
        now = time.monotonic()
        if n_finished or now - self._drawn >= REFRESH_SECONDS:
            self._live.update(Tail(self._rest), refresh=True)
            self._drawn = now

    def __exit__(self, *_: object) -> None:
        self._live.update(Text(), refresh=True)
        self._live.stop()
        if self._rest.strip():
            self.console.print(Markdown(self._rest))


def finished_length(text: str) -> int:
    """Characters up to the last blank line that stands outside a code fence: those blocks change no more."""
    finished = at = 0
    fence = ""
    for line in text.splitlines(keepends=True):
        at += len(line)
        mark = line.lstrip()[:3]
        if mark in ("```", "~~~"):
            if not fence:
                fence = mark
            elif mark == fence:
                fence = ""
        elif not fence and not line.strip() and line.endswith("\n") and text[:at].strip():
            finished = at
    return finished


def show_reply(console: Console, steps: "Iterator[GeneratedToken]", *, shade: bool) -> None:
    """Draw a reply as it comes. shade: colour tokens by their probability instead of Markdown."""
    if shade:
        for step in steps:
            console.print(Text(printable(step.text), style=shade_of(step.log_probability)), end="", soft_wrap=True)
        console.print()
    elif console.is_terminal and not console.is_dumb_terminal:
        with quiet_keys(), MarkdownStream(console) as stream:
            for text in fold_thinking(steps, console):
                stream.push(printable(text))
    else:
        for step in steps:
            console.file.write(printable(step.text) if console.is_terminal else step.text)
            console.file.flush()
        console.file.write("\n")


def shade_of(log_probability: float) -> str:
    """The style of a token by its probability."""
    import math

    return next((style for limit, style in UNSURE if math.exp(log_probability) < limit), "")


def fold_thinking(steps: "Iterator[GeneratedToken]", console: Console) -> Iterator[str]:
    """The texts of a reply; a <think> block at its start is folded into one dim line that tells its length."""
    state, held, n_tokens = "undecided", "", 0
    for step in steps:
        if state == "plain":
            yield step.text
            continue
        held += step.text
        n_tokens += 1
        begun = held.lstrip()
        if state == "undecided":
            if len(begun) < len(THINK_START) and THINK_START.startswith(begun):
                continue
            state = "thinking" if begun.startswith(THINK_START) else "plain"
            if state == "plain":
                yield held
        if state == "thinking" and THINK_END in held:
            console.print(Text(f"(thought for {n_tokens} tokens)", style="dim"))
            state = "plain"
            yield held.split(THINK_END, 1)[1].lstrip()
    if state == "undecided":
        yield held
    elif state == "thinking":
        yield f"*(still thinking after {n_tokens} tokens)*"


def banner(artifact: "Artifact", info: "EngineInfo", *, demo: bool, has_template: bool) -> Text:
    """What the user should know before the first question."""
    text = Text()
    text.append(f"{artifact.name}", style="bold")
    threads = "1 thread" if info.n_threads == 1 else f"{info.n_threads} threads"
    text.append(f"  {artifact.recipe}, {artifact.bits_per_weight:.2f} bits per weight; {info.device} "
                f"({info.device_name}, {threads}), context {info.n_context} tokens\n")
    text.append(NOT_A_DEVICE, style="bold yellow")
    if demo:
        text.append(" A demonstration model: it knows a few hundred facts, and makes up the rest.", style="yellow")
    if not has_template:
        text.append("\nThis model has no chat template: it continues your text, and does not answer as an assistant.",
                    style="yellow")
    text.append("\nNothing is written unless you /save it. /help lists the commands, Alt-Enter makes a new line, "
                "Ctrl-C stops a reply, Ctrl-D leaves.", style="dim")
    return text


def status_line(artifact: "Artifact", conversation: "Conversation", n_used: int) -> str:
    """Model, recipe, context and speed, for the line under the prompt."""
    parts = [artifact.name, artifact.recipe, f"context {n_used} of {conversation.engine.info.n_context}"]
    if conversation.last.tokens_per_second:
        parts.append(f"{conversation.last.tokens_per_second:.1f} tokens/s")
    if conversation.settings.temperature:
        parts.append(f"temperature {conversation.settings.temperature:g}")
    return " · ".join(parts)
