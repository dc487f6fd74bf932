"""The openai engine against a real server on localhost in every dialect: equal to the engine behind it, or refused."""

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from bench.ask.prompts import question_letters_answer
from bench.ask.question import Prompt
from bench.compare.compare import compare
from bench.run.artifacts import facts_of_server, template_of_server
from bench.run.measure import Output, Subject, measure, prepare
from bench.run.record import RunRecord, read_record
from bench.score.scoring import FAILED, OK, TRUNCATED, ScoredSample, score_samples
from bench.score.server import score_on_server
from bench.settings import RunSettings, Server
from bench.tasks import find_task
from medlite.engines import open_server
from medlite.engines.engine import AnswersEngine, LogitsEngine, OpenSettings
from medlite.engines.server.address import KEY_VARIABLE, parse_address
from medlite.engines.server.engine import OpenAIEngine, open_openai
from medlite.engines.server.http import WAITS_SECONDS, JsonClient
from medlite.errors import ServerError, TaskError
from tests.helpers.bench_toys import make_items, make_sample
from tests.helpers.fake_server import DIALECTS, FakeServer, serving
from tests.helpers.toy_engine import ToyEngine

LETTERS = RunSettings(server=Server(n_parallel=3))
CHARACTERS = [
    (sample, Prompt(f"{sample.question} It is=", ("A", "B", "C", "D"))) for sample in map(make_sample, range(6))
]


def toy() -> ToyEngine:
    return ToyEngine({"Which class is drug 2?": " A"}, noise=0.5)


def opened(server: FakeServer, *, full: bool = False, waits: list[float] | None = None) -> OpenAIEngine:
    return open_openai(server.url, exact=full, sleep=(waits if waits is not None else []).append)


def scored(server: FakeServer, items: list[tuple[object, Prompt]], *, full: bool = False) -> list[ScoredSample]:
    engine = opened(server, full=full)
    try:
        return list(score_on_server(engine, items, LETTERS))  # type: ignore[arg-type]
    finally:
        engine.close()


# fmt: off
CAPABILITIES = {"llama": (100, False, True), "vllm": (20, True, True), "plain": (5, False, False),
                "echoing": (100, True, False)}
# fmt: on


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_a_server_tells_is_found_out_by_asking(dialect: str) -> None:
    with serving(toy(), dialect) as server:
        engine = opened(server)
        engine.close()
    assert (engine.facts.n_top, engine.facts.echo, engine.facts.tokenizer) == CAPABILITIES[dialect]
    assert engine.info.settings["url"] == server.url
    assert "KL is not claimed" in engine.info.warnings[0]


