"""`medlite bench` from the command line, on a tiny file and questions made up here."""

import contextlib
import dataclasses
import io
import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from bench.run.kept import kept_record, questions_sha256
from bench.run.record import read_record, sample_line
from bench.run.run import RunRequest, run_task
from bench.settings import Prompting, RunSettings
from medlite.cli import main
from medlite.cli.bench import group as bench_cli
from medlite.cli.bench.measuring import measure_artifact
from medlite.cli.bench.sweep import placed
from medlite.engines import ENGINES, SERVER_ENGINES
from medlite.files import file_sha256
from tests.helpers.bench_toys import write_questions
from tests.helpers.fake_server import serving
from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.helpers.toy_engine import ToyEngine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one shape, questions, and a record of each."""
    path = tmp_path_factory.mktemp("cli")
    write_tiny_gguf(path / "a.gguf")
    write_tiny_gguf(path / "b.gguf", seed=1)
    write_questions(path / "q.jsonl", 12)
    for name in "ab":
        assert medlite(path, f"bench run {name}.gguf --data q.jsonl --no-speed -o {name}.jsonl").returncode == 0
    return path


def medlite(folder: Path, command: str) -> SimpleNamespace:
    """What the command line does with `command` in `folder`, offline: exit code, stdout, stderr."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(folder)
        patch.setenv("MEDLITE_CACHE", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(sys, "argv", ["medlite", *shlex.split(command)])
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def test_tasks_are_listed_with_their_sources(folder: Path) -> None:
    rows = json.loads(medlite(folder, "bench tasks --json").stdout)
    assert {"demo", "medqa", "medmcqa", "pubmedqa", "mmlu_medical"} <= {row["name"] for row in rows}
    assert not any(row["local"] for row in rows if row["name"] == "medqa")


def test_compare_prints_tables_of_eighty_columns_and_writes_a_report(folder: Path) -> None:
    result = medlite(folder, "bench compare a.jsonl b.jsonl --floor a.jsonl --report r.html")
    assert result.returncode == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "inconclusive" in result.stdout
    assert (folder / "r.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(("form", "begin"), [("json", "{"), ("md", "# What"), ("html", "<!doctype")])
def test_compare_prints_data_and_nothing_else_and_writes_other_forms(folder: Path, form: str, begin: str) -> None:
    result = medlite(folder, f"bench compare a.jsonl b.jsonl --json --report other.{form}")
    assert json.loads(result.stdout)["tasks"]
    assert (folder / f"other.{form}").read_text().startswith(begin)


def test_a_record_is_kept_while_what_it_was_made_from_stands(folder: Path) -> None:
    artifact = file_sha256(folder / "a.gguf")
    settings = RunSettings(measure_speed=False)
    wanted = RunRequest(folder / "a.gguf", "local", settings, folder / "q.jsonl", out=folder / "a.jsonl")

    def kept(request: RunRequest, sha256: str = artifact) -> object:
        return kept_record(request, sha256, questions_sha256(request))

    assert kept(wanted) is not None
    assert kept(wanted, file_sha256(folder / "b.gguf")) is None
    assert kept(dataclasses.replace(wanted, out=folder / "q.jsonl")) is None
    assert kept(dataclasses.replace(wanted, out=folder / "gone.jsonl")) is None
    for other in (dataclasses.replace(settings, prompting=Prompting(limit=3)), settings.with_context(64)):
        assert kept(dataclasses.replace(wanted, settings=other)) is None
    (folder / "fewer.jsonl").write_text("".join((folder / "q.jsonl").read_text().splitlines(keepends=True)[:4]))
    assert kept(dataclasses.replace(wanted, data=folder / "fewer.jsonl")) is None


def test_a_record_of_several_orders_is_kept_too(folder: Path, tmp_path: Path) -> None:
    settings = RunSettings(Prompting(n_orders=2), measure_speed=False)
    wanted = RunRequest(folder / "a.gguf", "local", settings, folder / "q.jsonl", out=tmp_path / "orders.jsonl")
    run_task(wanted)
    assert kept_record(wanted, file_sha256(folder / "a.gguf"), questions_sha256(wanted)) is not None


@pytest.mark.parametrize(
    ("command", "message", "hint"),
    [
        ("bench run a.gguf --task medqua", "medqua: no such task", "--data FILE"),
        (
            "bench run a.gguf --task medqa",
            "medqa: GBaker/MedQA-USMLE-4-options-hf/test.json is not in the cache",
            "--data",
        ),
        ("bench run a.gguf --task demo,medqa --data q.jsonl", "--data is one file, --task names 2 sets", "one task"),
        ("bench run a.gguf --data q.jsonl -o a.jsonl", "a.jsonl: exists already", "--force"),
        ("bench run gone.gguf --data q.jsonl", "gone.gguf: no such file", ""),
        ("bench run a.gguf --data gone.jsonl", "gone.jsonl: no such file", ""),
        ("bench run a.gguf --data q.jsonl --shots 3", "local:q.jsonl: has no few-shot examples", "--shots 0"),
        ("bench run a.gguf --data q.jsonl --engine ort", "a.gguf: no ONNX folder of medlite", "--format onnx"),
        ("bench run --engine openai --data q.jsonl", "the openai engine needs a server", "--url"),
        (
            "bench run a.gguf --url localhost:1 --data q.jsonl",
            "--url names a server, 'a.gguf' names another",
            "--model",
        ),
        ("bench run --url gpu7 --offline --data q.jsonl", "http://gpu7:80 is another machine", "localhost"),
        ("bench compare a.jsonl gone.jsonl", "gone.jsonl: no such run record", ""),
        ("bench compare a.jsonl q.jsonl", "q.jsonl: is no run record", ""),
        ("bench compare a.jsonl b.jsonl --report r.docx", "no report has the ending '.docx'", ".html"),
        ("bench sweep demo --report r.docx", "no report has the ending '.docx'", ".html"),
        ("bench sweep demo --report gone/r.html", "gone: no such folder", "mkdir"),
        ("bench sweep demo --task medqa", "is not in the cache, and the hub cannot be reached", "--data"),
        ("bench sweep demo --recipe BF16", "a sweep needs two recipes", "--recipe BF16 --recipe Q4_K_M"),
        ("bench sweep demo --recipe BF16 --recipe Q9_X", "Q9_X", "Q"),
    ],
)
def test_a_mistake_gets_one_line_and_a_hint(folder: Path, command: str, message: str, hint: str) -> None:
    result = medlite(folder, command)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert message in result.stderr
    assert hint in result.stderr
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "bench run a.gguf --data q.jsonl --engine abacus",
            f"'abacus' is not one of {', '.join(map(repr, (*ENGINES, *SERVER_ENGINES)))}",
        ),
        ("bench run a.gguf --data q.jsonl --engine onnx", "'onnx' is not one of"),
        ("bench sweep demo --engine openai", "'openai' is not one of"),
        ("bench sweep demo --recipes BF16,Q8_0", "No such option"),
        ("bench compare a.jsonl b.jsonl --format md", "No such option"),
    ],
)
def test_a_word_that_a_command_does_not_know_is_an_error_of_usage(folder: Path, command: str, message: str) -> None:
    result = medlite(folder, command)
    assert result.returncode == 2
    assert message in result.stderr


