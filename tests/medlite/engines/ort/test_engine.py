"""The ONNX Runtime engine against single runs of its own graph, and against what a user can get wrong."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.helpers.tiny_checkpoint import make_llama

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
onnx = pytest.importorskip("onnx", reason="needs the extra [onnx]")
pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")

import medlite  # noqa: E402
from medlite.devices import Gpu  # noqa: E402
from medlite.engines import open_engine  # noqa: E402
from medlite.engines.context import choose_context  # noqa: E402
from medlite.engines.engine import GenerationSettings, Logits, LogitsRequest, OpenSettings  # noqa: E402
from medlite.engines.json_schema import lark_from_json_schema  # noqa: E402
from medlite.engines.ort import engine as ort  # noqa: E402
from medlite.engines.ort import session as ort_session  # noqa: E402
from medlite.errors import ArtifactError, ContextError, DeviceError, EngineError, MemoryShortError, MissingExtraError  # noqa: E402
from medlite.formats.onnx_folder import DATA_NAME, FACTS_NAME, MODEL_NAME, read_onnx_facts  # noqa: E402
from quantize.match import match_checkpoint  # noqa: E402
from quantize.onnx.plan import plan_onnx  # noqa: E402
from quantize.onnx.recipes import ONNX_RECIPES  # noqa: E402
from quantize.source.checkpoint import open_checkpoint  # noqa: E402
from quantize.stream.writer import write  # noqa: E402
from tests.helpers.places import ROOT  # noqa: E402

# Logits are of order 1 to 4. In float32 only the order of sums differs between runs of other shapes. MatMulNBits rounds
# activations to int8, and a sum that differs in its last bit may round to the next code.
TOLERANCE = {"fp32": 2e-5, "q4m": 0.06}
N_CONTEXT = 512


def convert(source: Path, target: Path, recipe: str = "q4m", device: str = "cpu") -> Path:
    plan = plan_onnx(match_checkpoint(open_checkpoint(source)), ONNX_RECIPES[recipe], block=32, device=device)
    write([plan.output(target)])
    return target


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("ort") / "m")


@pytest.fixture(scope="module")
def folders(source: Path) -> dict[str, Path]:
    return {recipe: convert(source, source / recipe, recipe) for recipe in TOLERANCE}


@pytest.fixture(scope="module")
def folder(folders: dict[str, Path]) -> Path:
    return folders["q4m"]


def open_tiny(path: Path, **options: Any) -> ort.OrtEngine:
    opened = open_engine(path, OpenSettings(n_threads=1, **options))
    assert isinstance(opened, ort.OrtEngine)
    return opened


@pytest.fixture(scope="module")
def engine(folders: dict[str, Path]) -> Iterator[ort.OrtEngine]:
    with closing(open_tiny(folders["fp32"])) as opened:
        yield opened


@pytest.fixture(scope="module", params=TOLERANCE)
def batched(
    request: pytest.FixtureRequest, folders: dict[str, Path]
) -> Iterator[tuple[ort.OrtEngine, ort.OrtEngine, float]]:
    """An engine, the one that reads token by token, and how far apart their logits may be; for each recipe."""
    path = folders[request.param]
    with closing(open_tiny(path, n_batch=256)) as opened, closing(open_tiny(path, n_batch=1)) as single:
        yield opened, single, TOLERANCE[request.param]


def random_tokens(n: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, 256, n).tolist())


def one_by_one(single: ort.OrtEngine, tokens: tuple[int, ...]) -> Logits:
    """The oracle: each token in a run of its own, by an engine whose batches are one token. (n_tokens, n_vocab)."""
    return next(single.logits([LogitsRequest(tokens, tuple(range(len(tokens))))]))


PREFIX = random_tokens(40, seed=1)
CASES: dict[str, list[LogitsRequest]] = {
    "one sequence, every position": [LogitsRequest(random_tokens(30), tuple(range(30)))],
    "one token": [LogitsRequest((5,), (0,))],
    "no position": [LogitsRequest(random_tokens(9), ()), LogitsRequest(random_tokens(12, seed=4), (11,))],
    "a shared prefix": [LogitsRequest((*PREFIX, i), (40,)) for i in range(5)],
    "a prefix of another": [LogitsRequest(PREFIX[:n], (n - 1,)) for n in (40, 10, 25)],
    "the same twice": [LogitsRequest(PREFIX, (3, 39)), LogitsRequest(PREFIX, (0, 39))],
    "unlike sequences of unlike length": [
        LogitsRequest(random_tokens(n, seed=n), (n // 2, n - 1)) for n in (3, 50, 17, 33, 8, 21, 64)
    ],
    "longer than one run": [LogitsRequest(random_tokens(500, seed=7), (0, 255, 256, 499))],
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_single_runs(case: str, batched: tuple[ort.OrtEngine, ort.OrtEngine, float]) -> None:
    one, single, tolerance = batched
    for request, got in zip(CASES[case], list(one.logits(CASES[case])), strict=True):
        assert got.shape == (len(request.positions), one.info.n_vocab)
        if request.positions:
            expected = one_by_one(single, request.tokens)[list(request.positions)]
            assert np.abs(got - expected).max() < tolerance


def test_the_same_requests_give_the_same_bits(engine: ort.OrtEngine) -> None:
    requests = CASES["a shared prefix"] + CASES["unlike sequences of unlike length"]
    first = list(engine.logits(requests))
    list(engine.generate(PREFIX, GenerationSettings(max_tokens=3)))
    assert all(np.array_equal(a, b) for a, b in zip(first, engine.logits(requests), strict=True))


def test_a_shared_prefix_is_read_once(engine: ort.OrtEngine) -> None:
    before = engine.n_tokens_read
    list(engine.logits(CASES["a shared prefix"]))
    assert engine.n_tokens_read - before == 41 + 4


def test_only_wanted_logits_are_computed(engine: ort.OrtEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[int] = []
    read = ort_session.CachedDecoder.read

    def noting(self: Any, tokens: Any, logits_from: int, n_total: int) -> Logits:
        starts.append(len(tokens) - logits_from)
        return read(self, tokens, logits_from, n_total)

    monkeypatch.setattr(ort_session.CachedDecoder, "read", noting)
    list(engine.logits([LogitsRequest(PREFIX, (38, 39))]))
    list(engine.generate(PREFIX, GenerationSettings(max_tokens=1)))
    assert starts == [2, 1]


# --- generation ------------------------------------------------------------------------------------------------------


def test_generation_is_greedy_and_continues_what_it_read(engine: ort.OrtEngine) -> None:
    steps = list(engine.generate(PREFIX, GenerationSettings(max_tokens=6)))
    sequence = list(PREFIX)
    for step in steps:
        (logits,) = engine.logits([LogitsRequest(tuple(sequence), (len(sequence) - 1,))])
        assert step.token == int(logits[-1].argmax())
        sequence.append(step.token)
    assert steps[-1].finish in ("length", "stop")
    list(engine.generate(PREFIX, GenerationSettings(max_tokens=4)))
    before = engine.n_tokens_read
    list(engine.generate([*PREFIX, 7, 8], GenerationSettings(max_tokens=1)))
    assert engine.n_tokens_read - before == 2


def test_a_reply_follows_a_schema(engine: ort.OrtEngine) -> None:
    properties = {"dose": {"type": "integer", "minimum": 5, "maximum": 2550}, "unit": {"enum": ["mg", "µg"]}}
    schema = {"type": "object", "properties": properties, "required": ["dose", "unit"]}
    grammar = lark_from_json_schema(schema)
    for seed in range(4):
        settings = GenerationSettings(max_tokens=200, temperature=1.5, top_k=0, min_p=0, seed=seed, grammar=grammar)
        steps = list(engine.generate(PREFIX, settings))
        assert steps[-1].finish == "stop"
        jsonschema.validate(json.loads("".join(step.text for step in steps)), schema)


def test_an_end_token_stops(engine: ort.OrtEngine, folders: dict[str, Path], tmp_path: Path) -> None:
    free = [step.token for step in engine.generate(PREFIX, GenerationSettings(max_tokens=5, ignore_end=True))]
    path = shutil.copytree(folders["fp32"], tmp_path / "m")
    facts = json.loads((path / FACTS_NAME).read_text(encoding="utf-8"))
    (path / FACTS_NAME).write_text(json.dumps(facts | {"end_tokens": free[2:3]}), encoding="utf-8")
    with closing(open_tiny(path)) as ending:
        steps = list(ending.generate(PREFIX, GenerationSettings(max_tokens=5)))
        on = list(ending.generate(PREFIX, GenerationSettings(max_tokens=5, ignore_end=True)))
    assert [step.token for step in on] == free
    assert [step.finish for step in steps][-1] == "stop"
    assert len(steps) == free.index(free[2]) + 1
    assert steps[-1].text == ""


def test_cancel_and_a_second_call_from_the_same_thread(engine: ort.OrtEngine) -> None:
    running = engine.generate(PREFIX, GenerationSettings(max_tokens=50))
    next(running)
    with pytest.raises(EngineError, match="still open"):
        next(engine.generate(PREFIX, GenerationSettings(max_tokens=1)))
    engine.cancel()
    assert list(running)[-1].finish in ("cancelled", "stop")


def test_text_goes_through_the_checkpoint_s_tokenizer(engine: ort.OrtEngine) -> None:
    text = "The patient takes metformin 500 mg. é € 漢"
    tokens = engine.tokenize(text)
    assert engine.detokenize(tokens).decode() == text
    assert tokens[0] == engine.tokenize("<|begin_of_text|>", add_bos=False, parse_special=True)[0]
    assert len(engine.tokenize("<|eot_id|>", add_bos=False)) > 1
    assert len(engine.tokenize("<|eot_id|>", add_bos=False, parse_special=True)) == 1
    assert engine.detokenize(engine.tokenize("<|eot_id|>", add_bos=False, parse_special=True)) == b""


def test_the_runtime_as_users_have_it(folder: Path) -> None:
    with medlite.load(str(folder), medlite.OpenSettings(n_threads=1)) as model:
        assert model.artifact.format == "onnx"
        assert model.template is not None
        answer = model.ask("What class of drug is metformin?", settings=GenerationSettings(max_tokens=4))
        assert answer == model.ask("What class of drug is metformin?", settings=GenerationSettings(max_tokens=4))


# --- refusals --------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_any_work(engine: ort.OrtEngine) -> None:
    with pytest.raises(ContextError):
        engine.logits([LogitsRequest(random_tokens(N_CONTEXT + 1), (0,))])
    with pytest.raises(ContextError):
        engine.generate(random_tokens(N_CONTEXT), GenerationSettings())
    with pytest.raises(EngineError, match="empty prompt"):
        engine.generate([], GenerationSettings())
    for request in (LogitsRequest((1, 2), (2,)), LogitsRequest((1, 2), (1, 0)), LogitsRequest((1, 512), (0,))):
        with pytest.raises(EngineError):
            engine.logits([request])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_type": "q8_0"}, "fixes the type"),
        ({"dtype": "float32"}, "fixes the types"),
        ({"n_threads": 0}, "0 threads"),
        ({"n_context": 513}, "trained for 512"),
        ({"n_context": -1}, "trained for 512"),
        ({"device": "npu"}, "unknown device"),
        ({"device": "cuda"}, "made for the CPU"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(EngineError, match=message):
        open_engine(folder, OpenSettings(**options))
    with pytest.raises(EngineError, match="unknown engine"):
        open_engine(folder, engine="abacus")


def test_a_folder_that_is_too_large_for_the_memory(folder: Path) -> None:
    with pytest.raises(MemoryShortError):
        choose_context(ort.context_needs(read_onnx_facts(folder), 10**12), None, 10**9)


@pytest.mark.parametrize("n_bytes", [0, 1000, 100_000])
def test_truncated_weights_are_refused(n_bytes: int, source: Path, tmp_path: Path) -> None:
    path = convert(source, tmp_path / "q")
    with (path / DATA_NAME).open("r+b") as handle:
        handle.truncate(n_bytes)
    with pytest.raises(ArtifactError, match="were written"):
        open_engine(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": {"type": "BPE"}}', "\xff"])
def test_a_damaged_tokenizer_is_refused(text: str, source: Path, tmp_path: Path) -> None:
    path = convert(source, tmp_path / "q")
    (path / "tokenizer.json").write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        open_engine(path)


def test_an_operator_that_the_runtime_lacks_is_named(source: Path, tmp_path: Path) -> None:
    path = convert(source, tmp_path / "q")
    model = onnx.load(str(path / MODEL_NAME), load_external_data=False)
    model.graph.node[-3].op_type = "MatMulNBitsOfTomorrow"
    (path / MODEL_NAME).write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match="cannot load it") as refused:
        open_engine(path)
    assert "newer onnxruntime" in str(refused.value.hint)


def test_a_closed_engine_says_so(folder: Path) -> None:
    opened = open_tiny(folder)
    opened.close()
    opened.close()
    with pytest.raises(EngineError, match="closed"):
        opened.tokenize("x")


# --- devices and wheels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["fp16", "q4m"])
def test_a_cuda_graph_builds_here_and_runs_on_the_cpu(recipe: str, source: Path, tmp_path: Path) -> None:
    cpu = open_tiny(convert(source, tmp_path / "cpu", recipe))
    cuda = open_tiny(convert(source, tmp_path / "cuda", recipe, "cuda"))
    assert cuda.info.settings["kv_type"] == "float16"
    request = LogitsRequest(PREFIX, tuple(range(40)))
    a, b = next(cpu.logits([request])), next(cuda.logits([request]))
    assert np.abs(a - b).max() < (0.02 if recipe == "fp16" else 0.15)  # logits of order 4
    assert [s.token for s in cuda.generate(PREFIX, GenerationSettings(max_tokens=4))]


class FakeSession:
    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_a_silent_fall_back_to_the_cpu_is_an_error_where_cuda_was_asked_for(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider list claims CUDA on any machine that has the GPU wheel; only the session knows."""
    runtime = ort_session.import_runtime()
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(runtime, "preload_dlls", lambda: None)
    monkeypatch.setattr(ort_session, "find_gpus", lambda: (Gpu("Some GPU", 1, 1, "1", (13, 0)),))
    monkeypatch.setattr(ort_session, "_load", lambda *_: FakeSession())
    path = convert(source, tmp_path / "cuda", "q4", "cuda")
    facts = read_onnx_facts(path)
    with pytest.raises(DeviceError, match="fell back to the CPU"):
        ort_session.open_session(path, facts, "cuda", 1)
    opened = ort_session.open_session(path, facts, "auto", 1)
    assert opened.device == "cpu"
    assert "fell back" in opened.warning