@pytest.mark.parametrize("dialect", ["llama", "vllm", "echoing"])
def test_multi_token_options_score_as_in_the_process_itself(dialect: str) -> None:
    items = make_items(8)
    expected = list(score_samples(toy(), items))  # type: ignore[arg-type]
    with serving(toy(), dialect) as server:
        found = scored(server, items)  # type: ignore[arg-type]
    assert [s.id for s in found] == [s.id for s in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.status == OK
        assert one.option_log_probabilities == pytest.approx(other.option_log_probabilities, abs=1e-6)
        assert (one.prediction, one.prompt_sha256) == (other.prediction, other.prompt_sha256)
        assert one.distribution is None


@pytest.mark.parametrize("dialect", DIALECTS)
def test_single_tokens_among_the_most_probable_need_one_request(dialect: str) -> None:
    engine = ToyEngine({f"{s.question} It is=": "ABCD"[s.answer] for s, _ in CHARACTERS})
    expected = list(score_samples(engine, CHARACTERS))
    with serving(engine, dialect, most_told=0 if dialect == "llama" else 200) as server:
        before = len(server.seen)
        found = scored(server, CHARACTERS)  # type: ignore[arg-type]
        asked = [body for path, body in server.seen[before:] if path == "/v1/completions"]
    told = [s for s in found if s.status == OK]
    assert all(
        s.option_log_probabilities == pytest.approx(e.option_log_probabilities, abs=1e-6)
        for s, e in zip(found, expected, strict=True)
        if s.status == OK
    )
    assert len(told) == len(found) or dialect == "plain"
    assert all(body["max_tokens"] == 1 for body in asked)


def test_an_option_that_the_server_does_not_tell_fails_with_its_reason_and_counts_as_wrong() -> None:
    with serving(toy(), "plain") as server:
        found = scored(server, make_items(3))  # type: ignore[arg-type]
    assert {s.status for s in found} == {FAILED}
    assert all("tokens that the server tells, and it has no echo" in s.text for s in found)
    assert not any(s.correct for s in found)


def test_a_prompt_beyond_the_servers_context_is_truncated() -> None:
    for dialect in ("llama", "vllm", "echoing"):
        with serving(toy(), dialect, n_context=40) as server:
            assert {s.status for s in scored(server, make_items(2))} == {TRUNCATED}  # type: ignore[arg-type]


def test_a_server_that_tells_everything_gives_whole_distributions() -> None:
    items = make_items(3)
    expected = list(score_samples(toy(), items, max_tokens=0))  # type: ignore[arg-type]
    with serving(toy(), "llama") as server:
        engine = opened(server, full=True)
        settings = RunSettings(max_tokens=0)
        found = list(score_on_server(engine, items, settings))  # type: ignore[arg-type]
        engine.close()
    for one, other in zip(found, expected, strict=True):
        assert one.distribution is not None
        assert other.distribution is not None
        assert one.distribution.token_ids.size == engine.facts.n_vocab
        assert one.distribution.log_probabilities == pytest.approx(other.distribution.log_probabilities, abs=1e-5)


def test_whole_distributions_are_refused_where_the_server_cannot_tell_them() -> None:
    with serving(toy(), "vllm") as server, pytest.raises(ServerError, match="does not tell the whole vocabulary"):
        opened(server, full=True)
    with serving(toy(), "vllm") as server:
        engine = opened(server)
        assert isinstance(engine, AnswersEngine)
        assert not isinstance(engine, LogitsEngine)
        engine.close()


def run(engine: OpenAIEngine, path: Path, settings: RunSettings) -> RunRecord:
    samples = [make_sample(i) for i in range(6)]
    questions = prepare(
        find_task("medqa").__class__(
            name="toy",
            title="",
            n_samples=0,
            licence="",
            source="",
            read=lambda _: samples,
            build_prompt=question_letters_answer,
        ),
        samples,
        [],
        settings.prompting,
    )
    return measure(engine, Subject(facts_of_server(engine.served), None), questions, settings, Output(path))


def test_a_record_says_what_it_does_not_know_and_compare_shows_no_kl(tmp_path: Path) -> None:
    settings = RunSettings(server=Server("http://127.0.0.1", n_parallel=2), measure_speed=False)
    with serving(toy(), "vllm") as server:
        engine = opened(server)
        run(engine, tmp_path / "run.jsonl", settings)
        engine.close()
    record = read_record(tmp_path / "run.jsonl")
    assert (record.artifact.format, record.artifact.sha256, record.artifact.file_name) == ("server", "", "toy-70b")
    assert record.engine["settings"]["tokens_told"] == "up to 20 most probable"
    assert record.performance.peak_rss_bytes == 0
    assert any("its weights were not hashed" in note for note in record.performance.notes)
    found = compare(record, record)
    assert found.vocabulary_kl is None
    assert found.top_token_agreement is None
    assert any("no KL over the vocabulary" in warning for warning in found.warnings)


def test_chat_prompts_come_from_the_template_that_the_server_tells() -> None:
    with serving(ToyEngine(), "llama") as server:
        engine = opened(server)
        assert template_of_server(engine.served).special_tokens["bos_token"] == "<|begin_of_text|>"
        assert engine.tokenize("<|eot_id|>", add_bos=False, parse_special=True) == [260]
        assert len(engine.tokenize("<|eot_id|>", add_bos=False)) == 10
        engine.close()
    with serving(ToyEngine(), "vllm") as server:
        engine = opened(server)
        with pytest.raises(TaskError, match="does not tell the model's chat template"):
            template_of_server(engine.served)
        engine.close()


# --- the wire --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_after_the_time_it_names(status: int) -> None:
    waits: list[float] = []
    with serving(toy(), "vllm") as server:
        server.failures = [(status, {"Retry-After": "7"}), (status, {})]
        opened(server, waits=waits).close()
    assert waits == [7.0, WAITS_SECONDS[1]]


def test_a_server_that_stays_busy_ends_the_run_with_its_words() -> None:
    with serving(toy(), "vllm") as server:
        server.failures = [(503, {})] * 20
        with pytest.raises(ServerError, match="gave up after 7 tries: HTTP 503: not now") as caught:
            opened(server)
    assert "--resume" in str(caught.value.hint)


def test_the_key_comes_from_the_environment_and_stands_in_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(toy(), "vllm", key="s3cret") as server:
        with pytest.raises(ServerError, match="wants a key: HTTP 401: Invalid API Key") as caught:
            opened(server)
        assert KEY_VARIABLE in str(caught.value.hint)
        monkeypatch.setenv(KEY_VARIABLE, "s3cret")
        engine = opened(server)
        run(engine, tmp_path / "run.jsonl", RunSettings(measure_speed=False))
        engine.close()
        assert server.keys == {None, "Bearer s3cret"}
    assert "s3cret" not in (tmp_path / "run.jsonl").read_text()


def test_a_redirect_is_not_followed() -> None:
    with serving(toy(), "vllm") as server:
        server.failures = [(302, {"Location": "http://127.0.0.1:9/"})]
        with pytest.raises(ServerError, match="sends us to another address"):
            opened(server)


def test_a_proxy_of_the_environment_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(toy(), "vllm") as server:
        opened(server).close()


def test_the_models_name_is_checked() -> None:
    with serving(toy(), "vllm") as server:
        with pytest.raises(ServerError, match="has no model 'gpt-9'") as caught:
            open_openai(server.url, model="gpt-9")
        assert caught.value.hint == "--model toy-70b"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://user:pass@host:80", "would stand in the record"),
        ("ftp://host", "no address of a server"),
        ("http://host:99999", "no address"),
        ("http://host/?key=1", "no address of a server"),
        ("http://", "no address"),
    ],
)
def test_an_address_that_is_none_is_named(url: str, message: str) -> None:
    with pytest.raises(ServerError, match=message):
        parse_address(url)


