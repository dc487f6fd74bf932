"""Graphs of another exporter: made low-bit by us, run by our engine, equal to the export and to Transformers.

The last tests need Optimum, whose pins no newer transformers can share; they run it in an environment of its own:

    python3 -m venv optimum-env
    optimum-env/bin/pip install torch==2.13.0 optimum-onnx==0.1.0 optimum==2.1.0 transformers==4.57.6 \
        huggingface-hub==0.36.2 onnx onnxruntime sacremoses
    MEDLITE_OPTIMUM_PYTHON=optimum-env/bin/python pytest -m slow tests/quantize/onnx/test_exported.py
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.helpers import tiny_export
from tests.helpers.tiny_checkpoint import write_tokenizer

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
pytest.importorskip("onnx", reason="needs the extra [onnx]")
pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")

from medlite.engines import open_engine
from medlite.engines.engine import GenerationSettings, Logits, LogitsEngine, LogitsRequest, OpenSettings
from medlite.engines.ort import engine as ort
from medlite.errors import CheckpointError, MissingExtraError, RecipeError
from medlite.formats.onnx_folder import DATA_NAME, read_onnx_facts
from quantize.onnx.exported import open_source, plan_export
from quantize.onnx.optimum import REQUIREMENTS, Export, exported, has_optimum
from quantize.onnx.recipes import ONNX_RECIPES
from quantize.onnx.verify import verify_onnx
from quantize.source.checkpoint import open_checkpoint
from quantize.stream.plan import Plan
from quantize.stream.writer import write
from tests.helpers.places import ROOT

TOKENS = tuple(np.random.default_rng(1).integers(10, 300, 60).tolist())
OPTIMUM_PYTHON = os.environ.get("MEDLITE_OPTIMUM_PYTHON", "")
KL_NATS = {"fp32": 1e-6, "fp16": 1e-5, "q8": 1e-3, "q4m": 0.05, "q4": 0.1}


def kl(a: Logits, b: Logits) -> float:
    """Mean KL divergence of b from a, nats a token."""
    a, b = (x.astype(np.float64) - x.max(axis=1, keepdims=True) for x in (a, b))
    a, b = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (a, b))
    return float((np.exp(a) * (a - b)).sum(axis=1).mean())


def plan_of(folder: Path, recipe: str = "q8", block: int = 32) -> Plan:
    source, export = folder / "source", folder / "export"
    if not export.exists():
        tiny_export.write_export(export)
        tiny_export.write_source(source)
    return plan_export(open_source(source), Export(export, {"optimum-onnx": "0.1.0"}), ONNX_RECIPES[recipe], block)


def convert(folder: Path, recipe: str = "q8") -> Path:
    return write([plan_of(folder, recipe).output(folder / recipe)])[0].path


def every_logit(engine: LogitsEngine, tokens: tuple[int, ...] = TOKENS) -> Logits:
    return next(engine.logits([LogitsRequest(tokens, tuple(range(len(tokens))))]))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def exact(home: Path) -> Iterator[ort.OrtEngine]:
    with closing(open_engine(convert(home, "fp32"), OpenSettings(n_threads=1))) as engine:
        yield engine


def test_a_float32_graph_is_the_export(exact: ort.OrtEngine, home: Path) -> None:
    assert np.abs(every_logit(exact) - tiny_export.reference(home / "export", TOKENS)).max() < 4e-5


@pytest.mark.parametrize("recipe", ["fp16", "q8", "q4m", "q4"])
def test_low_bits_stay_near(recipe: str, home: Path) -> None:
    with closing(open_engine(convert(home, recipe), OpenSettings(n_threads=1))) as engine:
        assert 0 < kl(tiny_export.reference(home / "export", TOKENS), every_logit(engine)) < KL_NATS[recipe]


def test_a_cache_that_grows_gives_what_one_run_gives(exact: ort.OrtEngine, home: Path) -> None:
    """In pieces, behind a shared prefix, side by side, token by token."""
    whole = every_logit(exact)
    with closing(open_engine(home / "fp32", OpenSettings(n_threads=1, n_batch=16))) as pieces:
        assert np.abs(every_logit(pieces) - whole).max() < 2e-5
        branches = [LogitsRequest((*TOKENS[:40], i), (40,)) for i in range(4)]
        alone = [next(pieces.logits([branch])) for branch in branches]
        for got, expected in zip(pieces.logits(branches), alone, strict=True):
            assert np.abs(got - expected).max() < 2e-5
    unlike = [LogitsRequest(TOKENS[i : i + n], (n - 1,)) for i, n in ((0, 5), (11, 20), (3, 13))]
    alone = [next(exact.logits([one])) for one in unlike]
    for got, expected in zip(exact.logits(unlike), alone, strict=True):
        assert np.abs(got - expected).max() < 2e-5


def test_generation_is_greedy_and_reads_a_prefix_once(exact: ort.OrtEngine) -> None:
    steps = list(exact.generate(TOKENS[:20], GenerationSettings(max_tokens=8, ignore_end=True)))
    sequence = list(TOKENS[:20])
    for step in steps:
        assert step.token == int(every_logit(exact, tuple(sequence))[-1].argmax())
        sequence.append(step.token)
    list(exact.generate(TOKENS[:20], GenerationSettings(max_tokens=4)))
    before = exact.n_tokens_read
    list(exact.generate([*TOKENS[:18], 3], GenerationSettings(max_tokens=1)))
    assert exact.n_tokens_read - before == 1


def test_matrices_get_their_bits_and_equal_ones_are_stored_once(home: Path) -> None:
    stored = {tensor.name: tensor.encoding.name for tensor in plan_of(home, "q4m").tensors}
    assert stored == {
        "transformer.wte.weight": "int8 b32",
        "transformer.h.1.attn.c_attn.weight": "int4 b32 zp",
        "transformer.h.1.attn.out_proj.weight": "int4 b32 zp",
        "transformer.h.1.fc1.weight": "int4 b32 zp",
        "transformer.h.1.fc2.weight": "int8 b32",
        "wpe": "float32",
        "bias": "float32",
    }
    wanted = tiny_export.weights()
    assert plan_of(home).n_params == sum(value.size for name, value in wanted.items() if name != "head")


def test_weights_beside_the_export_give_the_same_folder(home: Path, tmp_path: Path) -> None:
    """As Optimum writes them where they exceed protobuf's 2 GB; they are mapped, not loaded."""
    tiny_export.write_export(tmp_path / "export", external=True)
    tiny_export.write_source(tmp_path / "source")
    assert (tmp_path / "export" / "model.onnx_data").stat().st_size > 4 * plan_of(home).n_params
    data = [
        (folder / "q4" / DATA_NAME).read_bytes()
        for folder in (home, tmp_path)
        if (folder / "q4").exists() or convert(folder, "q4")
    ]
    assert data[0] == data[1]


