"""Candidates against their plans, and the advice for machines of several sizes."""

import re
from pathlib import Path

import pytest

from medlite.cli.fit import find_candidates
from medlite.devices import Gpu
from medlite.errors import CheckpointError
from medlite.fit.machine import Machine, find_machine
from medlite.fit.recommend import find_config, gpu_advice, recommend, usual_contexts, with_speeds
from medlite.formats.onnx_folder import FACTS_NAME
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.match import match_checkpoint
from quantize.source.checkpoint import open_checkpoint
from tests.helpers.candidates import candidates_of
from tests.helpers.tiny_checkpoint import make_llama

GB = 10**9


def stated(n_bytes: int) -> Machine:
    return Machine(n_bytes, stated=True, n_threads=1)


def test_a_folder_and_its_plan_agree_on_every_tensor_byte(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    by_recipe = {c.recipe: c for c in find_candidates(str(folder))}
    assert set(by_recipe) == set(RECIPES)
    for name in ("BF16", "Q8_0", "Q4_K_M", "Q3_K_M"):
        plan = plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES[name])
        assert by_recipe[name].shape.n_weight_bytes == sum(t.n_bytes for t in plan.tensors)
        assert by_recipe[name].bits_per_weight == plan.bits_per_weight
        assert by_recipe[name].n_file_bytes == pytest.approx(plan.n_bytes, rel=0.02)


def test_an_onnx_folder_is_refused_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / FACTS_NAME).write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="an ONNX folder"):
        find_config(str(tmp_path))


def test_a_70b_is_told_that_it_does_not_fit_and_what_would() -> None:
    found = candidates_of("llama3-med42-70b")
    told = recommend(found, stated(32 * GB), 8192)
    assert re.fullmatch(
        r"Q4_K_M at 8k context needs 45\.\d GB: does not fit in 32 GB; largest that fits: Q2_K "
        r"\(29\.\d GB\)\.",
        told,
    )
    told = recommend(found, stated(16 * GB), 8192)
    assert re.search(r"does not fit in 16 GB; no recipe does: the smallest, IQ1_S, needs 18\.\d GB\.", told)
    told = recommend(found, stated(128 * GB), 8192)
    assert re.fullmatch(r"Q4_K_M at 8k context needs 45\.\d GB: fits in 128 GB; largest that fits: Q8_0\.", told)


def test_an_importance_matrix_is_named_where_only_such_recipes_fit() -> None:
    assert "and an importance matrix)" in recommend(candidates_of("llama3-70b-instruct"), stated(25 * GB), 8192)


def test_a_gpu_is_told_what_it_takes() -> None:
    found = candidates_of("llama3-med42-70b")
    assert gpu_advice(found, stated(64 * GB), 8192, "f16") == ""
    large, small = (Gpu("Some GPU", n * GB, n * GB, "550.54") for n in (80, 24))
    assert "takes the whole model of Q4_K_M at 8k" in gpu_advice(found, Machine(GB, False, 1, (large,)), 8192, "f16")
    told = gpu_advice(found, Machine(GB, False, 1, (small, large)), 8192, "f16")
    assert told == "Some GPU, 24 GB free: takes 42 of 80 layers of Q4_K_M at 8k. Its speed is not predicted."


def test_the_contexts_shown_are_few_and_end_with_the_models_own() -> None:
    assert usual_contexts(0) == [2048, 8192, 32768, 131072]
    assert usual_contexts(131072) == [2048, 8192, 32768, 131072]
    assert usual_contexts(4096) == [2048, 4096]
    assert usual_contexts(1000) == [1000]


def test_no_speed_is_claimed_for_a_machine_that_is_stated() -> None:
    found = candidates_of("llama3.2-1b-instruct")
    assert with_speeds(found, stated(GB), "f16") == found
    here = find_machine(n_threads=3)
    assert (here.stated, here.n_threads) == (False, 3)
    assert find_machine(GB) == Machine(GB, True, find_machine().n_threads, here.gpus)