@pytest.mark.parametrize(
    ("url", "text", "here"),
    [
        ("localhost:8080", "http://localhost:8080", True),
        ("http://127.0.0.2/v1/", "http://127.0.0.2:80", True),
        ("https://[::1]:1/proxy/v1", "https://[::1]:1/proxy", True),
        ("gpu7", "http://gpu7:80", False),
        ("http://10.0.0.1", "http://10.0.0.1:80", False),
        ("http://localhost.evil.org", "http://localhost.evil.org:80", False),
    ],
)
def test_addresses(url: str, text: str, here: bool) -> None:
    found = parse_address(url)
    assert (found.text, found.is_this_machine) == (text, here)


def test_offline_only_this_machine_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ServerError, match="http://gpu7:80 is another machine"):
        open_server("gpu7")
    with serving(toy(), "vllm") as server:
        open_server(server.url).close()


def test_nobody_at_the_address_is_said_at_once() -> None:
    with serving(toy(), "vllm") as server:
        url = server.url
    with pytest.raises(ServerError, match="cannot be reached: ConnectionRefusedError"):
        open_openai(url)


def test_a_server_that_never_answers_is_given_up_after_its_timeouts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = parse_address(f"http://127.0.0.1:{silent.getsockname()[1]}")
        waits: list[float] = []
        client = JsonClient(address, timeout_seconds=0.02, sleep=waits.append)
        with pytest.raises(ServerError, match="gave up after 7 tries: TimeoutError"):
            client.get("/v1/models")
        client.close()
    assert waits == list(WAITS_SECONDS)


