"""A conversation with an engine: turns, the prompt they make, room in the context, and saving on request."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medlite.chat.session import SavedSession, Turn, read_session, state_path, write_session
from medlite.engines.engine import Engine, GeneratedToken, GenerationSettings, KeepsState, OnPrompt, RestoredState
from medlite.errors import ContextError, MedliteError
from medlite.formats.chat_template import ChatTemplate, Message

REPLY_ROOM = 256  # tokens kept free for a reply, less in a short context


@dataclass
class ReplyStatistics:
    """Of one reply. Times in seconds; first_token_seconds is from the call to the first token.

    n_read_tokens: tokens of the prompt that were not in the cache already.
    """

    n_prompt_tokens: int = 0
    n_read_tokens: int = 0
    n_tokens: int = 0
    first_token_seconds: float = 0.0
    decode_seconds: float = 0.0
    finish: str | None = None
    log_probability: float = 0.0  # sum over the reply's tokens, nats

    @property
    def tokens_per_second(self) -> float:
        """Decode speed: tokens after the first, per second."""
        return (self.n_tokens - 1) / self.decode_seconds if self.n_tokens > 1 and self.decode_seconds > 0 else 0.0


@dataclass
class Conversation:
    """Turns with one engine. Without a template, texts and replies simply follow each other (a base model).

    Nothing is dropped silently: a prompt that does not fit raises ContextError, and `turns_to_drop` says what would
    make it fit.
    """

    engine: Engine
    template: ChatTemplate | None
    system: str = ""
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    turns: list[Turn] = field(default_factory=list)
    last: ReplyStatistics = field(default_factory=ReplyStatistics)
    read: list[int] = field(default_factory=list, repr=False)  # the prompt that the engine read last

    # --- the prompt --------------------------------------------------------------------------------------------------

    def prompt_tokens(self, text: str | None, turns: Sequence[Turn] | None = None) -> list[int]:
        """Tokens of the conversation with `text` as the next user turn; None: of the turns so far."""
        turns = self.turns if turns is None else turns
        if self.template is None:
            return self.engine.tokenize("".join(turn.user + turn.reply for turn in turns) + (text or ""))
        messages = [Message("system", self.system)] if self.system else []
        for turn in turns:
            messages += [Message("user", turn.user), Message("assistant", turn.reply)]
        if text is not None:
            messages.append(Message("user", text))
        if not messages:
            return []
        rendered = self.template.render(messages, add_generation_prompt=text is not None)
        return self.engine.tokenize(rendered, add_bos=False, parse_special=True)

    @property
    def full_settings(self) -> GenerationSettings:
        """The settings, with the texts that end a reply in the template's format."""
        stop = self.template.stop if self.template else ()
        return replace(self.settings, stop=(*self.settings.stop, *stop)) if stop else self.settings

    @property
    def reply_room(self) -> int:
        """Tokens that must be free for a reply to begin."""
        return min(REPLY_ROOM, self.engine.info.n_context // 4, self.settings.max_tokens)

    def fits(self, text: str, turns: Sequence[Turn] | None = None) -> bool:
        """Whether the prompt leaves room for a reply."""
        return len(self.prompt_tokens(text, turns)) + self.reply_room <= self.engine.info.n_context

    def turns_to_drop(self, text: str) -> int | None:
        """How many of the oldest turns must go before `text` fits: 0 if it fits now, None if it never does."""
        for n in range(len(self.turns) + 1):
            if self.fits(text, self.turns[n:]):
                return n
        return None

    def context_used(self) -> int:
        """Tokens of the conversation so far."""
        return len(self.prompt_tokens(None))

    # --- turns -------------------------------------------------------------------------------------------------------

    def reply(self, text: str, on_prompt: OnPrompt | None = None) -> Iterator[GeneratedToken]:
        """Stream the reply to `text` and add the turn, also a partial one if the iterator is closed early.

        on_prompt hears how far the prompt is read. Raises ContextError, with the conversation unchanged, if the prompt
        leaves no room for a reply.
        """
        tokens = self.prompt_tokens(text)
        if len(tokens) + self.reply_room > self.engine.info.n_context:
            raise ContextError(
                f"the conversation has {len(tokens)} tokens and a reply needs {self.reply_room}, "
                f"the context holds {self.engine.info.n_context}",
                hint="drop the oldest turns, shorten the text, or take a larger --context",
            )
        return self._stream(text, tokens, on_prompt)

    def _stream(self, text: str, tokens: list[int], on_prompt: OnPrompt | None) -> Iterator[GeneratedToken]:
        self.last = statistics = ReplyStatistics(n_prompt_tokens=len(tokens))
        self.read = tokens
        pieces: list[str] = []

        def heard(n_read: int, n_total: int) -> None:
            statistics.n_read_tokens = n_read
            if on_prompt is not None:
                on_prompt(n_read, n_total)

        started = time.perf_counter()
        steps = self.engine.generate(tokens, self.full_settings, heard)
        try:
            for step in steps:
                now = time.perf_counter()
                if not statistics.n_tokens:
                    statistics.first_token_seconds = now - started
                statistics.decode_seconds = now - started - statistics.first_token_seconds
                statistics.n_tokens += 1
                statistics.log_probability += step.log_probability
                statistics.finish = step.finish
                pieces.append(step.text)
                yield step
        finally:
            getattr(steps, "close", lambda: None)()
            if statistics.n_tokens:
                self.turns.append(Turn(text, "".join(pieces), statistics.finish))

    def undo(self) -> Turn | None:
        """Take the last turn back and return it."""
        return self.turns.pop() if self.turns else None

    def drop_oldest(self, n: int) -> None:
        del self.turns[:n]

    def clear(self) -> None:
        """Forget all turns; the system text and the settings stay."""
        self.turns.clear()

    def reseed(self) -> None:
        """Let the same question draw another reply."""
        self.settings = replace(self.settings, seed=self.settings.seed + 1)

    def set_temperature(self, temperature: float) -> None:
        self.settings = replace(self.settings, temperature=temperature)

    # --- saving, only when the user asks -----------------------------------------------------------------------------

    def save(self, path: Path, *, force: bool = False) -> int:
        """Write the conversation to `path`, and what the engine keeps of it beside that, readable by their owner only.

        How many tokens need not be read again after `load`; 0 where the engine keeps nothing. Raises OutputError.
        """
        name, temperature = self.engine.info.model_name, self.settings.temperature
        session = SavedSession("medlite chat 1", name, self.system, temperature, tuple(self.turns))
        write_session(path, session, force=force)
        state_path(path).unlink(missing_ok=True)
        if not isinstance(self.engine, KeepsState) or not self._holds_the_conversation():
            return 0
        try:
            return self.engine.save_state(state_path(path))
        except MedliteError:  # nothing was read yet, or the disk is full: the conversation itself is saved
            return 0

    def _holds_the_conversation(self) -> bool:
        """Whether what the engine read last is how this conversation begins, or the other way round.

        It is not after turns were dropped or the system text changed, until the next reply.
        """
        now = self.prompt_tokens(None)
        n = min(len(now), len(self.read))
        return n > 0 and now[:n] == self.read[:n]

    def load(self, path: Path) -> tuple[SavedSession, RestoredState]:
        """Replace turns, system text and temperature by those of a saved file; what it held, and what came back.

        Raises RecordError, with the conversation unchanged.
        """
        session = read_session(path)
        self.turns, self.system = list(session.turns), session.system
        self.set_temperature(session.temperature)
        restored = self._restore(state_path(path))
        self.read = self.prompt_tokens(None) if restored.n_tokens else []
        return session, restored

    def _restore(self, path: Path) -> RestoredState:
        """Bring the engine to where it was when the conversation was saved, where it can."""
        if not isinstance(self.engine, KeepsState):
            return RestoredState(0, "this engine keeps no state")
        if not path.is_file():
            return RestoredState(0, f"{path}: not there")
        try:
            return self.engine.restore_state(path)
        except MedliteError as error:
            return RestoredState(0, str(error))

    def to_markdown(self) -> str:
        """The conversation as a document, for reading."""
        parts = [f"# Conversation with {self.engine.info.model_name}\n"]
        if self.system:
            parts.append(f"**System:** {self.system}\n")
        for turn in self.turns:
            parts.append(f"**You:** {turn.user}\n\n**Model:** {turn.reply}\n")
        return "\n".join(parts)
