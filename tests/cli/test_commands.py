"""The command line: light to start, honest in its help, two lines and an exit code for every error."""

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from medlite.cli import COMMANDS, cli
from medlite.cli.params import EngineName, Size
from tests.helpers.places import ROOT


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "medlite", *arguments], capture_output=True, text=True, check=False, cwd=cwd, env=None
    )


def command_of(name: str) -> click.Command:
    command: click.Command = importlib.import_module(COMMANDS[name][0]).command
    return command


def leaves(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """A command, or each command of a group, with the words that call it."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for sub in command.list_commands(context):
            found = command.get_command(context, sub)
            assert found is not None
            yield from leaves(f"{name} {sub}", found)
    else:
        yield name, command


def examples_in(text: str) -> list[str]:
    """The `medlite ...` lines of a help text or a Markdown code block, without their explanation."""
    lines = re.findall(r"^\s{2,}((?:echo .*\| )?medlite .*?)(?:\s{3,}.*)?$", text, flags=re.MULTILINE)
    return [
        re.sub(r"\s+[|>].*$", "", line.split("| ")[-1] if line.startswith("echo") else line).strip() for line in lines
    ]


def check_example(line: str) -> None:
    """Raise if `line` names a command or an option that does not exist."""
    _, *words = shlex.split(line)
    if words[0].startswith("-"):
        return
    command, context = command_of(words[0]), click.Context(cli)
    words = words[1:]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"{line}: no command {words[0]}"
        command, words = found, words[1:]
    command.make_parser(click.Context(command, **command.context_settings)).parse_args(list(words))


def test_help_imports_nothing_heavy() -> None:
    """`medlite --help` must answer at once: no numpy, no rich, no engine, no hub."""
    code = (
        "import sys; from medlite.cli import cli; cli.main(['--help'], standalone_mode=False); "
        "heavy = {'numpy', 'rich', 'llama_cpp', 'huggingface_hub', 'gguf', 'prompt_toolkit', 'jinja2', "
        "'matplotlib'}; "
        "sys.exit(','.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_examples(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0, done.stderr
    for words, command in leaves(name, command_of(name)):
        examples = examples_in(command.get_help(click.Context(command, info_name=words)))
        assert examples, f"medlite {words} --help has no examples"
        for line in examples:
            check_example(line)


ALL = {words: command for name in COMMANDS for words, command in leaves(name, command_of(name))}
# Option -> the one type that it has, wherever it occurs.
ONE_TYPE = {"--context": click.IntRange, "--threads": click.IntRange, "--memory": Size, "--max-shard-size": Size,
            "--engine": EngineName, "--kv-type": click.Choice, "--device": click.Choice}  # fmt: skip
GONE = {"--kv", "--recipes"}


@pytest.mark.parametrize("words", ALL)
def test_options_are_spelled_in_one_way(words: str) -> None:
    options = {text: one for one in ALL[words].params if isinstance(one, click.Option) for text in one.opts}
    assert not GONE & set(options)
    for text, kind in ONE_TYPE.items():
        assert text not in options or isinstance(options[text].type, kind), text
    assert "--recipe" not in options or options["--recipe"].multiple
    # The harness prints lm-evaluation-harness's own table.
    assert words == "bench harness" or ("--json" in options and options["--json"].is_flag), (
        "params.json_option is missing"
    )


@pytest.mark.parametrize("words", [words for words in ALL if words != "bench harness"])  # which hands options on
def test_an_option_that_does_not_exist_is_a_wrong_call(words: str) -> None:
    answer = CliRunner().invoke(cli, [*words.split(), "--no-such-option"])
    assert answer.exit_code == 2
    assert "No such option" in answer.output


@pytest.mark.parametrize(
    "path",
    [
        "README.md",
        "quantize/README.md",
        "quantize/onnx/README.md",
        "bench/README.md",
        "medlite/README.md",
        "CONTRIBUTING.md",
    ],
)
def test_the_commands_in_the_documents_exist(path: str) -> None:
    for line in examples_in((ROOT / path).read_text(encoding="utf-8")):
        check_example(line)


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


DEMO = ROOT / "medlite" / "demo" / "checkpoint"
WRONG = {
    "no such folder": (("quantize", "./absent"), 1, "no such folder"),
    "unknown recipe": (("quantize", ".", "--recipe", "Q9"), 1, "unknown recipe 'Q9'"),
    "no checkpoint": (("quantize", ".", "--recipe", "Q8_0"), 1, "config.json: missing"),
    "unknown option": (("quantize", ".", "--recip", "Q8_0"), 2, "No such option"),
    "unknown command": (("quantise",), 2, "No such command"),
    "recipe of ONNX": (("quantize", str(DEMO), "--recipe", "q4m"), 1, "hint: --format onnx --recipe q4m"),
    "option of ONNX": (("quantize", str(DEMO), "--block", "32"), 1, "hint: add --format onnx"),
    "folder without a model": (("verify", "."), 1, "a folder without an ONNX model"),
    "no record": (("bench", "compare", "a.jsonl", "b.jsonl"), 1, "hint: medlite bench run MODEL -o FILE"),
    "no such file": (("verify", "absent.gguf"), 1, "no such file"),
    "bad size": (("quantize", ".", "--threads", "0"), 2, "--threads"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_one_clear_error(name: str, tmp_path: Path) -> None:
    arguments, code, message = WRONG[name]
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_version_is_the_packages() -> None:
    from medlite import __version__

    assert run("--version").stdout.strip().endswith(__version__)


def test_telemetry_is_off_before_anything_loads() -> None:
    code = (
        "import os; [os.environ.pop(k, None) for k in ('ORT_DISABLE_TELEMETRY', 'HF_HUB_DISABLE_TELEMETRY')]; "
        "import medlite.cli; print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["1", "1"]


def test_a_pipe_gets_no_progress_and_no_blank_lines_of_one(tmp_path: Path) -> None:
    done = run("quantize", str(DEMO), "--recipe", "Q8_0", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
