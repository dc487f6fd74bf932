"""What is asked of an engine, checked before any work, and cut into windows that memory can hold."""

import itertools
from collections.abc import Iterator, Sequence

from medlite.engines.engine import EngineInfo, LogitsRequest
from medlite.errors import ContextError, EngineError

WINDOW_REQUESTS = 64  # requests planned together: enough to share prefixes, few enough to report progress
WINDOW_BYTES = 256 << 20  # of logits held until their turn


def checked_token(token: int, info: EngineInfo) -> int:
    """`token`, if the vocabulary has it; else EngineError."""
    if not 0 <= token < info.n_vocab:
        raise EngineError(f"token {token} is outside the vocabulary of {info.n_vocab}")
    return token


def check_logits_request(number: int, request: LogitsRequest, info: EngineInfo) -> None:
    """Raise ContextError for a sequence that is too long, EngineError for a position or token that is not there."""
    n, positions = len(request.tokens), request.positions
    if n > info.n_context:
        raise ContextError(
            f"request {number}: {n} tokens, the context holds {info.n_context}",
            hint=f"--context {n} or more, if the model and the memory allow it",
        )
    if any(b <= a for a, b in itertools.pairwise(positions)) or (
        positions and not 0 <= positions[0] <= positions[-1] < n
    ):
        raise EngineError(f"request {number}: positions {positions[:4]}... must ascend within its {n} tokens")
    if n and not 0 <= min(request.tokens) <= max(request.tokens) < info.n_vocab:
        raise EngineError(f"request {number}: a token is outside the vocabulary of {info.n_vocab}")


def checked_prompt(tokens: Sequence[int], info: EngineInfo) -> list[int]:
    """The prompt as a list. Raises ContextError if it leaves no room for one token, EngineError if it is no prompt."""
    if not tokens:
        raise EngineError("an empty prompt", hint="give at least one token; tokenize adds the first one by default")
    if len(tokens) >= info.n_context:
        raise ContextError(
            f"the prompt has {len(tokens)} tokens, the context holds {info.n_context}",
            hint="shorten it, or take a larger --context if the model allows it",
        )
    return [checked_token(token, info) for token in tokens]


def windows(requests: Sequence[LogitsRequest], n_vocab: int) -> Iterator[list[LogitsRequest]]:
    """Consecutive requests whose logits may be held at once; at least one."""
    window: list[LogitsRequest] = []
    n_bytes = 0
    for request in requests:
        size = 4 * n_vocab * len(request.positions)
        if window and (len(window) == WINDOW_REQUESTS or n_bytes + size > WINDOW_BYTES):
            yield window
            window, n_bytes = [], 0
        window.append(request)
        n_bytes += size
    if window:
        yield window