def test_a_sweep_measures_once_and_goes_on_where_it_was_stopped(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "a.gguf"
    model.write_bytes((folder / "a.gguf").read_bytes())
    settings = RunSettings(measure_speed=False, n_group=4)
    wanted = placed([RunRequest(Path(), "local", settings, folder / "q.jsonl")], model, "runs")
    datasets = {"local": questions_sha256(wanted[0])}

    def measured() -> tuple[int, list[str]]:
        (record,) = measure_artifact(model, wanted, datasets, quiet=True).values()
        return record.performance.n_scored, [sample_line(sample) for sample in record.samples]

    n_scored, first = measured()
    file = tmp_path / "a-runs" / "local.jsonl"
    whole = file.read_bytes()
    assert measured() == (n_scored, first) == (12, first)
    assert file.read_bytes() == whole  # not measured again: times would differ
    file.unlink()
    lines = whole.splitlines(keepends=True)
    file.with_name("local.jsonl.part").write_bytes(b"".join(lines[:7]) + b'{"kind": "sam')
    assert measured() == (8, first)  # the whole group of four stood, two of the next were asked again
    file.unlink()
    other = lines[0].replace(b'"seed": 0', b'"seed": 5')
    file.with_name("local.jsonl.part").write_bytes(other + b"".join(lines[1:7]))
    assert measured() == (12, first)  # a part of another run is set aside


def test_a_server_is_asked_aloud_and_compared_without_kl(folder: Path) -> None:
    with serving(ToyEngine(noise=0.2), "vllm") as server:
        result = medlite(folder, f"bench run --engine openai --url {server.url} --data q.jsonl -o served.jsonl")
    assert result.returncode == 0, result.stderr
    assert f"the questions go to {server.url} (this machine)" in result.stderr
    assert "toy-70b" in result.stdout
    assert read_record(folder / "served.jsonl").count("ok") == 12
    compared = medlite(folder, "bench compare served.jsonl a.jsonl --report served.html")
    assert "no KL over the vocabulary" in compared.stderr
    assert compared.returncode == 0


def commands() -> list[tuple[str, click.Command]]:
    group = bench_cli.command
    return [(name, group.commands[name]) for name in sorted(group.commands)]


@pytest.mark.parametrize(("name", "command"), commands())
def test_help_shows_examples_whose_options_exist(name: str, command: click.Command) -> None:
    text = CliRunner().invoke(command, ["--help"]).output
    examples = [line.split() for line in text.splitlines() if line.strip().startswith("medlite bench")]
    assert examples, f"{name} has no example"
    known = {option for parameter in command.params for option in parameter.opts}
    for words in examples:
        assert words[2] == name
        passed_on = command.context_settings.get("ignore_unknown_options", False)
        assert passed_on or {word for word in words if word.startswith("-")} <= known
