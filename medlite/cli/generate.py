"""`medlite generate`: one prompt, one answer on stdout."""

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from medlite.chat import LoadedModel
    from medlite.engines.engine import Engine, GenerationSettings


def model_options(command: Any) -> Any:
    """The options that decide how a model is loaded; chat and generate share them."""
    for option in reversed(
        (
            click.option(
                "--device",
                type=click.Choice(["auto", "cpu", "cuda"]),
                default="auto",
                show_default=True,
                help="Where to run.",
            ),
            click.option(
                "--context",
                "n_context",
                type=click.IntRange(min=1),
                metavar="TOKENS",
                help="Context length. Default: from the model's training and the free memory.",
            ),
            click.option("--threads", "n_threads", type=click.IntRange(min=1), help="Default: one per physical core."),
            click.option(
                "--kv-type",
                type=click.Choice(["f16", "q8_0", "q4_0"]),
                default="f16",
                show_default=True,
                help="Type of the KV cache; q8_0 halves its memory.",
            ),
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
    ):
        command = option(command)
    return command


def sampling_options(command: Any) -> Any:
    """The options that decide how tokens are chosen."""
    for option in reversed(
        (
            click.option(
                "--max-tokens",
                type=click.IntRange(min=1),
                default=512,
                show_default=True,
                help="Longest reply, in tokens.",
            ),
            click.option(
                "--temperature",
                type=click.FloatRange(min=0),
                default=0.0,
                show_default=True,
                help="0 always takes the likeliest token, so answers repeat.",
            ),
            click.option(
                "--top-k",
                type=click.IntRange(min=0),
                default=40,
                show_default=True,
                help="Draw from the K likeliest tokens; 0 from all.",
            ),
            click.option(
                "--top-p",
                type=click.FloatRange(0, 1),
                default=0.95,
                show_default=True,
                help="Draw from the likeliest tokens that together reach this probability.",
            ),
            click.option(
                "--min-p",
                type=click.FloatRange(0, 1),
                default=0.05,
                show_default=True,
                help="Leave out tokens below this share of the likeliest one's probability.",
            ),
            click.option(
                "--repeat-penalty",
                type=click.FloatRange(min=0, min_open=True),
                default=1.0,
                show_default=True,
                help="Above 1, tokens said lately become less likely.",
            ),
            click.option(
                "--seed",
                type=click.IntRange(min=0),
                default=0,
                show_default=True,
                help="The same seed draws the same text.",
            ),
            click.option("--stop", multiple=True, metavar="TEXT", help="End the reply before TEXT; may be repeated."),
        )
    ):
        command = option(command)
    return command


def sampling_settings(options: dict[str, Any]) -> "GenerationSettings":
    """The settings among a command's options; they are taken out of `options`."""
    from medlite.engines.engine import GenerationSettings

    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "stop")
    return GenerationSettings(**{name: options.pop(name) for name in names})


