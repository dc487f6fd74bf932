"""Every family's graph against llama.cpp, and (marked slow) against Transformers and onnxruntime-genai."""

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.tiny_families import FAMILIES, make_family

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
pytest.importorskip("onnx", reason="needs the extra [onnx]")
pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")

from medlite.engines import open_engine
from medlite.engines.engine import GenerationSettings, Logits, LogitsRequest, OpenSettings
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.match import match_checkpoint
from quantize.onnx.plan import plan_onnx
from quantize.onnx.recipes import ONNX_RECIPES
from quantize.source.checkpoint import open_checkpoint, read_json_object
from quantize.stream.writer import write

WITH_TOKENIZER_JSON = [name for name in FAMILIES if name != "llama2_model_only"]
TRANSFORMERS_TOLERANCE = 4e-5
LLAMA_CPP_TOLERANCE = 2e-2  # its key-value cache is float16; measured: 2e-3 to 9e-3
N_TOKENS, N_PROMPT, N_NEW, CHUNK = 200, 40, 32, 48
N_AGAINST_LLAMA_CPP = 40  # it has no window for Mistral and Phi-3
# Of LongRoPE's factors llama.cpp takes the long ones for short prompts too; Transformers is its oracle, below.
ON_LLAMA_CPP = [name for name in WITH_TOKENIZER_JSON if name != "phi3_long"]


def tokens_of(n: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(1).integers(3, 300, n).tolist())


def convert(source: Path, recipe: str = "fp32", device: str = "cpu") -> Path:
    target = source.parent / f"{source.name}-{recipe}-{device}"
    if not target.exists():
        plan = plan_onnx(match_checkpoint(open_checkpoint(source)), ONNX_RECIPES[recipe], block=32, device=device)
        write([plan.output(target)])
    return target


def every_logit(folder: Path, tokens: tuple[int, ...], **options: Any) -> Logits:
    with closing(open_engine(folder, OpenSettings(n_threads=1, **options))) as engine:
        return next(engine.logits([LogitsRequest(tokens, tuple(range(len(tokens))))]))


@pytest.mark.parametrize("family", ON_LLAMA_CPP)
def test_logits_equal_llama_cpp_s(family: str, tmp_path: Path) -> None:
    """Two runtimes, two conversions, one set of tables: an error in either would show."""
    source = make_family(family, tmp_path / "m")
    write([plan_gguf(match_checkpoint(open_checkpoint(source)), RECIPES["F32"]).output(tmp_path / "m.gguf")])
    tokens = tokens_of(N_AGAINST_LLAMA_CPP)
    ours = every_logit(convert(source), tokens)
    theirs = every_logit(tmp_path / "m.gguf", tokens, device="cpu", n_context=len(tokens))
    assert np.abs(ours - theirs).max() < LLAMA_CPP_TOLERANCE


LIMITS_BY_BITS = {16: 2e-4, 8: 0.06, 4: 0.6}  # of a recipe without a narrower one of its own
LIMITS = {"q4m": 0.45}


@pytest.mark.parametrize("recipe", [name for name, row in ONNX_RECIPES.items() if row.bits < 32])
@pytest.mark.parametrize("family", ["llama2", "llama32", "qwen2", "qwen3", "phi3", "gemma3"])
def test_low_bits_move_logits_no_more_than_they_should(family: str, recipe: str, tmp_path: Path) -> None:
    """Random weights: a misplaced scale or zero point moves logits by their whole size, about 4."""
    source = make_family(family, tmp_path / "m")
    tokens = tokens_of(64)
    difference = every_logit(convert(source, recipe), tokens) - every_logit(convert(source), tokens)
    limit = LIMITS.get(recipe, LIMITS_BY_BITS[ONNX_RECIPES[recipe].bits])
    assert np.sqrt(np.square(difference).mean()) < limit


def test_a_generation_that_outgrows_the_short_table_is_read_anew(tmp_path: Path) -> None:
    """Keys that LongRoPE's short table rotated mean nothing to queries of the long one."""
    folder = convert(make_family("phi3_long", tmp_path / "m"))
    sequence = list(tokens_of(509))  # the short table rules up to 512
    engine = open_engine(folder, OpenSettings(n_threads=1, n_context=1024))
    tokens = [step.token for step in engine.generate(sequence, GenerationSettings(max_tokens=7, ignore_end=True))]
    for token in tokens:
        logits = next(engine.logits([LogitsRequest(tuple(sequence), (len(sequence) - 1,))]))
        assert token == int(logits.argmax())
        sequence.append(token)