def test_a_connection_that_the_server_closed_between_requests_is_opened_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(toy(), "vllm") as server:
        monkeypatch.setattr(server.RequestHandlerClass, "timeout", 0.05)
        engine = opened(server)
        time.sleep(0.2)
        assert engine.tokenize("ab", add_bos=False) == [97, 98]
        engine.close()


def test_a_server_that_restarts_in_the_middle_is_waited_for() -> None:
    waits: list[float] = []
    with serving(toy(), "vllm") as server:
        engine = opened(server, waits=waits)
    with pytest.raises(ServerError, match="gave up after 7 tries: ConnectionRefusedError"):
        engine.tokenize("ab")
    engine.close()
    assert waits == list(WAITS_SECONDS)


GARBAGE = {
    "no list of models": ("/v1/models", {"data": "toy"}),
    "no JSON object": ("/v1/models", [1]),
    "tells no log-probabilities: the server's reply is no completion": ("/v1/completions", {"choices": []}),
    "tells no log-probabilities": ("/v1/completions", {"choices": [{"text": "a", "logprobs": None}]}),
}


@pytest.mark.parametrize("message", GARBAGE)
def test_a_server_that_answers_nonsense_is_named(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at, value = GARBAGE[message]
    with serving(toy(), "vllm") as server:
        honest = server.answer
        monkeypatch.setattr(server, "answer", lambda path, body: (200, value) if path == at else honest(path, body))
        with pytest.raises(ServerError, match=message):
            opened(server)


@pytest.mark.parametrize("value", [None, 0.5, -9999.0, float("nan")])
def test_a_number_that_is_no_log_probability_fails_the_sample(
    value: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(toy(), "vllm") as server:
        honest = server.logprobs

        def lying(tokens: list[int], rows: list[object], body: dict[str, object]) -> object:
            told = honest(tokens, rows, body)
            if body.get("echo") and len(tokens) > 40:
                told["token_logprobs"][-3] = value
            return told

        monkeypatch.setattr(server, "logprobs", lying)
        (found,) = scored(server, make_items(1))  # type: ignore[arg-type]
    assert found.status == FAILED
    assert "where a log-probability was needed" in found.text


# --- llama-server itself ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif("MEDLITE_LLAMA_SERVER" not in os.environ, reason="MEDLITE_LLAMA_SERVER names no llama-server")
def test_llama_server_answers_as_the_engine_in_this_process(tmp_path: Path) -> None:
    """The demo model behind the real program: the same predictions, log-probabilities within 0.02 nats."""
    from medlite.engines import open_engine
    from tests.helpers.tiny_gguf import write_tiny_gguf

    model = write_tiny_gguf(tmp_path / "tiny.gguf")
    with serving(toy(), "plain") as free:
        port = free.server_address[1]
    program = subprocess.Popen(
        [
            os.environ["MEDLITE_LLAMA_SERVER"],
            "-m",
            str(model),
            "--port",
            str(port),
            "--host",
            "127.0.0.1",
            "-t",
            "1",
            "-c",
            "512",
            "-np",
            "1",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        items = make_items(10)
        server = open_until_ready(port)
        found = list(score_on_server(server, items, LETTERS))  # type: ignore[arg-type]
        server.close()
    finally:
        program.terminate()
        program.wait()
    engine = open_engine(model, OpenSettings(device="cpu", n_threads=1))
    for one, other in zip(found, score_samples(engine, items), strict=True):  # type: ignore[arg-type]
        assert one.prediction == other.prediction
        assert one.option_log_probabilities == pytest.approx(other.option_log_probabilities, abs=0.02)
    engine.close()


def open_until_ready(port: int) -> OpenAIEngine:
    """The server, once it listens; its 503 while it loads is waited for by the client itself."""
    for _ in range(100):
        try:
            return open_openai(f"http://127.0.0.1:{port}")
        except ServerError:
            time.sleep(0.1)
    raise AssertionError("llama-server did not start")