@click.command(
    epilog="""\b
Examples:
  medlite generate demo "What class of drug is metformin?"
  echo "Name the antidote for paracetamol." | medlite generate model.gguf -
  medlite generate model.gguf --raw "The patient was given" --max-tokens 40
  medlite generate model.gguf "List three macrolides." --json
  medlite generate model.gguf "Which drugs does the letter name?" --json-schema drugs.schema.json

No medical device, not for diagnosis."""
)
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--system", default="", metavar="TEXT", help="Instructions before the prompt.")
@click.option("--raw", is_flag=True, help="Send the prompt as it is, without the model's chat template.")
@click.option(
    "--grammar",
    "grammar_file",
    type=click.File(encoding="utf-8"),
    metavar="FILE",
    help="Hold the reply to a GBNF grammar, whose rule root is the whole reply.",
)
@click.option("--json-schema", "schema", metavar="FILE|JSON", help="Hold the reply to JSON that a schema takes.")
@click.option("--stats", is_flag=True, help="Print speed and token counts on stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@sampling_options
@model_options
def command(model: str, prompt: str | None, system: str, raw: bool, stats: bool, as_json: bool, **options: Any) -> None:
    """Answer one PROMPT with MODEL and exit. PROMPT: a text, or - to read stdin.

    MODEL: a .gguf file, an ONNX folder, a name that `medlite models` lists, or demo, the demonstration model.
    """
    text = _prompt_text(prompt)
    grammar = _grammar_text(options.pop("grammar_file"), options.pop("schema"))
    settings = replace(sampling_settings(options), grammar=grammar)
    with load_shown(model, quiet=as_json, **options) as loaded:
        if loaded.prompt_note and not raw and not as_json:
            click.echo(loaded.prompt_note, err=True)
        warn_of_system(system, takes_none=raw or loaded.template is None)
        if raw:
            tokens, ended = loaded.engine.tokenize(text), settings
        else:
            asked = loaded.chat(system, settings)
            tokens, ended = asked.prompt_tokens(text), asked.full_settings
        answer = _answer(loaded, tokens, ended, show=not as_json)
        answer |= {"prompt": text, "settings": asdict(settings)}
    if as_json:
        from medlite.cli import print_json

        print_json(answer)
    elif stats:
        guesses = f", {answer['n_accepted']} of {answer['n_drafted']} guesses right" if answer["n_drafted"] else ""
        click.echo(
            f"{answer['n_prompt_tokens']} prompt tokens, {answer['n_tokens']} tokens, first after "
            f"{answer['first_token_seconds']:.2f} s, then {answer['tokens_per_second']:.1f} tokens/s "
            f"({answer['device']}, {answer['finish']}){guesses}",
            err=True,
        )


def _grammar_text(grammar_file: TextIO | None, schema: str | None) -> str | None:
    """The GBNF text that --grammar or --json-schema asks for; None for neither. Raises EngineError for a wrong one."""
    from medlite.engines.gbnf import check_gbnf
    from medlite.engines.json_schema import json_schema_to_gbnf

    if grammar_file is not None and schema is not None:
        raise click.UsageError("--grammar or --json-schema, not both")
    if grammar_file is None and schema is None:
        return None
    try:
        text = grammar_file.read() if grammar_file is not None else _schema_text(str(schema))
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"the file cannot be read as text: {error}") from None
    if schema is not None:
        try:
            text = json_schema_to_gbnf(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise click.UsageError(f"--json-schema is no JSON: {error}") from None
    check_gbnf(text)
    return text


def _schema_text(given: str) -> str:
    """The schema itself, or what the file of that name holds."""
    return given if given.lstrip().startswith("{") else Path(given).read_text("utf-8")


def warn_of_system(system: str, *, takes_none: bool) -> None:
    """Say that a system text has no place in the prompt."""
    if system and takes_none:
        click.echo(
            f"{click.style('warning:', fg='yellow')} without a template there is no place for --system; it is not sent",
            err=True,
        )


def _prompt_text(prompt: str | None) -> str:
    """The prompt as given, or stdin for `-` and for a pipe without a prompt."""
    if prompt is None and sys.stdin.isatty():
        raise click.UsageError("a PROMPT is needed, or - to read it from stdin")
    if prompt is None or prompt == "-":
        raw = sys.stdin.buffer.read()
        prompt = raw.decode("utf-8", errors="replace")
        if "�" in prompt and "�".encode() not in raw:
            click.echo("warning: stdin is not valid UTF-8; the bad bytes were replaced", err=True)
        prompt = prompt.rstrip("\r\n")
    if not prompt.strip():
        raise click.UsageError("the prompt is empty")
    return prompt


def load_shown(model: str, *, quiet: bool, draft: str | None = None, **options: Any) -> "LoadedModel":
    """The model, loaded with a sign of life on a terminal; its warnings on stderr. draft: as --draft."""
    from medlite.chat import load

    if quiet or not sys.stderr.isatty():
        loaded = load(model, **options)
    else:
        from medlite.cli.display import stderr

        with stderr.status("loading") as status:
            loaded = load(model, on_progress=lambda share: status.update(f"loading {share:.0%}"), **options)
    for warning in loaded.engine.info.warnings:
        click.echo(f"{click.style('warning:', fg='yellow')} {warning}", err=True)
    if draft:
        try:
            _set_draft(loaded.engine, draft)
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


def _answer(loaded: "LoadedModel", tokens: list[int], settings: "GenerationSettings", *, show: bool) -> dict[str, Any]:
    """The reply, streamed to stdout if `show`, and its facts."""
    pieces: list[str] = []
    log_probabilities: list[float] = []
    finish = None
    started = time.perf_counter()
    first = started
    for step in loaded.engine.generate(tokens, settings):
        if not log_probabilities:
            first = time.perf_counter()
        pieces.append(step.text)
        log_probabilities.append(step.log_probability)
        finish = step.finish
        if show and step.text:
            sys.stdout.write(step.text)
            sys.stdout.flush()
    seconds = time.perf_counter() - first
    if show:
        click.echo()
    info, n = loaded.engine.info, len(log_probabilities)
    counts = getattr(loaded.engine, "draft_counts", None)
    return {
        "reply": "".join(pieces),
        "finish": finish,
        "n_prompt_tokens": len(tokens),
        "n_tokens": n,
        "mean_log_probability_nats": sum(log_probabilities) / n if n else None,
        "first_token_seconds": first - started,
        "tokens_per_second": (n - 1) / seconds if n > 1 and seconds else 0.0,
        "model": info.model_name,
        "recipe": loaded.artifact.recipe,
        "engine": info.engine_version,
        "device": info.device,
        "n_context": info.n_context,
        "n_drafted": counts.n_drafted if counts else 0,
        "n_accepted": counts.n_accepted if counts else 0,
    }
