"""What every engine that runs here does alike: the checks, the lock, the grammar, and the steps of a reply.

An engine says how logits are read; who may ask, what is refused, and how a reply is cut into steps is decided here.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np

from medlite.engines.access import Access
from medlite.engines.engine import EngineInfo, GeneratedToken, GenerationSettings, Logits, LogitsRequest, OnPrompt
from medlite.engines.grammar import Grammar, TokenTable
from medlite.engines.reply import Reply
from medlite.engines.requests import check_logits_request, checked_prompt
from medlite.engines.sampler import PENALTY_WINDOW, Sampler
from medlite.errors import EngineError

# Yields a reply to the tokens of a prompt. It reads the prompt and reports that to the last argument.
Write: TypeAlias = Callable[[list[int], Sampler, Reply, OnPrompt], Iterator[GeneratedToken]]


class Front:
    """The front of one engine. Its calls hold the engine until their iterator is exhausted or closed."""

    def __init__(
        self,
        info: EngineInfo,
        new_piece: Callable[[], Callable[[int], bytes]],
        is_end: Callable[[int], bool],
        new_table: Callable[[], TokenTable],
    ) -> None:
        """new_piece: makes what turns the tokens of one reply, in their order, into bytes. is_end: of a turn.

        new_table: makes the table that grammars need, once the first is asked for; raises EngineError if it cannot.
        """
        self.access = Access()
        self._info, self._new_piece, self._is_end, self._new_table = info, new_piece, is_end, new_table

    def logits(
        self, requests: Sequence[LogitsRequest], read: Callable[[list[LogitsRequest]], Iterator[Logits]]
    ) -> Iterator[Logits]:
        """What `read` yields for `requests`. Raises ContextError or EngineError before any work."""
        self.access.check_open()
        asked = list(requests)
        for number, request in enumerate(asked):
            check_logits_request(number, request, self._info)
        return self._read(asked, read)

    def _read(
        self, requests: list[LogitsRequest], read: Callable[[list[LogitsRequest]], Iterator[Logits]]
    ) -> Iterator[Logits]:
        with self.access.exclusive():
            for rows in read(requests):
                if not np.isfinite(rows.max(axis=1, initial=0)).all():
                    raise EngineError(
                        "the model returned NaN or infinite logits",
                        hint="the weights may be damaged: medlite verify; or the recipe or dtype too low for it",
                    )
                yield rows
                self.access.check_open()

    def generate(
        self, tokens: Sequence[int], settings: GenerationSettings, on_prompt: OnPrompt | None, write: Write
    ) -> Iterator[GeneratedToken]:
        """What `write` yields. Raises ContextError or EngineError before any work."""
        self.access.check_open()
        prompt = checked_prompt(tokens, self._info)
        grammar = None if settings.grammar is None else Grammar(self._token_table, settings.grammar)
        sampler = Sampler(settings, prompt[-PENALTY_WINDOW:], grammar)
        return self._write(prompt, sampler, on_prompt or (lambda _read, _total: None), write)

    @cached_property
    def _token_table(self) -> TokenTable:
        return self._new_table()

    def _write(
        self, tokens: list[int], sampler: Sampler, on_prompt: OnPrompt, write: Write
    ) -> Iterator[GeneratedToken]:
        with self.access.exclusive():
            n_left = min(sampler.settings.max_tokens, self._info.n_context - len(tokens))
            if n_left > 0:
                reply = Reply(sampler.settings, n_left, self._new_piece(), self._is_end, self.access.cancelled)
                yield from write(tokens, sampler, reply, on_prompt)

    def steps(
        self, sampler: Sampler, reply: Reply, logits: Logits, read_next: Callable[[int], Logits]
    ) -> Iterator[GeneratedToken]:
        """The reply, token by token. logits: behind the prompt. read_next: those behind one more token."""
        while True:
            step = reply.step(*sampler.choose(logits))
            yield step
            self.access.check_open()
            if step.finish:
                return
            logits = read_next(step.token)
