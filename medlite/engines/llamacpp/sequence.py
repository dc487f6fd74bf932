"""A llama.cpp context and what its sequence 0 holds: reading tokens into it and cutting it back to a prefix.

Generations continue sequence 0; a prompt that shares its beginning is read from where they part.
"""

from collections.abc import Callable, Sequence

import numpy as np

from medlite.engines import prefix
from medlite.engines.engine import OnPrompt
from medlite.engines.llamacpp.interrupt import noted_interrupt
from medlite.engines.llamacpp.native import Batch, Context, Model
from medlite.errors import EngineError


class ResidentSequence:
    """Sequence 0 of a context. tokens: what it holds. n_decodes, n_tokens_read: what was computed so far."""

    def __init__(self, model: Model, context: Context) -> None:
        self.model, self.context = model, context
        self.n_batch = context.n_batch
        self.batch = Batch(self.n_batch)
        self.tokens: list[int] = []
        self.n_decodes = self.n_tokens_read = 0

    def read_prompt(self, tokens: Sequence[int], on_prompt: OnPrompt, cancelled: Callable[[], bool]) -> bool:
        """Bring the sequence to `tokens`, reading only what it lacks; False if cancelled meanwhile.

        The last token is always read, since its logits are needed: they are at `last_slot`. On Ctrl-C raises
        KeyboardInterrupt and leaves the sequence whole.
        """
        n_shared = prefix.shared_length(np.asarray(tokens[:-1], dtype=np.int32), np.asarray(self.tokens, np.int32))
        self.rewind(n_shared)
        n_before = len(self.tokens)
        new = np.asarray(tokens[n_before:], dtype=np.int32)
        positions = np.arange(n_before, len(tokens), dtype=np.int32)
        wanted = positions == len(tokens) - 1
        on_prompt(0, len(new))
        for start in range(0, len(new), self.n_batch):
            piece = slice(start, start + self.n_batch)
            self.batch.fill(new[piece], positions[piece], wanted[piece])
            if not self._decode_interruptibly(cancelled):
                return False
            self.tokens += new[piece].tolist()
            on_prompt(len(self.tokens) - n_before, len(new))
        return True

    @property
    def last_slot(self) -> int:
        """The batch's last token."""
        return int(self.batch.struct.n_tokens) - 1

    def read(self, tokens: Sequence[int]) -> None:
        """Read tokens behind the sequence; the logits after token i of them are at slot i. At most n_batch."""
        if len(tokens) == 1:
            self.batch.fill_one(tokens[0], len(self.tokens))
        else:
            end = len(self.tokens) + len(tokens)
            self.batch.fill(
                tokens, np.arange(len(self.tokens), end, dtype=np.int32), np.ones(len(tokens), dtype=np.bool_)
            )
        self.decode()
        self.tokens += tokens

    def rewind(self, n_tokens: int) -> None:
        """Cut the sequence back to its first `n_tokens`; to nothing where the model's memory cannot be cut."""
        # A Ctrl-C right after a decode leaves tokens in the cache that `tokens` does not know.
        if n_tokens < len(self.tokens) or self.context.length(0) != len(self.tokens):
            if n_tokens and self.model.can_rewind and self.context.remove(0, n_tokens):
                del self.tokens[n_tokens:]
            else:
                self.forget()

    def forget(self) -> None:
        """Empty the context, other sequences included."""
        self.context.clear()
        self.tokens.clear()

    def decode(self) -> bool:
        """Read the batch as it is; False if it was aborted. Raises EngineError; the context is then empty."""
        self.n_decodes += 1
        self.n_tokens_read += int(self.batch.struct.n_tokens)
        try:
            return self.context.decode(self.batch)
        except EngineError:
            self.forget()
            raise

    def _decode_interruptibly(self, cancelled: Callable[[], bool]) -> bool:
        """Read the batch; once cancelled return False, on Ctrl-C raise KeyboardInterrupt, and leave the cache whole."""
        with noted_interrupt() as interrupted:
            self.context.abort_when(lambda: interrupted() or cancelled())
            try:
                finished = self.decode()
            finally:
                self.context.abort_when(None)
            if not finished:  # what was read of this batch goes; llama.cpp removes only the part it stopped in
                n_whole = len(self.tokens)
                if not (n_whole and self.model.can_rewind and self.context.remove(0, n_whole)):
                    self.forget()
        return finished and not cancelled()