def test_facts_and_receipt_say_what_made_it(home: Path) -> None:
    folder = convert(home, "q8") if not (home / "q8").exists() else home / "q8"
    facts = read_onnx_facts(folder)
    assert (facts.architecture, facts.n_context_trained, facts.n_layer, facts.n_head_kv, facts.head_dim) == (
        "gpt2",
        tiny_export.N_CONTEXT,
        1,
        tiny_export.N_HEAD,
        tiny_export.WIDTH,
    )
    assert not facts.shared_cache
    assert 7 in facts.end_tokens
    receipt = json.loads((folder / "receipt.json").read_text())
    assert receipt["made_by"]["optimum-onnx"] == "0.1.0"
    assert [row["name"] for row in receipt["source"]["shards"]] == ["model.safetensors"]


def test_verify_finds_a_changed_byte_and_another_source(home: Path, tmp_path: Path) -> None:
    folder = convert(tmp_path, "q8")
    source = tmp_path / "source"
    assert verify_onnx(folder, against=open_checkpoint(source)).ok
    tiny_export.write_safetensors(source / "model.safetensors", {"x": np.zeros((4, 4), np.float32)}, "F32")
    assert "not the file" in verify_onnx(folder, against=open_checkpoint(source)).problems[0]
    with (folder / DATA_NAME).open("r+b") as handle:
        handle.seek(1000)
        handle.write(b"\xff\x00\xff\x00")
    assert not verify_onnx(folder).ok


def test_the_command_makes_a_folder_that_generates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a relative path, with a program in Optimum's place that writes the tiny export where it is told to."""
    from medlite.cli import cli

    tiny_export.write_source(tmp_path / "m")
    program = tmp_path / "python"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.helpers.tiny_export import write_export\nwrite_export(Path(sys.argv[3]))\n"
    )
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDLITE_CACHE", str(tmp_path / "cache"))
    command = ["quantize", "m", "--format", "onnx", "--exporter", "optimum", "--exporter-python", "./python"]
    dry = CliRunner().invoke(cli, [*command, "--dry-run"], catch_exceptions=False)
    assert "m-q4m-onnx" in dry.output
    assert not (tmp_path / "m-q4m-onnx").exists()
    CliRunner().invoke(cli, [*command, "--recipe", "q8", "--json"], catch_exceptions=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "m", "m-q8-onnx", "python"]
    answer = CliRunner().invoke(cli, ["generate", "m-q8-onnx", "hello", "--max-tokens", "3", "--raw"])
    assert answer.exit_code == 0, answer.output


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_block_that_does_not_divide_a_matrix(home: Path) -> None:
    with pytest.raises(RecipeError, match="row length 64 is not a multiple of 128"):
        plan_of(home, "q8", 128)


