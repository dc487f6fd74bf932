"""`medlite fit`: quick, its table within a terminal, wrong calls named."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from medlite.cli import fit
from medlite.fit.check import read_history
from quantize.gguf.recipes import RECIPES
from tests.helpers.tiny_gguf import write_tiny_gguf


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLITE_CACHE", str(tmp_path / "cache"))


def invoke(*arguments: str) -> Any:
    answer = CliRunner().invoke(fit.command, [*arguments, "--json"], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout)


def test_a_70b_is_answered_in_under_a_second_of_processor_time() -> None:
    begin = time.process_time()
    data = invoke("meditron-70b", "--memory", "16GB")
    assert time.process_time() - begin < 1
    assert len(data["recipes"]) == len(RECIPES)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nothing-like-this"], 1, "neither a file"),
        (["llama3-med42-8"], 1, "did you mean llama3-med42-8b"),
        (["llama3-8b", "--context", "9000"], 2, "trained for 8192"),
        (["llama3-8b", "--memory", "much"], 2, "is not a size"),
        (["llama3-8b", "--memory", "1GB", "--check"], 2, "--memory is for others"),
        (["llama3-8b", "--check"], 1, "not on this machine"),
        (["{folder}"], 1, "config.json: missing"),
        (["{file}"], 1, "a GGUF file starts with"),
    ],
)
def test_what_cannot_be_answered_is_said(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.gguf").write_bytes(b"text")
    names = {"folder": tmp_path / "folder", "file": tmp_path / "file.gguf"}
    answer = subprocess.run(
        [sys.executable, "-m", "medlite", "fit", *(a.format(**names) for a in arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert answer.returncode == code
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr


def test_memory_is_predicted_where_llama_cpp_does_not_load() -> None:
    code = (
        "import sys; sys.modules['llama_cpp'] = None; sys.argv = ['medlite', 'fit', 'llama3-8b', '--json']; "
        "from medlite.cli import main; main()"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    recipes = json.loads(answer.stdout)["recipes"]
    assert all(one["contexts"][0]["needed_bytes"] > 0 for one in recipes)
    assert {one["decode_tokens_per_second"] for one in recipes} == {None}


def test_the_table_stays_within_eighty_columns() -> None:
    for name in ("llama3.1-70b-instruct", "medpsy-4b"):
        answer = CliRunner().invoke(fit.command, [name, "--memory", "24GB"], env={"COLUMNS": "80"})
        assert answer.exit_code == 0
        rows = answer.output.split("!: more")[0].splitlines()
        assert max(len(line) for line in rows) <= 80
        assert "…" not in "".join(rows)


def test_a_comparison_is_printed_kept_and_read_by_the_next_prediction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(write_tiny_gguf(tmp_path / "m.gguf"))
    compared = invoke(model, "--check", "--threads", "1")
    assert invoke(model)["past"] == [compared]
    fit.show_check(read_history()[0])
    printed = capsys.readouterr().out
    assert "tiny F32, context 512, 1 thread\n" in printed
    assert f"{100 * compared['memory_error']:+.1f} %" in printed