def test_cuda_without_a_gpu_or_provider_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = convert(source, tmp_path / "cuda", "q4", "cuda")
    runtime = ort_session.import_runtime()
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match="no CUDA provider"):
        open_engine(path, OpenSettings(device="cuda"))
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort_session, "find_gpus", lambda: ())
    with pytest.raises(DeviceError, match="no NVIDIA GPU"):
        open_engine(path, OpenSettings(device="cuda"))
    assert open_engine(path).info.device == "cpu"


def test_two_wheels_that_overwrite_each_other_are_refused_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_session.metadata, "version", lambda name: "1.31.1")
    with pytest.raises(EngineError, match="both installed") as refused:
        ort_session.import_runtime()
    assert refused.value.hint == ("pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'medlite[onnx-gpu]'")


def test_a_gutted_wheel_is_refused_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninstalling one of two wheels leaves a module without attributes."""
    import types

    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    with pytest.raises(EngineError, match="installed in part"):
        ort_session.import_runtime()


def test_without_the_runtime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError) as refused:
        ort_session.import_runtime()
    assert refused.value.hint == "pip install 'medlite[onnx]'"


# --- nothing leaves the machine --------------------------------------------------------------------------------------

LOAD = """
import os, sys, time
def guard(event, arguments):
    if event.startswith("socket."):
        raise SystemExit(f"SOCKET {event}")
sys.addaudithook(guard)
from medlite.engines import open_engine  # noqa: E402
from medlite.engines.engine import GenerationSettings, OpenSettings
engine = open_engine(sys.argv[1], OpenSettings(n_threads=1))
print(len(list(engine.generate([1, 2, 3], GenerationSettings(max_tokens=3)))))
time.sleep(1.0)     # telemetry sends from a thread of its own
files = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
links = [os.readlink(file) for file in files if os.path.lexists(file)]
print([link for link in links if link.startswith("socket:")])
engine.close()
"""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to see native sockets")
def test_a_load_opens_no_socket_and_writes_nothing_in_the_home(folder: Path, tmp_path: Path) -> None:
    """With ONNX Runtime's own default it writes a device id and a database under ~/.cache/Microsoft."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment |= {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp_path),
    }
    answer = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines() == ["3", "[]"]
    assert [str(path.relative_to(home)) for path in home.rglob("*")] == []
