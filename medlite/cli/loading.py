"""How chat and generate load a model and draw its tokens: the options for both, and the load with a sign of life."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from medlite.cli import warn
from medlite.cli.params import context_option, device_option, grouped, kv_type_option, threads_option, value_option

if TYPE_CHECKING:
    from medlite.chat import LoadedModel
    from medlite.engines.engine import Engine, GenerationSettings


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded. draft: a file, or "lookup"."""

    device: str
    n_context: int | None
    n_threads: int | None
    kv_type: str
    draft: str | None
    prompt_format: str


def _generation_settings(**values: Any) -> "GenerationSettings":
    from medlite.engines.engine import GenerationSettings

    return GenerationSettings(**values)


# As the command's argument `load_options`.
model_options = grouped(
    "load_options",
    LoadOptions,
    device_option(),
    context_option(),
    threads_option(),
    kv_type_option(),
    click.option(
        "--draft",
        metavar="FILE|lookup",
        help="Guess tokens ahead with a smaller model of the same family, or from the text so far.",
    ),
    click.option(
        "--prompt-format",
        default="",
        metavar="NAME",
        help="A documented prompt format instead of the file's own template; a wrong NAME lists them.",
    ),
)

# As the command's argument `settings`.
sampling_options = grouped(
    "settings",
    _generation_settings,
    value_option("--max-tokens", click.IntRange(min=1), 512, "Longest reply, in tokens."),
    value_option(
        "--temperature", click.FloatRange(min=0), 0.0, "0 always takes the likeliest token, so answers repeat."
    ),
    value_option("--top-k", click.IntRange(min=0), 40, "Draw from the K likeliest tokens; 0 from all."),
    value_option(
        "--top-p", click.FloatRange(0, 1), 0.95, "Draw from the likeliest tokens that together reach this probability."
    ),
    value_option(
        "--min-p", click.FloatRange(0, 1), 0.05, "Leave out tokens below this share of the likeliest one's probability."
    ),
    value_option(
        "--repeat-penalty",
        click.FloatRange(min=0, min_open=True),
        1.0,
        "Above 1, tokens said lately become less likely.",
    ),
    value_option("--seed", click.IntRange(min=0), 0, "The same seed draws the same text."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the reply before TEXT; may be repeated."),
)


def load_shown(model: str, options: LoadOptions, *, quiet: bool) -> "LoadedModel":
    """The model, loaded with a sign of life on a terminal; its warnings on stderr."""
    from medlite.chat import load
    from medlite.cli.display import loading_status
    from medlite.engines.engine import OpenSettings

    settings = OpenSettings(options.device, options.n_context, options.n_threads, options.kv_type)
    with loading_status(quiet=quiet) as on_progress:
        loaded = load(model, settings, prompt_format=options.prompt_format, on_progress=on_progress)
    for warning in loaded.engine.info.warnings:
        warn(warning)
    if options.draft:
        try:
            _set_draft(loaded.engine, options.draft)
        except BaseException:
            loaded.close()
            raise
    return loaded


def _set_draft(engine: "Engine", draft: str) -> None:
    from medlite.engines.engine import ReadsAhead
    from medlite.errors import EngineError
    from medlite.models.registry import resolve_model

    if not isinstance(engine, ReadsAhead):
        raise EngineError(f"--draft: the engine {engine.info.engine} does not guess ahead", hint="use a GGUF file")
    engine.set_draft(draft if draft == "lookup" else resolve_model(draft))


def warn_of_system(system: str, *, takes_none: bool) -> None:
    """Say that a system text has no place in the prompt."""
    if system and takes_none:
        warn("without a template there is no place for --system; it is not sent")


def decode_stdin(raw: bytes) -> str:
    """What was piped in, as text. Bytes that are not UTF-8 are replaced, and a warning says so."""
    text = raw.decode("utf-8", errors="replace")
    if "\ufffd" in text and "\ufffd".encode() not in raw:
        warn("stdin is not valid UTF-8; the bad bytes were replaced")
    return text