def test_what_the_config_must_say(tmp_path: Path) -> None:
    tiny_export.write_export(tmp_path / "export")
    source = tiny_export.write_source(tmp_path / "source", vocab_size=401)
    with pytest.raises(CheckpointError, match="0 matrices of 401 rows"):
        plan_of(tmp_path)
    tiny_export.write_source(source, n_positions=None)
    with pytest.raises(CheckpointError, match="n_positions"):
        plan_of(tmp_path)
    tiny_export.write_source(source)
    (source / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: missing"):
        plan_of(tmp_path)
    (source / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        plan_of(tmp_path)


def test_without_optimum_the_commands_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantize.onnx.optimum.has_optimum", lambda: False)
    with pytest.raises(MissingExtraError) as refused, exported(tmp_path, tmp_path):
        pass
    assert refused.value.hint is not None
    assert "optimum-onnx==0.1.0" in refused.value.hint
    assert "--exporter-python" in refused.value.hint


def test_an_interpreter_without_optimum_and_one_that_is_none(tmp_path: Path) -> None:
    if has_optimum():
        pytest.skip("this environment has optimum")
    with (
        pytest.raises(CheckpointError, match="No module named") as refused,
        exported(tmp_path, tmp_path, Path(sys.executable)),
    ):
        pass
    assert "optimum-onnx==0.1.0" in str(refused.value.hint)
    with pytest.raises(CheckpointError, match="No such file"), exported(tmp_path, tmp_path, tmp_path / "python"):
        pass
    assert not list(tmp_path.glob(".optimum-*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--exporter", "optimum"], "only with --format onnx"),
        (["--format", "onnx", "--exporter-python", "x"], "only with --exporter optimum"),
        (["--format", "onnx", "--exporter", "optimum", "--device", "cuda"], "made for the CPU"),
        (["--format", "onnx", "--exporter", "magic"], "magic"),
        (["--format", "onnx"], "--exporter optimum exports BioGPT"),
    ],
)
def test_bad_options_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    from medlite.cli import cli

    tiny_export.write_source(tmp_path / "m")
    answer = CliRunner().invoke(cli, ["quantize", str(tmp_path / "m"), *arguments])
    assert answer.exit_code != 0
    assert message in f"{answer.output} {answer.exception} {getattr(answer.exception, 'hint', '')}"


def test_the_extra_pins_what_the_hint_names() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(REQUIREMENTS) == set(project["optional-dependencies"]["optimum"])


# --- BioGPT's words --------------------------------------------------------------------------------------------------

# fmt: off
TEXTS = ("Metformin is a biguanide.", "TNF-alpha (p<0.05) & IL-6's role, e.g. 5 mg/kg", "", "  two  spaces ",
         "COVID-19 patients received remdesivir; 12.5% died.", "a b [c] \"d\" | e", "漢 é naïve β-blocker")
# fmt: on


def write_biogpt_vocabulary(folder: Path) -> None:
    """Letters, ends of words and some merges, one of whose results is no token."""
    letters = [chr(i) for i in range(33, 127)] + ["é", "β"]
    merges = [
        ("i", "n</w>"),
        ("o", "r"),
        ("m", "e"),
        ("me", "t"),
        ("&", "a"),
        ("&a", "p"),
        ("i", "n"),
        ("a", "l"),
        ("@", "-"),
        ("@-", "@</w>"),
        ("i", "s</w>"),
        ("r", "o"),
        ("l", "e</w>"),
    ]
    texts = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        *letters,
        *(letter + "</w>" for letter in letters),
        *("".join(pair) for pair in merges if pair != ("&", "a")),
    ]
    (folder / "vocab.json").write_text(json.dumps({text: i for i, text in enumerate(dict.fromkeys(texts))}))
    (folder / "merges.txt").write_text("".join(f"{a} {b} 1\n" for a, b in merges))


