"""How a run is done: what the user chose, kept in every record."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from medlite.errors import RecordError
from medlite.formats.json import convert_value

CONTEXT_TOKENS = 4096  # holds every prompt of the task table, five-shot MMLU included
MAX_TOKENS = 256  # 2 kB a question; at a vocabulary of 128 k the tail of a peaked answer is then below 1e-3


@dataclass(frozen=True)
class Prompting:
    """What is asked, and in which words: only runs that agree here can be compared.

    limit 0 is every sample; a limit draws a seeded sample without replacement, kept in order. n_orders: in how many
    orders of its options each question is asked, see `bench.ask.orders`.
    """

    protocol: str = "letters"
    n_shots: int = 0
    limit: int = 0
    seed: int = 0
    n_orders: int = 1


@dataclass(frozen=True)
class Runtime:
    """What runs the model. engine: empty for the one that runs the artifact's format.

    dtype: of the torch engine; empty for float32 on CPU and the checkpoint's own on CUDA. n_context 0: CONTEXT_TOKENS,
    or the model's own if that is less. n_threads 0: the engine's choice.
    """

    engine: str = ""
    device: str = "auto"
    dtype: str = ""
    n_context: int = 0
    n_threads: int = 0


@dataclass(frozen=True)
class Server:
    """Of the openai engine. url: the address, empty for a model on this machine. model: its name at the server.
    n_parallel: requests under way at once."""

    url: str = ""
    model: str = ""
    n_parallel: int = 1


@dataclass(frozen=True)
class RunSettings:
    """How to run. max_tokens: kept per distribution, see `distributions.compact`; 0 is exact.

    n_group: questions that the engine gets in one call, to share their prefixes; a resumed run begins at a group, so
    that it gives the same bits. reply_tokens: longest reply of the chat protocol. margin_points: accuracy loss, in
    percentage points, that the user declared tolerable before the run.
    """

    prompting: Prompting = field(default_factory=Prompting)
    runtime: Runtime = field(default_factory=Runtime)
    server: Server = field(default_factory=Server)
    max_tokens: int = MAX_TOKENS
    n_group: int = 128
    reply_tokens: int = 64
    margin_points: float = 1.0
    measure_speed: bool = True

    def with_context(self, n_context: int) -> "RunSettings":
        """The same with another length of the context."""
        return replace(self, runtime=replace(self.runtime, n_context=n_context))


# key in a record, in the order of the file -> the part that holds it and its name there. Records are flat.
KEYS: dict[str, tuple[str, str]] = {
    "protocol": ("prompting", "protocol"),
    "n_shots": ("prompting", "n_shots"),
    "limit": ("prompting", "limit"),
    "seed": ("prompting", "seed"),
    "engine": ("runtime", "engine"),
    "device": ("runtime", "device"),
    "dtype": ("runtime", "dtype"),
    "n_context": ("runtime", "n_context"),
    "n_threads": ("runtime", "n_threads"),
    "max_tokens": ("", "max_tokens"),
    "n_group": ("", "n_group"),
    "reply_tokens": ("", "reply_tokens"),
    "margin_points": ("", "margin_points"),
    "measure_speed": ("", "measure_speed"),
    "n_orders": ("prompting", "n_orders"),
    "url": ("server", "url"),
    "server_model": ("server", "model"),
    "n_parallel": ("server", "n_parallel"),
}


def settings_to_json(settings: RunSettings) -> dict[str, Any]:
    """The settings as a record has them."""
    return {key: getattr(getattr(settings, part) if part else settings, name) for key, (part, name) in KEYS.items()}


def settings_from_json(value: Mapping[str, Any], where: str) -> RunSettings:
    """The reverse; what is missing has its default. Raises RecordError naming `where` for an unknown key or type."""
    if unknown := value.keys() - KEYS.keys():
        raise RecordError(f"{where}: unknown key {', '.join(sorted(unknown))}")
    parts: dict[str, dict[str, Any]] = {"": {}, "prompting": {}, "runtime": {}, "server": {}}
    for key, one in value.items():
        part, name = KEYS[key]
        parts[part][name] = one
    return convert_value({**parts.pop(""), **parts}, RunSettings, RecordError, where=where)