# --- Transformers ----------------------------------------------------------------------------------------------------


def reference(folder: Path) -> Any:
    """The checkpoint in Transformers at float32, without generation settings of its own."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig

    name = read_json_object(folder / "config.json")["architectures"][0]
    loader = AutoModelForImageTextToText if "Conditional" in name else AutoModelForCausalLM
    model = loader.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    model.generation_config = GenerationConfig(pad_token_id=0)
    return model


def n_tokens_of(folder: Path) -> int:
    config = read_json_object(folder / "config.json")
    return min(N_TOKENS, (config.get("text_config") or config).get("max_position_embeddings", N_TOKENS))


@pytest.mark.slow
@pytest.mark.parametrize("family", WITH_TOKENIZER_JSON)
def test_logits_and_greedy_text_equal_transformers(family: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra [torch]")
    pytest.importorskip("transformers", reason="needs the extra [torch]")
    source = make_family(family, tmp_path / "m")
    tokens, model = tokens_of(n_tokens_of(source)), reference(source)
    prompt = tokens[:N_PROMPT]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([tokens])).logits[0].numpy()
        greedy = model.generate(
            input_ids=torch.tensor([prompt]),
            max_new_tokens=N_NEW,
            do_sample=False,
            attention_mask=torch.ones(1, N_PROMPT, dtype=torch.long),
        )[0, N_PROMPT:].tolist()
    folder = convert(source)
    whole = every_logit(folder, tokens)
    assert np.abs(whole - expected[:, : whole.shape[1]]).max() < TRANSFORMERS_TOLERANCE
    assert np.abs(every_logit(folder, tokens, n_batch=CHUNK) - whole).max() < TRANSFORMERS_TOLERANCE
    engine = open_engine(folder, OpenSettings(n_threads=1))
    written = engine.generate(prompt, GenerationSettings(max_tokens=N_NEW, ignore_end=True))
    assert [step.token for step in written] == greedy


@pytest.mark.slow
def test_beyond_longrope_s_short_table_all_is_rotated_by_the_long_one(tmp_path: Path) -> None:
    """Read whole and in pieces, and generated across the border, where transformers reads everything anew."""
    torch = pytest.importorskip("torch", reason="needs the extra [torch]")
    pytest.importorskip("transformers", reason="needs the extra [torch]")
    source = make_family("phi3_long", tmp_path / "m")
    n_short = read_json_object(source / "config.json")["original_max_position_embeddings"]
    tokens, model = tokens_of(n_short + 90), reference(source)
    prompt = tokens[: n_short - N_NEW // 2]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([tokens])).logits[0].numpy()
        greedy = model.generate(
            input_ids=torch.tensor([prompt]),
            max_new_tokens=N_NEW,
            do_sample=False,
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        )[0, len(prompt) :].tolist()
    folder = convert(source)
    for n_batch in (1024, CHUNK):
        assert np.abs(every_logit(folder, tokens, n_batch=n_batch) - expected).max() < TRANSFORMERS_TOLERANCE
    engine = open_engine(folder, OpenSettings(n_threads=1))
    written = engine.generate(prompt, GenerationSettings(max_tokens=N_NEW, ignore_end=True))
    assert [step.token for step in written] == greedy


@pytest.mark.slow
@pytest.mark.parametrize("family", WITH_TOKENIZER_JSON)
def test_the_folder_runs_in_onnxruntime_genai(family: str, tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai 0.18")
    folder = convert(make_family(family, tmp_path / "m"), "q4m")
    prompt = tokens_of(N_PROMPT)
    model = genai.Model(str(folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=N_PROMPT + N_NEW, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array(prompt, np.int32))
    logits = generator.get_output("logits")[0].copy()
    theirs: list[int] = []
    while not generator.is_done() and len(theirs) < N_NEW:
        generator.generate_next_token()
        theirs.append(int(generator.get_next_tokens()[0]))
    assert np.array_equal(logits, every_logit(folder, prompt))
    ours = [
        step.token
        for step in open_engine(folder, OpenSettings(n_threads=1)).generate(
            prompt, GenerationSettings(max_tokens=N_NEW)
        )
    ]
    assert ours == theirs
