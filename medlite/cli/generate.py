"""`medlite generate`: one prompt, one answer on stdout."""

import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from medlite.cli import print_json
from medlite.cli.loading import LoadOptions, decode_stdin, load_shown, model_options, sampling_options, warn_of_system
from medlite.cli.params import json_option
from medlite.errors import MedliteError

if TYPE_CHECKING:
    from medlite.chat import LoadedModel
    from medlite.engines.engine import GenerationSettings


@click.command(
    epilog="""\b
Examples:
  medlite generate demo "What class of drug is metformin?"
  echo "Name the antidote for paracetamol." | medlite generate model.gguf -
  medlite generate model.gguf --raw "The patient was given" --max-tokens 40
  medlite generate model.gguf "List three macrolides." --json
  medlite generate model.gguf "Which drugs does the letter name?" --json-schema drugs.schema.json

It is not a medical device."""
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
@json_option("Print one JSON object instead of text.")
@sampling_options
@model_options
def command(
    model: str,
    prompt: str | None,
    system: str,
    raw: bool,
    grammar_file: TextIO | None,
    schema: str | None,
    stats: bool,
    as_json: bool,
    settings: "GenerationSettings",
    load_options: LoadOptions,
) -> None:
    """Answer one PROMPT with MODEL and exit. PROMPT: a text, or - to read stdin.

    MODEL: a .gguf file, an ONNX folder, a name that `medlite models` lists, or demo, the demonstration model.
    """
    text = _prompt_text(prompt)
    settings = replace(settings, grammar=_grammar_text(grammar_file, schema))
    with load_shown(model, load_options, quiet=as_json) as loaded:
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
    """The grammar that --grammar or --json-schema asks for; None for neither. Raises EngineError for a wrong one."""
    from medlite.engines.gbnf import lark_from_gbnf
    from medlite.engines.json_schema import lark_from_json_schema
    from medlite.formats.json import decode_json

    if grammar_file is not None and schema is not None:
        raise click.UsageError("--grammar or --json-schema, not both")
    if grammar_file is None and schema is None:
        return None
    try:
        text = grammar_file.read() if grammar_file is not None else _schema_text(str(schema))
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"the file cannot be read as text: {error}") from None
    if schema is None:
        return lark_from_gbnf(text)
    try:
        stated = decode_json(text, object, MedliteError, where="--json-schema")
    except MedliteError as error:
        raise click.UsageError(str(error)) from None
    return lark_from_json_schema(stated)


def _schema_text(given: str) -> str:
    """The schema itself, or what the file of that name holds."""
    return given if given.lstrip().startswith("{") else Path(given).read_text("utf-8")


def _prompt_text(prompt: str | None) -> str:
    """The prompt as given, or stdin for `-` and for a pipe without a prompt."""
    if prompt is None and sys.stdin.isatty():
        raise click.UsageError("a PROMPT is needed, or - to read it from stdin")
    if prompt is None or prompt == "-":
        prompt = decode_stdin(sys.stdin.buffer.read()).rstrip("\r\n")
    if not prompt.strip():
        raise click.UsageError("the prompt is empty")
    return prompt


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
