"""Bytes of tokens in, text that is safe to show out: whole characters only, and nothing of a stop text."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns the pieces of a generation into text. After `stopped` is set, nothing more comes.

    A character may span tokens, so incomplete UTF-8 waits for its rest; bytes that can never become a character
    turn into U+FFFD. A stop text may span tokens too, so a suffix that could still become one is held back.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stop = tuple(text for text in stop if text)
        self.stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def push(self, piece: bytes) -> str:
        """The text that may be shown after `piece`; empty while all of it waits."""
        return self._release(self._decoder.decode(piece))

    def flush(self) -> str:
        """What was held back, once no more pieces come."""
        text = self._release(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        if not self.stop:
            return text
        text = self._held + text
        starts = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        if starts:
            self.stopped, self._held = True, ""
            return text[: min(starts)]
        n_held = self._n_possible_stop(text)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def _n_possible_stop(self, text: str) -> int:
        """Length of the longest suffix of `text` that begins a stop text."""
        longest = min(len(text), max(len(stop) for stop in self.stop) - 1)
        for n in range(longest, 0, -1):
            suffix = text[-n:]
            if any(stop.startswith(suffix) for stop in self.stop):
                return n
        return 0
