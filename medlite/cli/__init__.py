"""The `medlite` command: a table of subcommands, each imported only when it is called."""

import importlib
import logging
import os
import sys
from typing import Any

import click

from medlite.errors import MedliteError
from medlite.version import __version__

# Telemetry of dependencies is off before anything can import them (design invariant 7).
for _name, _value in (("ORT_DISABLE_TELEMETRY", "1"), ("HF_HUB_DISABLE_TELEMETRY", "1"), ("DO_NOT_TRACK", "1")):
    os.environ.setdefault(_name, _value)

# name -> (module with `command`, one line of help). Help is here so that `medlite --help` imports nothing.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("medlite.cli.demo", "Quantize, run and measure the embedded model: the whole of medlite in a minute."),
    "quantize": ("medlite.cli.quantize", "Turn a Hugging Face checkpoint into low-bit GGUF files, in one pass."),
    "verify": ("medlite.cli.verify", "Check a GGUF file or an ONNX folder against its receipt, or against its source."),
    "chat": ("medlite.cli.chat.command", "Talk with a model in the terminal, offline."),
    "generate": ("medlite.cli.generate", "Answer one prompt and exit."),
    "bench": ("medlite.cli.bench.group", "Measure what low bits cost on medical questions."),
    "models": ("medlite.cli.models", "List the known models: size, licence, what is on this machine."),
    "pull": ("medlite.cli.pull", "Download a checkpoint or a ready GGUF file from the hub."),
    "fit": ("medlite.cli.fit", "Predict memory and speed on this machine, for every recipe and context."),
    "doctor": ("medlite.cli.doctor", "Check this machine: processor, memory, GPU, engines, and what to install."),
}


class LazyGroup(click.Group):
    """A click group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  medlite demo
  medlite quantize ./Llama-3.2-1B-Instruct --recipe Q4_K_M
  medlite chat Llama-3.2-1B-Instruct-Q4_K_M.gguf

For research and demonstration, not for diagnosis. It is not a medical device.""",
)
@click.version_option(__version__, prog_name="medlite")
def cli() -> None:
    """Medical LLMs at low bits on the machine you have, with the loss measured."""


def main() -> None:
    """Run the command line; a MedliteError becomes two lines on stderr and exit code 1, Ctrl-C exit code 130."""
    logging.getLogger("gguf").setLevel(logging.ERROR)  # its guesses are checked by our own tokenizer gate
    color = False if os.environ.get("NO_COLOR") else None  # https://no-color.org; rich minds it itself
    try:
        cli.main(standalone_mode=False, color=color)
    except MedliteError as error:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {error}", err=True, color=color)
        if error.hint:
            click.echo(f"{click.style('hint:', fg='cyan')} {error.hint}", err=True, color=color)
        sys.exit(1)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def print_json(value: Any) -> None:
    """`value` as indented JSON on stdout, for --json."""
    import json

    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


def warn(text: str) -> None:
    """A warning on stderr."""
    click.echo(f"{click.style('warning:', fg='yellow')} {text}", err=True)
