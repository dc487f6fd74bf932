"""The parameter types and options that several commands share, so that each is spelled and checked in one way."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])

KV_TYPES = ("f16", "q8_0", "q4_0")
SIZE_TEXT = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)
PREFIXES = ("", "K", "M", "G", "T")


class Size(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases of click only
    """Bytes as people write them: 16GB, 1.5G, 512MiB, 1000. The value is an int above 0."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = SIZE_TEXT.fullmatch(value.strip())
        if match is None or float(match[1]) <= 0:
            self.fail(f"{value!r} is not a size (example: 16GB)", param, ctx)
        unit = (1024 if match[3] else 1000) ** PREFIXES.index(match[2].upper())
        return int(float(match[1]) * unit)


class EngineName(click.ParamType):  # type: ignore[type-arg]
    """The name of an engine. The table is read when it is needed, since its module loads numpy."""

    name = "engine"

    def __init__(self, *, servers: bool) -> None:
        self.servers = servers

    def choice(self) -> "click.Choice[str]":
        from medlite.engines import ENGINES, SERVER_ENGINES

        return click.Choice([*ENGINES, *(SERVER_ENGINES if self.servers else ())])

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        return self.choice().get_metavar(param, ctx)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return self.choice().convert(value, param, ctx) if value else ""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return self.choice().shell_complete(ctx, param, incomplete)


SIZE = Size()
ENGINE = EngineName(servers=False)
ENGINE_OR_SERVER = EngineName(servers=True)
KV_TYPE = click.Choice(KV_TYPES)
DEVICE = click.Choice(["auto", "cpu", "cuda"])
CONTEXT = click.IntRange(min=1)
THREADS = click.IntRange(min=1)
PATH = click.Path(path_type=Path)


def value_option(name: str, kind: Any, default: Any, text: str, *, as_name: str = "") -> Callable[[F], F]:
    """An option whose help shows its default. as_name: of the command's argument, where click would give another."""
    names = (name, as_name) if as_name else (name,)
    return click.option(*names, type=kind, default=default, show_default=True, help=text)


def kv_type_option(text: str = "Type of the KV cache; q8_0 halves its memory.") -> Callable[[F], F]:
    """--kv-type, as `kv_type`."""
    return value_option("--kv-type", KV_TYPE, KV_TYPES[0], text)


def device_option(text: str = "Where to run.") -> Callable[[F], F]:
    """--device, as `device`."""
    return value_option("--device", DEVICE, "auto", text)


def context_option(
    text: str = "Context length. Default: from the model's training and the free memory.",
) -> Callable[[F], F]:
    """--context, as `n_context`: None where it is not given."""
    return click.option("--context", "n_context", type=CONTEXT, metavar="TOKENS", help=text)


def threads_option(text: str = "Default: one per physical core.") -> Callable[[F], F]:
    """--threads, as `n_threads`: None where it is not given."""
    return click.option("--threads", "n_threads", type=THREADS, help=text)


def json_option(text: str = "Print the result as JSON.") -> Callable[[F], F]:
    """--json, as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=text)


def recipe_option(text: str, default: tuple[str, ...] = ()) -> Callable[[F], F]:
    """--recipe, which may be repeated, as `recipes`."""
    return click.option(
        "--recipe", "recipes", multiple=True, default=default, show_default=bool(default), metavar="NAME", help=text
    )


def engine_option(text: str, *, servers: bool = False) -> Callable[[F], F]:
    """--engine, as `engine`: empty where it is not given. servers: also those that ask a server."""
    return click.option("--engine", type=ENGINE_OR_SERVER if servers else ENGINE, default="", help=text)


imatrix_option = click.option("--imatrix", type=PATH, help="Importance matrix from llama-imatrix.")
pre_tokenizer_option = click.option(
    "--pre-tokenizer", metavar="NAME", help="llama.cpp's name for a pre-tokenizer medlite does not know."
)


def grouped(name: str, make: Callable[..., Any], *options: Callable[[Any], Any]) -> Callable[[F], F]:
    """`options`, handed to the command as one argument `name`: what `make` makes of their values, by their names."""

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def with_group(*arguments: Any, **values: Any) -> Any:
            group = make(**{one: values.pop(one) for one in names})
            return command(*arguments, **{name: group}, **values)

        stated: list[click.Parameter] = getattr(command, "__click_params__", [])
        n_before = len(stated)
        decorated: Any = with_group
        for option in reversed(options):
            decorated = option(decorated)
        names = [str(one.name) for one in decorated.__click_params__[n_before:] if one.expose_value]
        return cast(F, decorated)

    return decorate
