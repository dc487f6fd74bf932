"""How long a context is taken: what the training allows, and what the weights leave free."""

from collections.abc import Callable
from dataclasses import dataclass

from medlite.errors import EngineError, MemoryShortError
from medlite.files import format_bytes

SMALLEST_CONTEXT = 512
DEFAULT_CONTEXT_LIMIT = 32768  # more is taken when asked for; a KV cache is written once at load, whether used or not
DEFAULT_CONTEXT_SHARE = 0.25  # of the memory that the weights leave free
RESERVE_BYTES = 256 << 20  # left to the system


@dataclass(frozen=True)
class ContextNeeds:
    """What a model takes, in bytes. total, cache: of all, and of the key-value cache alone, for a number of tokens.

    n_trained: the context of its training, 0 if unknown. per_token: of the cache. step: a context that memory limits
    is a multiple of it. cache_hint: how to make the cache smaller, empty if nothing does.
    """

    n_trained: int
    weights: int
    total: Callable[[int], int]
    cache: Callable[[int], int]
    per_token: int
    step: int = 1
    cache_hint: str = ""


def choose_context(needs: ContextNeeds, wanted: int | None, free_bytes: int) -> int:
    """Tokens that one sequence may hold: `wanted`, or what the training and a share of the free memory allow.

    Raises MemoryShortError if the weights, or the wanted context, do not fit into free_bytes; EngineError if more
    is wanted than the model was trained for.
    """
    trained = needs.n_trained
    if wanted is not None and (wanted < 1 or 0 < trained < wanted):
        known = f", the model was trained for {trained}" if trained else ""
        raise EngineError(f"a context of {wanted} tokens{known}", hint=f"--context {trained or SMALLEST_CONTEXT}")
    smallest = min(wanted or trained or SMALLEST_CONTEXT, SMALLEST_CONTEXT)
    usable = free_bytes - RESERVE_BYTES
    if needs.total(smallest) > usable:
        raise MemoryShortError(
            f"the model needs {format_bytes(needs.total(smallest))} ({format_bytes(needs.weights)} of weights), "
            f"{format_bytes(max(usable, 0))} are free",
            hint="close other programs, or take a smaller recipe: medlite quantize --recipe Q4_K_M",
        )

    def tokens_in(n_bytes: float) -> int:
        return int(n_bytes) // max(needs.per_token, 1)

    if wanted is not None:
        total, cache = needs.total(wanted), needs.cache(wanted)
        if total > usable:
            fits = max(smallest, tokens_in(usable - (total - cache)) // needs.step * needs.step)
            raise MemoryShortError(
                f"a context of {wanted} tokens needs {format_bytes(cache)} of KV cache, {format_bytes(total)} in all; "
                f"{format_bytes(usable)} are free",
                hint=f"--context {fits}" + (f", or {needs.cache_hint}" if needs.cache_hint else ""),
            )
        return wanted
    spare = usable - (needs.total(smallest) - needs.cache(smallest))
    by_memory = tokens_in(DEFAULT_CONTEXT_SHARE * spare)
    limit = min(trained or DEFAULT_CONTEXT_LIMIT, DEFAULT_CONTEXT_LIMIT)
    return limit if by_memory >= limit else max(smallest, by_memory // needs.step * needs.step)
