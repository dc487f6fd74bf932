"""The llama.cpp engine against one-by-one decoding, on a tiny random model."""

import gc
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from medlite.devices import process_memory
from medlite.engines import open_engine
from medlite.engines.engine import N_BATCH, GenerationSettings, Logits, LogitsRequest, OpenSettings
from medlite.engines.llamacpp.engine import LlamaCppEngine
from medlite.engines.llamacpp.native import Context, Model
from medlite.engines.llamacpp.sequence import ResidentSequence
from medlite.errors import ArtifactError, ContextError, EngineError, MemoryShortError
from tests.helpers.exact_llama import ExactLlama
from tests.helpers.tiny_gguf import N_CONTEXT, write_tiny_gguf

# Logits are of order 1 to 4, and a wrong token moves them by more than 0.1. Matrix products of another batch size round
# differently, and on the CPU flash attention sums a few rows' values in half precision (ggml-cpu/ops.cpp,
# flash_attn_ext_f16_one_chunk) but many rows' in single precision, so reading token by token differs by more.
TOLERANCE = 0.03


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[LlamaCppEngine]:
    with closing(open_tiny(tiny)) as opened:
        yield opened


def open_tiny(path: Path, *, n_context: int | None = None) -> LlamaCppEngine:
    opened = open_engine(path, OpenSettings(device="cpu", n_threads=1, n_context=n_context))
    assert isinstance(opened, LlamaCppEngine)
    return opened


def random_tokens(n: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, 256, n).tolist())


def last(tokens: tuple[int, ...]) -> LogitsRequest:
    return LogitsRequest(tokens, (len(tokens) - 1,))


@pytest.fixture(scope="module")
def single(tiny: Path) -> Iterator[ResidentSequence]:
    """The same model without an engine around it."""
    model = Model(tiny, n_gpu_layers=0)
    context = Context(model, N_CONTEXT, OpenSettings(n_threads=1, n_batch=N_BATCH))
    yield ResidentSequence(model, context)
    context.free()
    model.free()


def one_by_one(single: ResidentSequence, tokens: tuple[int, ...]) -> Logits:
    """The oracle: each token in a decode of its own, its logits read after it. (n_tokens, n_vocab)."""
    single.forget()
    rows = []
    for token in tokens:
        single.read([token])
        rows.append(single.context.logits_at(0).copy())
    return np.stack(rows)


def forget(engine: LlamaCppEngine) -> None:
    """A call for logits leaves nothing of a conversation behind."""
    assert list(engine.logits([])) == []


