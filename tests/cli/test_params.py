"""The shared parameter types: sizes as people write them, engines as the table lists them."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from medlite.cli.params import (
    DEVICE,
    KV_TYPE,
    SIZE,
    context_option,
    device_option,
    engine_option,
    grouped,
    json_option,
    kv_type_option,
    recipe_option,
    threads_option,
)
from medlite.devices import DEVICES
from medlite.engines import ENGINES, SERVER_ENGINES
from medlite.engines.llamacpp.memory import KV_TYPES


@click.command()
@click.option("--memory", type=SIZE)
@engine_option("An engine.")
@recipe_option("Recipes.")
@kv_type_option()
@device_option()
@context_option()
@threads_option()
@json_option()
def show(**values: object) -> None:
    click.echo(repr(values))


@click.command()
@engine_option("An engine or a server.", servers=True)
def ask(engine: str) -> None:
    click.echo(engine)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("16GB", 16 * 10**9),
        ("16 gb", 16 * 10**9),
        ("1.5G", 3 * 10**9 // 2),
        ("512M", 512 * 10**6),
        ("4GiB", 4 << 30),
        ("1000", 1000),
        ("10B", 10),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, n_bytes: int) -> None:
    assert SIZE.convert(text, None, None) == n_bytes


@pytest.mark.parametrize("text", ["much", "0", "-1", "1.5.0G", "16GBB", "", "GB", "1e9"])
def test_what_is_not_a_size_is_a_wrong_call(text: str) -> None:
    answer = CliRunner().invoke(show, ["--memory", text])
    assert answer.exit_code == 2
    assert "is not a size (example: 16GB)" in answer.output


def test_an_engine_is_a_row_of_the_table() -> None:
    for name in ENGINES:
        assert f"'engine': '{name}'" in CliRunner().invoke(show, ["--engine", name]).output
    assert "'engine': ''" in CliRunner().invoke(show, []).output
    for name in (*SERVER_ENGINES, "onnx", "tpu"):
        answer = CliRunner().invoke(show, ["--engine", name])
        assert answer.exit_code == 2
        assert "llamacpp" in answer.output
    assert CliRunner().invoke(ask, ["--engine", next(iter(SERVER_ENGINES))]).output.strip() in SERVER_ENGINES
    assert "|".join(ENGINES) in CliRunner().invoke(show, ["--help"]).output


def test_a_recipe_may_be_repeated() -> None:
    answer = CliRunner().invoke(show, ["--recipe", "A", "--recipe", "B"])
    assert "'recipes': ('A', 'B')" in answer.output


@pytest.mark.parametrize(
    "arguments", [["--context", "0"], ["--threads", "0"], ["--kv-type", "q2"], ["--device", "tpu"]]
)
def test_a_wrong_value_is_a_wrong_call(arguments: list[str]) -> None:
    assert CliRunner().invoke(show, arguments).exit_code == 2


def test_the_options_load_no_engine() -> None:
    code = "import sys, medlite.cli.params; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_choices_are_the_runtimes() -> None:
    """They are stated again so that --help loads no engine."""
    assert tuple(KV_TYPE.choices) == tuple(KV_TYPES)
    assert tuple(DEVICE.choices) == DEVICES


def test_grouped_options_arrive_as_one_argument() -> None:
    @click.command()
    @click.option("--first", default="1")
    @grouped("pair", dict, click.option("--left", "left", default="l"), click.option("--right", default="r"))
    @click.option("--last", default="9")
    def command(first: str, pair: dict[str, str], last: str) -> None:
        click.echo(f"{first} {sorted(pair.items())} {last}")

    answer = CliRunner().invoke(command, ["--right", "R", "--last", "8"], catch_exceptions=False)
    assert answer.output == "1 [('left', 'l'), ('right', 'R')] 8\n"
    options = CliRunner().invoke(command, ["--help"]).output
    assert [options.index(name) for name in ("--first", "--left", "--right", "--last")] == sorted(
        options.index(name) for name in ("--first", "--left", "--right", "--last")
    )
