"""The steps of a reply: chosen tokens in, streamed text and the reason of the end out.

One rule for every engine that runs here, which they reach through `front.py`.
"""

from collections.abc import Callable

from medlite.engines.engine import GeneratedToken, GenerationSettings
from medlite.engines.text_stream import TextStream


class Reply:
    """A reply of at most `n_left` tokens. piece: the bytes of a token. is_end: whether it ends a turn."""

    def __init__(
        self,
        settings: GenerationSettings,
        n_left: int,
        piece: Callable[[int], bytes],
        is_end: Callable[[int], bool],
        cancelled: Callable[[], bool],
    ) -> None:
        self.n_left = n_left
        self._stream = TextStream(settings.stop)
        self._piece, self._cancelled = piece, cancelled
        self._is_end = is_end if not settings.ignore_end else lambda _token: False

    def step(self, token: int, log_probability: float) -> GeneratedToken:
        """The next step; the last one carries `finish`."""
        self.n_left -= 1
        stream = self._stream
        if self._is_end(token):
            return GeneratedToken(token, stream.flush(), log_probability, "stop")
        text = stream.push(self._piece(token))
        if stream.stopped:
            return GeneratedToken(token, text, log_probability, "stop")
        if self._cancelled():
            return GeneratedToken(token, text + stream.flush(), log_probability, "cancelled")
        if not self.n_left:
            return GeneratedToken(token, text + stream.flush(), log_probability, "length")
        return GeneratedToken(token, text, log_probability)