def test_biogpt_s_text_comes_back(tmp_path: Path) -> None:
    pytest.importorskip("sacremoses", reason="needs the extra [biogpt]")
    from medlite.engines.ort.moses import MosesTokenizer

    write_biogpt_vocabulary(tmp_path)
    tokenizer = MosesTokenizer(tmp_path, [])
    ids = tokenizer.encode("IL-6's role </s>", add_bos=True, parse_special=True)
    assert ids[0] == ids[-1] == 2
    assert tokenizer.pieces(ids) == b"IL - 6 's role "
    assert tokenizer.encode("</s>", add_bos=False, parse_special=False) != [2]


# --- Optimum itself, in its own environment --------------------------------------------------------------------------

MAKE = """
import json, sys
import numpy as np, torch
from transformers import BioGptConfig, BioGptForCausalLM, GPT2Config, GPT2LMHeadModel
folder, kind = sys.argv[1:]
torch.manual_seed(0)
if kind == "gpt2":
    model = GPT2LMHeadModel(GPT2Config(vocab_size=600, n_positions=128, n_embd=128, n_layer=2, n_head=4, bos_token_id=0,
                                       eos_token_id=0, initializer_range=0.1))
else:
    model = BioGptForCausalLM(BioGptConfig(vocab_size=600, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
                                           intermediate_size=256, max_position_embeddings=128, initializer_range=0.1))
for name, value in model.named_parameters():
    if value.ndim == 1:
        torch.nn.init.normal_(value, float(name.endswith("weight")), 0.1)
model.eval().save_pretrained(folder)
ids = torch.tensor(np.random.default_rng(1).integers(10, 300, (1, 60)))
with torch.no_grad():
    logits = model(ids).logits[0].numpy()
    greedy = model.generate(ids[:, :20], max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0,
                            attention_mask=torch.ones(1, 20, dtype=torch.long))[0, 20:]
np.savez(folder + "/reference.npz", logits=logits, greedy=greedy.numpy())
"""
WORDS = """
import json, sys
from transformers import BioGptTokenizer
tokenizer = BioGptTokenizer.from_pretrained(sys.argv[1])
print(json.dumps([tokenizer(text).input_ids for text in json.loads(sys.argv[2])]))
"""
needs_optimum = pytest.mark.skipif(not OPTIMUM_PYTHON, reason="needs MEDLITE_OPTIMUM_PYTHON, see the top of this file")


def in_optimum_environment(script: str, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [OPTIMUM_PYTHON, "-c", script, *arguments], capture_output=True, text=True, check=True, env=environment
    ).stdout


@pytest.mark.slow
@needs_optimum
@pytest.mark.parametrize("kind", ["gpt2", "biogpt"])
def test_an_optimum_export_equals_transformers(kind: str, tmp_path: Path) -> None:
    source = tmp_path / kind
    source.mkdir()
    in_optimum_environment(MAKE, str(source), kind)
    if kind == "gpt2":
        write_tokenizer(source, 600)
    else:
        pytest.importorskip("sacremoses", reason="needs the extra [biogpt]")
        write_biogpt_vocabulary(source)
    reference = np.load(source / "reference.npz")
    with exported(source, tmp_path, Path(OPTIMUM_PYTHON)) as export:
        folders = {
            recipe: write(
                [plan_export(open_source(source), export, ONNX_RECIPES[recipe], 32).output(tmp_path / recipe)]
            )[0].path
            for recipe in KL_NATS
        }
    assert not list(tmp_path.glob(".optimum-*"))
    for recipe, folder in folders.items():
        assert verify_onnx(folder, against=open_checkpoint(source)).ok
        with closing(open_engine(folder, OpenSettings(n_threads=1))) as engine:
            logits = every_logit(engine)
            assert kl(reference["logits"], logits) < KL_NATS[recipe], recipe
            if recipe == "fp32":
                assert np.abs(logits - reference["logits"]).max() < 4e-5
                steps = engine.generate(TOKENS[:20], GenerationSettings(max_tokens=32, ignore_end=True))
                assert [step.token for step in steps] == reference["greedy"].tolist()


@pytest.mark.slow
@needs_optimum
def test_biogpt_s_tokens_are_transformers(tmp_path: Path) -> None:
    pytest.importorskip("sacremoses", reason="needs the extra [biogpt]")
    from medlite.engines.ort.moses import MosesTokenizer

    write_biogpt_vocabulary(tmp_path)
    theirs = json.loads(in_optimum_environment(WORDS, str(tmp_path), json.dumps(TEXTS)))
    ours = [MosesTokenizer(tmp_path, []).encode(text, add_bos=True, parse_special=False) for text in TEXTS]
    assert ours == theirs
