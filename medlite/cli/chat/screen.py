"""How a chat draws: replies as Markdown while they stream, the banner, the status line."""

import math
import re
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

from medlite.cli.chat.loss import short_loss
from medlite.formats.chat_template import THINK_START

if TYPE_CHECKING:
    from pathlib import Path

    from bench.compare.nearby import Loss
    from medlite.chat import LoadedModel
    from medlite.chat.conversation import Conversation
    from medlite.engines.engine import GeneratedToken, OnPrompt

    # Begins a reply; hears how far its prompt is read.
    Begin = Callable[[OnPrompt], Iterator[GeneratedToken]]

REFRESH_SECONDS = 0.08  # drawing takes time from the model, which shares the cores
UNSURE = ((0.2, "bold red"), (0.5, "yellow"))  # probability of a token below which it is shaded
THINK_END = "</think>"
NOT_A_DEVICE = "Not a medical device, not for diagnosis."


CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """`text` without control characters: what a model says must not steer the terminal."""
    return CONTROLS.sub("", text)


@contextmanager
def quiet_keys() -> Iterator[None]:
    """Keep the terminal from echoing keys (^C too) into what is being drawn; what is typed waits for the next line."""
    try:
        before = termios.tcgetattr(sys.stdin)
    except (OSError, ValueError, termios.error):
        yield
        return
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def as_markdown(text: str) -> Markdown:
    """`text` to draw. What looks like HTML is drawn as it stands; rich would leave it out without a word."""
    from markdown_it import MarkdownIt

    drawn = Markdown(text)
    parser = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").enable("table")
    drawn.parsed = parser.parse(text)
    return drawn


class Tail:
    """The end of a Markdown text, cropped to the screen's height: a live display must not scroll."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(as_markdown(self.text), options.update(height=None), pad=False)
        for line in lines[-max(1, console.size.height - 2) :]:
            yield from line
            yield Segment.line()


class MarkdownStream:
    """Draws text as Markdown while it grows: finished blocks are printed for good, the last one is redrawn.

    Until the first text it tells how far the prompt is read.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._rest = ""
        self._drawn = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="visible")

    def __enter__(self) -> "MarkdownStream":
        self._live.start()
        self._live.update(Text("reading …", style="dim"), refresh=True)
        return self

    def on_prompt(self, n_read: int, n_total: int) -> None:
        self._live.update(reading_line(n_read, n_total), refresh=True)

    def push(self, text: str) -> None:
        self._rest += text
        n_finished = finished_length(self._rest) if "\n" in text else 0
        if n_finished:
            block, self._rest = self._rest[:n_finished], self._rest[n_finished:]
            self._live.update(Text(), refresh=True)
            self.console.print(as_markdown(block))
            self.console.print()
        now = time.monotonic()
        if n_finished or now - self._drawn >= REFRESH_SECONDS:
            self._live.update(Tail(self._rest), refresh=True)
            self._drawn = now

    def __exit__(self, *_: object) -> None:
        self._live.update(Text(), refresh=True)
        self._live.stop()
        if self._rest.strip():
            self.console.print(as_markdown(self._rest))


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


def reading_line(n_read: int, n_total: int) -> Text:
    """How far a prompt is read."""
    return Text(f"reading {n_read:,} of {n_total:,} tokens" if n_read < n_total else "…", style="dim")


@dataclass(frozen=True)
class Drawing:
    """How replies are drawn. shade: tokens in the colour of their probability instead of Markdown. fold: a <think>
    block as one line.
    """

    shade: bool = False
    fold: bool = True


def show_reply(console: Console, begin: "Begin", drawing: Drawing, *, inside_thinking: bool = False) -> None:
    """Draw a reply as it comes. inside_thinking: the template has opened a <think> block already."""
    if not console.is_terminal or console.is_dumb_terminal:
        for step in begin(lambda n_read, n_total: None):
            console.file.write(printable(step.text) if console.is_terminal else step.text)
            console.file.flush()
        console.file.write("\n")
    elif drawing.shade:
        with quiet_keys():
            show_shaded(console, begin)
    else:
        with quiet_keys(), MarkdownStream(console) as stream:
            steps = begin(stream.on_prompt)
            for text in (
                fold_thinking(steps, console, inside=inside_thinking) if drawing.fold else (step.text for step in steps)
            ):
                stream.push(printable(text))


def show_shaded(console: Console, begin: "Begin") -> None:
    """Draw a reply's tokens in the colour of their probability."""
    with Live(console=console, auto_refresh=False, transient=True) as live:
        steps = begin(lambda n_read, n_total: live.update(reading_line(n_read, n_total), refresh=True))
        first = next(steps, None)
        live.update(Text(), refresh=True)
    for step in () if first is None else chain((first,), steps):
        console.print(Text(printable(step.text), style=shade_of(step.log_probability)), end="", soft_wrap=True)
    console.print()


def shade_of(log_probability: float) -> str:
    """The style of a token by its probability."""
    return next((style for limit, style in UNSURE if math.exp(log_probability) < limit), "")


def fold_thinking(steps: "Iterator[GeneratedToken]", console: Console, *, inside: bool = False) -> Iterator[str]:
    """The texts of a reply; a <think> block at its start is folded into one dim line that tells its length.

    inside: the template has opened the block already.
    """
    state, held, n_tokens = "thinking" if inside else "undecided", "", 0
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


def banner(loaded: "LoadedModel", loss: str, history: "Path | None", *, is_demo: bool) -> Text:
    """What the user should know before the first question. history: where typed lines are kept, None if nowhere."""
    artifact, info = loaded.artifact, loaded.engine.info
    text = Text()
    text.append(artifact.name, style="bold")
    threads = "1 thread" if info.n_threads == 1 else f"{info.n_threads} threads"
    text.append(
        f"  {artifact.recipe}, {artifact.bits_per_weight:.2f} bits per weight; {info.device} "
        f"({info.device_name}, {threads}), context {info.n_context} tokens\n"
    )
    if loss:
        text.append(f"{loss}\n")
    text.append(NOT_A_DEVICE, style="bold yellow")
    if is_demo:
        text.append(" A demonstration model: it knows a few hundred facts, and makes up the rest.", style="yellow")
    if loaded.prompt_note:
        text.append(f"\n{loaded.prompt_note}", style="yellow")
    lines = f", typed lines are kept in {history} (--no-history)" if history else ""
    text.append(
        f"\nThe conversation is not written unless you /save it{lines}. /help lists the commands, Alt-Enter "
        "makes a new line, Ctrl-C stops a reply, Ctrl-D leaves.",
        style="dim",
    )
    return text


def status_line(loaded: "LoadedModel", conversation: "Conversation", n_used: int, loss: "Loss | None" = None) -> str:
    """Model, recipe, measured loss, context and speed, for the line under the prompt."""
    parts = [
        loaded.artifact.name,
        loaded.artifact.recipe,
        *([short_loss(loss)] if loss else []),
        f"context {n_used:,} of {conversation.engine.info.n_context:,}",
    ]
    if conversation.last.tokens_per_second:
        parts.append(f"{conversation.last.tokens_per_second:.1f} tokens/s")
    if conversation.settings.temperature:
        parts.append(f"temperature {conversation.settings.temperature:g}")
    return " · ".join(parts)
