"""Predictions: against a plan, against counts made apart, against what a loaded model takes."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from medlite.cli import fit as fit_cli
from medlite.cli.fit import COMMON_RECIPE, Machine, find_candidates, memory_size, predict, recipe_candidates, recommend
from medlite.engines.llamacpp.memory import estimate, read_shape
from medlite.errors import CheckpointError
from medlite.fit import check as measure_fit
from medlite.fit import memory as fit
from medlite.fit import speed as decode_speed
from medlite.fit.memory import Measured, decode_tokens_per_second, fits, predict_memory, windowed_kv_bytes
from medlite.formats.gguf import read_header
from medlite.formats.onnx_folder import FACTS_NAME
from medlite.models.catalog import hf_config, read_catalog
from quantize.gguf.plan import make_plan
from quantize.gguf.recipes import RECIPES
from quantize.source.checkpoint import open_checkpoint
from tests.helpers.tiny_checkpoint import make_llama
from tests.helpers.tiny_gguf import write_tiny_gguf

GB = 10**9


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLITE_CACHE", str(tmp_path / "cache"))


def candidates(name: str, n_context: int = 8192) -> list[fit_cli.Candidate]:
    found = recipe_candidates(hf_config(read_catalog()[name]))
    return [predict(candidate, [n_context], "f16") for candidate in found]


def invoke(*arguments: str) -> dict[str, object]:
    answer = CliRunner().invoke(fit_cli.command, [*arguments, "--json"], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout)


def test_a_folder_and_its_plan_agree_on_every_tensor_byte(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    by_recipe = {c.recipe: c for c in find_candidates(str(folder))}
    assert set(by_recipe) == set(RECIPES)
    for name in ("BF16", "Q8_0", "Q4_K_M", "Q3_K_M"):
        plan = make_plan(open_checkpoint(folder), RECIPES[name])
        assert by_recipe[name].shape.n_weight_bytes == sum(t.info.n_bytes for t in plan.tensors)
        assert by_recipe[name].bits_per_weight == plan.bits_per_weight
        assert by_recipe[name].n_file_bytes == pytest.approx(plan.n_bytes, rel=0.02)


def test_an_onnx_folder_is_refused_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / FACTS_NAME).write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="an ONNX folder"):
        find_candidates(str(tmp_path))


def test_a_70b_is_told_that_it_does_not_fit_and_what_would() -> None:
    found = candidates("llama3-med42-70b")
    told = recommend(found, Machine(32 * GB, True, 1), 8192)
    assert re.fullmatch(
        r"Q4_K_M at 8k context needs 45\.\d GB: does not fit in 32 GB; largest that fits: Q2_K "
        r"\(29\.\d GB\)\.",
        told,
    )
    told = recommend(found, Machine(16 * GB, True, 1), 8192)
    assert re.search(r"does not fit in 16 GB; no recipe does: the smallest, IQ1_S, needs 18\.\d GB\.", told)
    told = recommend(found, Machine(128 * GB, True, 1), 8192)
    assert re.fullmatch(r"Q4_K_M at 8k context needs 45\.\d GB: fits in 128 GB; largest that fits: Q8_0\.", told)


def test_an_importance_matrix_is_named_where_only_such_recipes_fit() -> None:
    assert "and an importance matrix)" in recommend(candidates("llama3-70b-instruct"), Machine(25 * GB, True, 1), 8192)


def test_a_70b_is_answered_in_under_a_second_of_processor_time() -> None:
    begin = time.process_time()
    data = invoke("meditron-70b", "--memory", "16GB")
    assert time.process_time() - begin < 1
    assert len(data["recipes"]) == len(RECIPES)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(read_catalog()))
def test_every_catalogue_model_gets_an_answer(name: str) -> None:
    model = read_catalog()[name]
    found = {c.recipe: c for c in recipe_candidates(hf_config(model), ["BF16", COMMON_RECIPE])}
    one = predict_memory(found[COMMON_RECIPE].shape, 2048, "f16")
    assert one.needed > found[COMMON_RECIPE].shape.n_weight_bytes
    assert one.peak_resident >= one.needed
    assert found["BF16"].n_file_bytes == pytest.approx(2 * model.n_params, rel=0.02)
    assert predict_memory(found["BF16"].shape, 2048, "q8_0").model.kv_cache < one.model.kv_cache


def test_what_fits_is_what_the_engine_would_load() -> None:
    one = next(c for c in candidates("llama3.1-8b-instruct") if c.recipe == COMMON_RECIPE)
    prediction = one.memory[8192]
    assert prediction.model == estimate(one.shape, 8192, "f16", fit.N_BATCH)
    assert fits(prediction, prediction.needed + fit.RESERVE_BYTES)
    assert not fits(prediction, prediction.needed + fit.RESERVE_BYTES - 1)


def test_sliding_windows_are_counted_by_hand_for_gemma() -> None:
    one = candidates("medgemma-4b-it", 32768)[0]
    # 34 layers, of which every sixth sees all: 5 of 32768 + 256 cells, 29 of 1024 + 512; 2 * 2 * 4 heads * 256 bytes.
    assert windowed_kv_bytes(one.header, one.shape, 32768, "f16") == (5 * 33024 + 29 * 1536) * 4096
    assert one.memory[32768].model.kv_cache == 34 * 33024 * 4096
    assert windowed_kv_bytes(candidates("phi3-mini-4k", 4096)[0].header, one.shape, 4096, "f16") is None


def test_decode_reads_every_matrix_once_and_no_embedding(tmp_path: Path) -> None:
    header = read_header(write_tiny_gguf(tmp_path / "m.gguf"))
    shape = read_shape(header)
    matrices = sum(t.n_bytes for t in header.tensors if len(t.shape) > 1 and t.name != "token_embd.weight")
    fixed = fit.TOKEN_SECONDS + 2 * fit.LAYER_SECONDS + shape.n_vocab * fit.VOCABULARY_SECONDS
    attention, _ = names = fit.reading_names(header, shape, "f16")
    assert names == ["attention over F16 in heads of 64", "F32"]
    speeds = {"F32": 1e9, attention: 1e9, "memory": 2e9}
    assert decode_tokens_per_second(header, shape, "f16", speeds, n_used=0) == pytest.approx(
        1 / (matrices / (fit.READING_SHARE * 1e9) + fixed)
    )
    cache = 100 * 2 * 4 * (64 + 64) * 2  # tokens * layers * query heads * (K and V of a head) * bytes
    once = 100 * 2 * 2 * (64 + 64) * 2  # two heads of keys and values
    assert decode_tokens_per_second(header, shape, "f16", speeds, n_used=100) == pytest.approx(
        1 / (matrices / (fit.READING_SHARE * 1e9) + cache / 1e9 + once / 2e9 + fixed)
    )
    assert decode_tokens_per_second(header, shape, "f16", speeds, n_used=0, n_threads=2) == pytest.approx(
        1 / (matrices / (fit.READING_SHARE * 1e9) + fixed + fit.WAKE_SECONDS)
    )
    assert decode_tokens_per_second(header, shape, "q8_0", speeds) is None
    assert decode_tokens_per_second(header, shape, "f16", {"Q4_K": 1e9}) is None


def test_a_reading_speed_is_measured_once_and_remembered() -> None:
    first = decode_speed.bytes_per_second(["Q4_K"], 1, budget_seconds=60)
    assert set(first) == {"memory", "Q4_K"}
    assert 1e7 < first["Q4_K"] <= first["memory"] < 1e13
    assert decode_speed.together(1.0, 1e6) == pytest.approx(1)
    assert decode_speed.together(1.0, 1.0) == pytest.approx(0.84, abs=0.01)
    assert decode_speed.bytes_per_second(["Q4_K"], 1, budget_seconds=0) == first
    decode_speed.SPEEDS.path.write_text("{")
    assert decode_speed.bytes_per_second(["Q4_K", "Q8_0"], 1, budget_seconds=-1) == {}


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q2_K", "IQ4_NL", "IQ2_XS", "TQ1_0"])
def test_every_kind_of_type_can_be_timed(name: str) -> None:
    kind = decode_speed.GGML_TYPES[name]
    assert decode_speed.measure_bytes_per_second(kind, 1, n_bytes=1 << 20, n_rounds=1) > 0


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_0"])
def test_attention_over_every_kind_of_cache_can_be_timed(name: str) -> None:
    assert decode_speed.measure_attention(decode_speed.GGML_TYPES[name], 64, 1, n_rounds=1) > 0
    assert decode_speed.bytes_per_second([decode_speed.attention_key(name, 64)], 1, budget_seconds=60)


def test_memory_of_a_loaded_model_is_predicted_and_the_error_kept(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "m.gguf")
    # A process that imports this file's tools holds them too, so the child is what a user's process is.
    measured = measure_fit.measure(model, 512, 1, 2, "f16")
    # So small a model is all runtime, whose own memory differs by some 20 MB between installations.
    assert measured.predicted_peak_bytes == pytest.approx(measured.measured_peak_bytes, abs=25e6)
    assert measured.measured_tokens_per_second > 0
    assert fit.read_history() == [measured]
    again = Measured(**{**vars(measured), "measured_peak_bytes": 1})
    fit.remember(again)
    assert fit.read_history() == [again]
    assert "past error here, 1 file: memory -100 to -100 %" in fit_cli.past_error(fit.read_history(), 1)
    fit.remember(Measured(**{**vars(measured), "n_threads": 2}))
    assert "1 file: memory -100 to -100 %" in fit_cli.past_error(fit.read_history(), 1)
    assert "2 files: memory -100 to" in fit_cli.past_error(fit.read_history(), 16)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("16GB", 16 * GB),
        ("16 gb", 16 * GB),
        ("1.5G", 3 * GB // 2),
        ("512M", 512 * 10**6),
        ("4GiB", 4 << 30),
        ("1000", 1000),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, n_bytes: int) -> None:
    assert memory_size(text) == n_bytes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing-like-this"], "neither a file"),
        (["llama3-med42-8"], "did you mean llama3-med42-8b"),
        (["llama3-8b", "--context", "9000"], "trained for 8192"),
        (["llama3-8b", "--memory", "much"], "is no size"),
        (["{folder}"], "config.json: missing"),
        (["{file}"], "a GGUF file starts with"),
    ],
)
def test_what_cannot_be_answered_is_said(tmp_path: Path, arguments: list[str], said: str) -> None:
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
    assert answer.returncode != 0
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr


def test_the_table_stays_within_eighty_columns() -> None:
    for name in ("llama3.1-70b-instruct", "medpsy-4b"):
        answer = CliRunner().invoke(fit_cli.command, [name, "--memory", "24GB"], env={"COLUMNS": "80"})
        assert answer.exit_code == 0
        rows = answer.output.split("!: more")[0].splitlines()
        assert max(len(line) for line in rows) <= 80
        assert "…" not in "".join(rows)
