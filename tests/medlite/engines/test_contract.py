"""What every engine that runs here promises, whatever runs the model: see `engine.LocalEngine`."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from medlite.engines import ENGINES, open_engine
from medlite.engines.engine import (
    AnswersEngine,
    GenerationSettings,
    LocalEngine,
    LogitsEngine,
    LogitsRequest,
    OpenSettings,
)
from medlite.engines.gbnf import lark_from_gbnf
from medlite.errors import ContextError, EngineError
from tests.helpers.tiny_checkpoint import make_llama
from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.helpers.toy_engine import ToyEngine

PROMPT = (1, 2, 3, 4, 5)
FREE = GenerationSettings(max_tokens=200, ignore_end=True)


def open_llamacpp(folder: Path) -> LocalEngine:
    return open_engine(write_tiny_gguf(folder / "tiny.gguf"), OpenSettings("cpu", n_threads=1))


def open_ort(folder: Path) -> LocalEngine:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    from quantize import ONNX_RECIPES, match_checkpoint, open_checkpoint, plan_onnx, write

    source = match_checkpoint(open_checkpoint(make_llama(folder / "m")))
    write([plan_onnx(source, ONNX_RECIPES["fp32"], block=32, device="cpu").output(folder / "onnx")])
    return open_engine(folder / "onnx", OpenSettings("cpu", n_threads=1))


def open_torch(folder: Path) -> LocalEngine:
    pytest.importorskip("torch", reason="needs the extra [torch]")
    pytest.importorskip("transformers", reason="needs the extra [torch]")
    return open_engine(make_llama(folder / "m"), OpenSettings("cpu", n_threads=1, dtype="float32"), engine="torch")


OPENERS: dict[str, Callable[[Path], LocalEngine]] = {
    "llamacpp": open_llamacpp,
    "ort": open_ort,
    "torch": open_torch,
    "toy": lambda _folder: ToyEngine(),
}
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name == "torch")) for name in OPENERS]


@pytest.fixture(scope="module", params=NAMES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngine]:
    opened = OPENERS[request.param](tmp_path_factory.mktemp(request.param))
    yield opened
    opened.close()


def test_every_engine_of_the_table_is_tried() -> None:
    assert set(ENGINES) <= set(OPENERS)


def test_it_gives_logits_and_not_answers(engine: LocalEngine) -> None:
    assert isinstance(engine, LogitsEngine)
    assert not isinstance(engine, AnswersEngine)


def test_logits_come_in_the_order_and_shape_of_the_requests(engine: LocalEngine) -> None:
    requests = [LogitsRequest(PROMPT, (0, 4)), LogitsRequest(PROMPT[:3], ()), LogitsRequest(PROMPT[:2], (1,))]
    found = list(engine.logits(requests))
    assert [row.shape for row in found] == [(len(one.positions), engine.info.n_vocab) for one in requests]
    assert all(row.dtype == np.float32 for row in found)
    (alone,) = engine.logits([requests[2]])
    assert np.abs(alone - found[2]).max() < 1e-3


@pytest.mark.parametrize(
    ("tokens", "positions", "error"),
    [
        (PROMPT, (3, 1), EngineError),
        (PROMPT, (5,), EngineError),
        (PROMPT, (-1, 2), EngineError),
        ((1, 10**7), (1,), EngineError),
        ((1, -1), (1,), EngineError),
        (None, (0,), ContextError),
    ],
)
def test_a_wrong_request_is_refused_before_any_work(
    engine: LocalEngine, tokens: tuple[int, ...] | None, positions: tuple[int, ...], error: type[EngineError]
) -> None:
    tokens = (1,) * (engine.info.n_context + 1) if tokens is None else tokens
    with pytest.raises(error):
        engine.logits([LogitsRequest(tokens, positions)])


def test_a_wrong_prompt_is_refused_before_any_work(engine: LocalEngine) -> None:
    for prompt in ((), (10**7,), (-1,)):
        with pytest.raises(EngineError):
            engine.generate(prompt, FREE)
    with pytest.raises(ContextError):
        engine.generate((1,) * engine.info.n_context, FREE)


def test_a_second_call_of_the_same_thread_is_an_error_and_not_a_wait(engine: LocalEngine) -> None:
    running = engine.generate(PROMPT, FREE)
    next(running)
    with pytest.raises(EngineError, match="still open"):
        next(engine.generate(PROMPT, FREE))
    with pytest.raises(EngineError, match="still open"):
        next(engine.logits([LogitsRequest(PROMPT, (4,))]))
    running.close()  # type: ignore[attr-defined]
    assert len(list(engine.logits([LogitsRequest(PROMPT, (4,))]))) == 1


def test_another_thread_waits_for_the_one_that_holds_the_engine(engine: LocalEngine) -> None:
    running = engine.generate(PROMPT, FREE)
    next(running)
    done = threading.Event()

    def ask() -> None:
        list(engine.logits([LogitsRequest(PROMPT, (4,))]))
        done.set()

    other = threading.Thread(target=ask)
    other.start()
    assert not done.wait(0.2)
    running.close()  # type: ignore[attr-defined]
    other.join(30)
    assert done.is_set()


def test_cancel_ends_a_reply_with_its_reason(engine: LocalEngine) -> None:
    steps = []
    for step in engine.generate(PROMPT, FREE):
        steps.append(step)
        if len(steps) == 3:
            canceller = threading.Thread(target=engine.cancel)
            canceller.start()
            canceller.join()
    assert [step.finish for step in steps] == [None, None, None, "cancelled"]


def test_an_ignored_end_lets_a_reply_reach_its_length(engine: LocalEngine) -> None:
    steps = list(engine.generate(PROMPT, GenerationSettings(max_tokens=30, ignore_end=True)))
    assert (len(steps), steps[-1].finish) == (30, "length")


def test_the_prompt_is_reported_from_nothing_to_all(engine: LocalEngine) -> None:
    told: list[tuple[int, int]] = []
    list(engine.generate((7, 6, 5), GenerationSettings(max_tokens=1), lambda read, n: told.append((read, n))))
    assert told[0] == (0, told[-1][1])
    assert told[-1][0] == told[-1][1] > 0


def test_no_tokens_are_no_reply(engine: LocalEngine) -> None:
    assert list(engine.generate(PROMPT, GenerationSettings(max_tokens=0))) == []


@pytest.mark.parametrize("name", NAMES)
def test_closing_twice_is_once_and_what_is_closed_refuses(name: str, tmp_path: Path) -> None:
    engine = OPENERS[name](tmp_path)
    running = engine.generate(PROMPT, FREE)
    next(running)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        next(running)
    for call in (
        lambda: engine.logits([LogitsRequest(PROMPT, (4,))]),
        lambda: engine.generate(PROMPT, FREE),
        lambda: engine.tokenize("a"),
    ):
        if name != "toy" or call.__code__.co_names != ("tokenize",):  # the toy needs no model to tokenize
            with pytest.raises(EngineError, match="closed"):
                call()


@pytest.mark.parametrize("name", [pytest.param("torch", marks=pytest.mark.slow), "llamacpp", "ort", "toy"])
def test_an_engine_that_is_closed_between_two_requests_says_so(name: str, tmp_path: Path) -> None:
    """llama.cpp would read on in memory that was freed."""
    engine = OPENERS[name](tmp_path)
    running = engine.logits([LogitsRequest((i % 16, i // 16), (1,)) for i in range(200)])
    next(running)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        next(running)


def test_a_reply_follows_a_grammar(engine: LocalEngine) -> None:
    grammar = lark_from_gbnf('root ::= "ab" "c"{2,3}')
    steps = list(engine.generate(PROMPT, GenerationSettings(max_tokens=20, grammar=grammar)))
    assert "".join(step.text for step in steps) in ("abcc", "abccc")
    assert steps[-1].finish == "stop"