PREFIX = random_tokens(40, seed=1)
CASES: dict[str, list[LogitsRequest]] = {
    "one": [last(PREFIX)],
    "identical": [last(PREFIX)] * 3,
    "one is a prefix of another": [last(PREFIX[:20]), last(PREFIX), last(PREFIX[:21])],
    "shared prefix, own endings": [last(PREFIX + random_tokens(9, seed=s)) for s in range(12)],
    "many positions": [LogitsRequest(PREFIX, tuple(range(40))), LogitsRequest(PREFIX[:30], (3, 7, 29))],
    "identical with other positions": [LogitsRequest(PREFIX, (39,)), LogitsRequest(PREFIX, (0, 5))],
    "nested": [
        last(PREFIX[:10] + random_tokens(5, seed=a) + random_tokens(b + 1, seed=b)) for a in range(4) for b in range(4)
    ],
    "unsorted and unrelated": [last(random_tokens(n, seed=n)) for n in (30, 3, 77, 1, 12)],
    "no positions": [LogitsRequest(PREFIX, ()), last(PREFIX[:5])],
    "as long as the context": [last(random_tokens(N_CONTEXT, seed=5)), last(random_tokens(N_CONTEXT, seed=5)[:100])],
    "more sequences than one wave holds": [last((*PREFIX, s)) for s in range(150)],
    "more tokens than one wave holds": [last((*random_tokens(200, seed=s // 2), s)) for s in range(10)],
}


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_one_by_one_decoding(engine: LlamaCppEngine, single: ResidentSequence, name: str) -> None:
    requests = CASES[name]
    oracle = {tokens: one_by_one(single, tokens) for tokens in {r.tokens for r in requests}}
    answers = list(engine.logits(requests))
    assert len(answers) == len(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert answer.shape == (len(request.positions), engine.info.n_vocab)
        expected = oracle[request.tokens][list(request.positions)]
        np.testing.assert_allclose(answer, expected, atol=TOLERANCE)


@pytest.fixture(scope="module")
def twin(tiny: Path) -> Iterator[LlamaCppEngine]:
    """A second engine on the same file, which is asked one request at a time."""
    with closing(open_tiny(tiny)) as opened:
        yield opened


@pytest.fixture(scope="module")
def exact(tiny: Path) -> ExactLlama:
    return ExactLlama(tiny)


@pytest.fixture(scope="module")
def cache_noise(exact: ExactLlama) -> float:
    """How far logits move when the cache holds keys and values in half precision, from float64: about 2e-3."""
    texts = [random_tokens(65, seed=seed) for seed in range(4)]
    return max(float(np.abs(exact.logits(t) - exact.logits(t, cache=np.float16)).max()) for t in texts)


def test_logits_equal_a_float64_evaluation(engine: LlamaCppEngine, exact: ExactLlama, cache_noise: float) -> None:
    tokens = random_tokens(N_CONTEXT, seed=13)
    found = next(engine.logits([LogitsRequest(tokens, tuple(range(N_CONTEXT)))]))
    np.testing.assert_allclose(found, exact.logits(tokens, cache=np.float16), rtol=0, atol=cache_noise)


def test_a_short_decode_sums_as_exactly_as_a_long_one(engine: LlamaCppEngine) -> None:
    tokens = random_tokens(N_CONTEXT, seed=11)
    whole = next(engine.logits([LogitsRequest(tokens, tuple(range(N_CONTEXT)))]))
    for n in (1, 9, 63, 64, 65):  # flash attention of fewer than 64 tokens is up to 7e-3 off
        np.testing.assert_allclose(next(engine.logits([last(tokens[:n])]))[0], whole[n - 1], atol=1e-5)


def test_random_requests_equal_single_ones(engine: LlamaCppEngine, twin: LlamaCppEngine, cache_noise: float) -> None:
    """Alone, a text lies in other cells of the cache, so attention sums in another order (ggml-cpu/ops.cpp,
    flash_attn_ext_tiled) and differs in the last bits of single precision. A key or value of the next layer that lies
    between two half-precision numbers is then stored as the other of them. Either is a rounding of the same value, so
    both answers are as near to the exact one as a half-precision cache allows: that is the bound, on any processor.
    """
    random = np.random.default_rng(7)
    for _ in range(20):
        stems = [random_tokens(int(random.integers(1, 60)), seed=int(s)) for s in random.integers(0, 4, 3)]
        requests = []
        for _ in range(int(random.integers(1, 90))):
            tokens = stems[int(random.integers(0, 3))]
            tokens = tokens[: int(random.integers(1, len(tokens) + 1))] + tuple(
                random.integers(0, 3, int(random.integers(0, 6))).tolist()
            )
            positions = np.flatnonzero(random.random(len(tokens)) < 0.2)
            requests.append(LogitsRequest(tokens, tuple(positions.tolist())))
        for request, answer in zip(requests, engine.logits(requests), strict=True):
            np.testing.assert_allclose(answer, next(twin.logits([request])), rtol=0, atol=cache_noise)


def test_shared_tokens_are_read_once_and_in_few_decodes(engine: LlamaCppEngine) -> None:
    requests = [last((*PREFIX, option)) for option in range(40)]
    before = engine.n_decodes, engine.n_tokens_read
    list(engine.logits(requests))
    assert (engine.n_decodes - before[0], engine.n_tokens_read - before[1]) == (1, 40 + 40)


def test_a_prefix_stays_in_the_cache_from_wave_to_wave(engine: LlamaCppEngine) -> None:
    few_shot = random_tokens(300, seed=3)
    requests = [last((*few_shot, s, *random_tokens(49, seed=s))) for s in range(30)]
    before = engine.n_tokens_read
    list(engine.logits(requests))
    assert engine.n_tokens_read - before == 300 + 30 * 50


def test_the_same_requests_give_the_same_bits_whatever_came_before(engine: LlamaCppEngine) -> None:
    requests = CASES["nested"]
    first = list(engine.logits(requests))
    list(engine.logits(CASES["unsorted and unrelated"]))
    list(engine.generate(PREFIX, GenerationSettings(max_tokens=5)))
    for a, b in zip(first, engine.logits(requests), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_request_longer_than_the_context_is_refused_before_any_work(engine: LlamaCppEngine) -> None:
    before = engine.n_decodes
    with pytest.raises(ContextError, match=f"request 1: {N_CONTEXT + 1} tokens, the context holds {N_CONTEXT}"):
        engine.logits([last(PREFIX), last(random_tokens(N_CONTEXT + 1))])
    assert engine.n_decodes == before


@pytest.mark.parametrize(("tokens", "positions"), [((1, 2), (2,)), ((1, 2), (1, 0)), ((1, 2), (-1,)), ((1, 999), (0,))])
def test_positions_and_tokens_out_of_range_are_refused(
    engine: LlamaCppEngine, tokens: tuple[int, ...], positions: tuple[int, ...]
) -> None:
    with pytest.raises(EngineError):
        engine.logits([LogitsRequest(tokens, positions)])


def test_nan_logits_are_an_error_not_an_answer(tmp_path: Path) -> None:
    with closing(open_tiny(write_tiny_gguf(tmp_path / "nan.gguf", poison=True))) as engine:
        with pytest.raises(EngineError, match="NaN"):
            list(engine.logits([last(PREFIX)]))
        with pytest.raises(EngineError, match="NaN"):
            list(engine.generate(PREFIX, GenerationSettings(max_tokens=2)))


# --- text ------------------------------------------------------------------------------------------------------------


def test_text_survives_tokenize_and_detokenize(engine: LlamaCppEngine) -> None:
    for text in ("the quick patient takes metformin", "Grüße, 東京 🩺", "", "a\nb  c", "<|eot_id|> as text"):
        assert engine.detokenize(engine.tokenize(text)) == text.encode()


def test_control_tokens_are_parsed_only_on_request(engine: LlamaCppEngine) -> None:
    eot = engine.tokenize("<|eot_id|>", add_bos=False, parse_special=True)
    assert len(eot) == 1
    assert len(engine.tokenize("<|eot_id|>", add_bos=False)) > 1
    assert engine.detokenize(eot) == b""


# --- generation ------------------------------------------------------------------------------------------------------


def text_of(engine: LlamaCppEngine, tokens: tuple[int, ...], settings: GenerationSettings) -> str:
    return "".join(step.text for step in engine.generate(tokens, settings))


def test_greedy_generation_follows_the_largest_logit_and_reports_its_probability(
    engine: LlamaCppEngine, single: ResidentSequence
) -> None:
    steps = list(engine.generate(PREFIX, GenerationSettings(max_tokens=12)))
    assert [step.finish for step in steps] == [None] * 11 + ["length"]
    tokens = PREFIX + tuple(step.token for step in steps)
    rows = one_by_one(single, tokens)[len(PREFIX) - 1 : -1]
    assert [step.token for step in steps] == rows.argmax(axis=1).tolist()
    log_probabilities = rows.max(axis=1) - np.log(np.exp(rows).sum(axis=1))
    np.testing.assert_allclose([step.log_probability for step in steps], log_probabilities, atol=TOLERANCE)


def test_a_seed_repeats_a_text_and_another_changes_it(engine: LlamaCppEngine) -> None:
    warm = GenerationSettings(max_tokens=30, temperature=1.0)
    other = GenerationSettings(max_tokens=30, temperature=1.0, seed=1)
    assert text_of(engine, PREFIX, warm) == text_of(engine, PREFIX, warm) != text_of(engine, PREFIX, other)


def test_a_second_turn_does_not_read_the_first_again(engine: LlamaCppEngine) -> None:
    reply = [step.token for step in engine.generate(PREFIX, GenerationSettings(max_tokens=10))]
    turn = PREFIX + tuple(reply) + random_tokens(20, seed=9)
    before = engine.n_tokens_read
    second = [step.token for step in engine.generate(turn, GenerationSettings(max_tokens=1))]
    assert engine.n_tokens_read - before == 21  # the reply's last token was never read
    forget(engine)
    assert second == [step.token for step in engine.generate(turn, GenerationSettings(max_tokens=1))]


def test_the_reading_of_a_prompt_is_told_after_each_batch(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with closing(open_tiny(write_tiny_gguf(tmp_path / "wide.gguf", n_context=4 * N_BATCH))) as wide:
        prompt = random_tokens(2 * N_BATCH + 37)
        list(wide.generate(prompt, GenerationSettings(max_tokens=1), lambda *counts: told.append(counts)))
        list(wide.generate((*prompt, 1, 2), GenerationSettings(max_tokens=1), lambda *counts: told.append(counts)))
    n = len(prompt)
    assert told == [(0, n), (N_BATCH, n), (2 * N_BATCH, n), (n, n), (0, 2), (2, 2)]


def test_a_prompt_longer_than_a_batch_is_read_in_pieces(engine: LlamaCppEngine, tmp_path: Path) -> None:
    long = random_tokens(N_CONTEXT - 2)
    assert [s.finish for s in engine.generate(long, GenerationSettings())][-1] == "length"
    big = write_tiny_gguf(tmp_path / "big.gguf", n_context=4 * N_BATCH)
    with closing(open_tiny(big)) as wide:
        tokens = random_tokens(2 * N_BATCH + 37, seed=4)
        (step,) = wide.generate(tokens, GenerationSettings(max_tokens=1))
        assert step.token == int(next(wide.logits([last(tokens)]))[0].argmax())


def test_stop_text_ends_the_text_before_it(engine: LlamaCppEngine) -> None:
    full = text_of(engine, PREFIX, GenerationSettings(max_tokens=40, temperature=1.0))
    stop = full[5:8]
    steps = list(engine.generate(PREFIX, GenerationSettings(max_tokens=40, temperature=1.0, stop=(stop,))))
    assert "".join(step.text for step in steps) == full[: full.index(stop)]
    assert steps[-1].finish == "stop"


def test_a_full_context_ends_the_generation(engine: LlamaCppEngine) -> None:
    prompt = random_tokens(N_CONTEXT - 3)
    steps = list(engine.generate(prompt, GenerationSettings(max_tokens=50)))
    assert (len(steps), steps[-1].finish) == (3, "length")
    with pytest.raises(ContextError):
        engine.generate(random_tokens(N_CONTEXT), GenerationSettings())


def test_closing_the_iterator_frees_the_engine_for_the_next_call(engine: LlamaCppEngine) -> None:
    running = engine.generate(PREFIX, GenerationSettings())
    next(running)
    with pytest.raises(EngineError, match="still open"):
        list(engine.generate(PREFIX, GenerationSettings(max_tokens=1)))
    running.close()  # type: ignore[attr-defined]
    assert len(list(engine.generate(PREFIX, GenerationSettings(max_tokens=1)))) == 1


def test_callers_in_threads_wait_for_each_other_and_get_their_own_answers(engine: LlamaCppEngine) -> None:
    prompts = [random_tokens(10, seed=s) for s in range(6)]
    settings = GenerationSettings(max_tokens=15)
    expected = [text_of(engine, prompt, settings) for prompt in prompts]
    answers: dict[int, str] = {}

    def ask(i: int) -> None:
        answers[i] = text_of(engine, prompts[i], settings)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[i] for i in range(6)] == expected


def test_cancel_from_another_thread_ends_the_text(engine: LlamaCppEngine) -> None:
    steps = []
    for step in engine.generate(PREFIX, GenerationSettings(max_tokens=100)):
        steps.append(step)
        if len(steps) == 3:
            canceller = threading.Thread(target=engine.cancel)
            canceller.start()
            canceller.join()
    assert [step.finish for step in steps] == [None, None, None, "cancelled"]


def test_ctrl_c_while_the_prompt_is_read_leaves_a_whole_cache(
    engine: LlamaCppEngine, single: ResidentSequence, monkeypatch: pytest.MonkeyPatch
) -> None:
    import _thread

    forget(engine)
    list(engine.generate(PREFIX, GenerationSettings(max_tokens=1)))
    asked = []
    original = Context.abort_when

    def press_ctrl_c_once_asked(self, stop):  # type: ignore[no-untyped-def]
        def pressed() -> bool:
            if not asked:
                asked.append(True)
                _thread.interrupt_main()
            return bool(stop())

        original(self, pressed if stop else None)

    with monkeypatch.context() as patched:
        patched.setattr(Context, "abort_when", press_ctrl_c_once_asked)
        with pytest.raises(KeyboardInterrupt):
            list(engine.generate(PREFIX + random_tokens(400), GenerationSettings()))
    tokens, before = PREFIX + random_tokens(3, seed=8), engine.n_tokens_read
    (step,) = engine.generate(tokens, GenerationSettings(max_tokens=1))
    assert engine.n_tokens_read - before == 3  # the cache held PREFIX, whole
    assert step.token == int(one_by_one(single, tokens)[-1].argmax())


# --- load and close --------------------------------------------------------------------------------------------------


def test_closing_frees_the_memory(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "fat.gguf", n_layer=12, n_context=16384)
    gc.collect()
    open_tiny(path).close()  # what the library allocates once
    before = process_memory().resident
    for _ in range(3):
        engine = open_tiny(path)
        held = process_memory().resident
        engine.close()
        engine.close()
    after = process_memory().resident
    assert held - before > 90 << 20  # 96 MiB of KV cache alone
    assert after - before < 8 << 20


def test_a_closed_engine_refuses_work(tiny: Path) -> None:
    engine = open_tiny(tiny)
    running = engine.generate(PREFIX, GenerationSettings())
    next(running)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        next(running)
    with pytest.raises(EngineError, match="closed"):
        engine.tokenize("a")


def test_context_and_threads_are_as_asked_or_from_the_model(tiny: Path) -> None:
    with closing(open_tiny(tiny)) as engine:
        assert (engine.info.n_context, engine.info.n_threads) == (N_CONTEXT, 1)
    with closing(open_tiny(tiny, n_context=100)) as engine:
        assert engine.info.n_context == 100
        with pytest.raises(ContextError):
            engine.logits([last(random_tokens(101))])
    with pytest.raises(EngineError, match="trained for 512"):
        open_tiny(tiny, n_context=513)


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
def test_a_quantized_cache_answers_nearly_the_same(
    tiny: Path, engine: LlamaCppEngine, single: ResidentSequence, kv_type: str
) -> None:
    with closing(open_engine(tiny, OpenSettings(device="cpu", n_threads=1, kv_type=kv_type))) as small:
        assert small.memory.kv_cache < 0.6 * engine.memory.kv_cache
        rows = next(small.logits([LogitsRequest(PREFIX, tuple(range(40)))]))
    assert np.abs(rows - one_by_one(single, PREFIX)).max() < {"q8_0": 0.1, "q4_0": 1.0}[kv_type]


def test_a_load_that_cannot_fit_is_refused_before_it_starts(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medlite.engines.llamacpp.place.available_memory", lambda: 250 << 20)
    with pytest.raises(MemoryShortError, match="are free"):
        open_tiny(tiny)


def test_failures_to_load_name_the_reason(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(EngineError, match="unknown model architecture: 'nosuch'"):
        open_tiny(write_tiny_gguf(tmp_path / "arch.gguf", architecture="nosuch"))
    (tmp_path / "cut.gguf").write_bytes(tiny.read_bytes()[:-1000])
    with pytest.raises(ArtifactError):
        open_tiny(tmp_path / "cut.gguf")
    with pytest.raises(ArtifactError):
        open_tiny(tmp_path / "missing.gguf")
    with pytest.raises(EngineError, match="unknown engine"):
        open_engine(tiny, engine="nosuch")
    with pytest.raises(EngineError, match="KV cache type"):
        open_engine(tiny, OpenSettings(kv_type="q5_0"))
