"""The sampler against plain definitions, and text that comes out of tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlite.engines.engine import GenerationSettings
from medlite.engines.sampler import Sampler, top_tokens
from medlite.engines.text_stream import TextStream
from medlite.errors import EngineError


def frequencies(logits: np.ndarray, settings: GenerationSettings, n: int = 8000) -> np.ndarray:
    sampler = Sampler(settings)
    tokens = [sampler.choose(logits)[0] for _ in range(n)]
    return np.bincount(tokens, minlength=len(logits)) / n


def test_temperature_scales_the_distribution() -> None:
    logits = np.array([0.0, 1.0, 2.0, -1.0], dtype=np.float32)
    for temperature in (0.5, 1.0, 2.0):
        expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
        settings = GenerationSettings(temperature=temperature, top_k=0, top_p=1.0, min_p=0.0)
        np.testing.assert_allclose(frequencies(logits, settings), expected, atol=0.02)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        (GenerationSettings(temperature=1, top_k=2, top_p=1, min_p=0), {0, 1}),
        (GenerationSettings(temperature=1, top_k=0, top_p=0.75, min_p=0), {0, 1}),  # 0.5 + 0.3 reaches 0.75
        (GenerationSettings(temperature=1, top_k=0, top_p=0.4, min_p=0), {0}),
        (GenerationSettings(temperature=1, top_k=0, top_p=1, min_p=0.3), {0, 1, 2}),  # 0.15 / 0.5 = 0.3
        (GenerationSettings(temperature=1, top_k=0, top_p=1, min_p=0.31), {0, 1}),
        (GenerationSettings(temperature=0), {0}),
    ],
)
def test_each_filter_keeps_exactly_its_tokens(settings: GenerationSettings, allowed: set[int]) -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15001, 0.05], dtype=np.float32))
    assert set(np.flatnonzero(frequencies(logits, settings, 2000)).tolist()) == allowed


def test_the_log_probability_is_of_the_unscaled_distribution() -> None:
    logits = np.array([3.0, 1.0, 0.0], dtype=np.float32)
    expected = 3.0 - np.log(np.exp([3.0, 1.0, 0.0]).sum())
    for temperature in (0.0, 5.0):
        token, log_probability = Sampler(GenerationSettings(temperature=temperature, top_k=1)).choose(logits)
        assert (token, log_probability) == (0, pytest.approx(expected, abs=1e-6))


def test_a_repeat_penalty_lowers_tokens_said_lately() -> None:
    logits = np.array([2.0, 1.5, -1.0], dtype=np.float32)
    sampler = Sampler(GenerationSettings(repeat_penalty=2.0), recent=[0])
    assert [sampler.choose(logits)[0] for _ in range(2)] == [1, 0]
    assert logits.tolist() == [2.0, 1.5, -1.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(bad: float) -> None:
    with pytest.raises(EngineError):
        Sampler(GenerationSettings()).choose(np.array([0.0, bad], dtype=np.float32))


@given(st.integers(1, 3000), st.integers(0, 60), st.integers(0, 1000))
def test_top_tokens_are_the_first_of_a_full_sort(n_vocab: int, k: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(-20, 20, n_vocab).astype(np.float32)  # many ties
    full = np.argsort(-scores, kind="stable")
    assert top_tokens(scores, k).tolist() == (full[:k] if 0 < k < n_vocab else full).tolist()


def sorted_draw(logits: np.ndarray, settings: GenerationSettings, uniform: float) -> int:
    """The definition: all tokens sorted, filtered, and the one at `uniform` of what is left."""
    order = np.argsort(-logits, kind="stable")
    values = logits[order].astype(np.float64)
    weights = np.exp(values - values[0])
    keep = np.ones(len(order), dtype=bool)
    keep[int(np.searchsorted(np.cumsum(weights / weights.sum()), settings.top_p)) + 1 :] = settings.top_p >= 1
    keep &= weights >= settings.min_p
    scaled = np.cumsum(np.exp((values[keep] - values[0]) / settings.temperature))
    return int(order[keep][np.searchsorted(scaled, uniform * scaled[-1], side="right")])


@pytest.mark.parametrize(("top_p", "min_p"), [(1.0, 0.0), (0.95, 0.0), (1.0, 0.05), (0.5, 0.01), (0.999, 1e-6)])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_a_draw_from_all_tokens_is_that_of_the_sorted_vocabulary(top_p: float, min_p: float, spread: float) -> None:
    random = np.random.default_rng(5)
    settings = GenerationSettings(temperature=1.3, top_k=0, top_p=top_p, min_p=min_p, seed=11)
    sampler, uniforms = Sampler(settings), np.random.default_rng(11)
    for _ in range(12):
        logits = (spread * random.standard_normal(40_000)).astype(np.float32)
        assert sampler.choose(logits)[0] == sorted_draw(logits, settings, uniforms.random())


class Only:
    """A constraint that allows a set of tokens."""

    def __init__(self, *tokens: int) -> None:
        self.tokens, self.accepted = tokens, list[int]()

    def allows(self, token: int) -> bool:
        return token in self.tokens

    def allowed(self, tokens: np.ndarray) -> np.ndarray:
        return np.isin(tokens, self.tokens)

    def accept(self, token: int) -> None:
        assert token in self.tokens
        self.accepted.append(token)


def test_under_a_constraint_the_distribution_is_the_models_given_what_is_allowed() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    settings = GenerationSettings(temperature=1, top_k=0, top_p=1, min_p=0)
    sampler = Sampler(settings, grammar=Only(1, 3))
    found = np.bincount([sampler.choose(logits)[0] for _ in range(8000)], minlength=4) / 8000
    np.testing.assert_allclose(found, [0, 0.3 / 0.35, 0, 0.05 / 0.35], atol=0.02)


@pytest.mark.parametrize("top_k", [0, 1, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_allowed_token_is_found_however_unlikely(top_k: int, temperature: float) -> None:
    logits = -np.arange(5000, dtype=np.float32)
    only = Only(4321)
    settings = GenerationSettings(temperature=temperature, top_k=top_k)
    token, log_probability = Sampler(settings, grammar=only).choose(logits)
    assert (token, only.accepted) == (4321, [4321])
    assert log_probability == pytest.approx(-4321 - np.log(1 / (1 - np.exp(-1))), abs=1e-2)
    with pytest.raises(EngineError, match="continues the grammar"):
        Sampler(settings, grammar=Only()).choose(logits)


# --- text ------------------------------------------------------------------------------------------------------------


@given(st.text(), st.lists(st.integers(0, 40)))
def test_text_without_stops_comes_out_whole_however_it_is_cut(text: str, cuts: list[int]) -> None:
    raw = text.encode("utf-8", errors="surrogatepass")
    stream, shown, at = TextStream(), "", 0
    for cut in cuts:
        shown += stream.push(raw[at : at + cut])
        at += cut
    assert shown + stream.push(raw[at:]) + stream.flush() == raw.decode("utf-8", errors="replace")


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.integers(1, 4))
def test_a_stop_text_never_shows_and_nothing_before_it_is_lost(text: str, stops: list[str], step: int) -> None:
    stream = TextStream(stops)
    shown = ""
    for at in range(0, len(text), step):
        shown += stream.push(text[at : at + step].encode())
        if stream.stopped:
            break
    shown += stream.flush()
    # The stop that ends first wins: a generation does not look ahead.
    ends = {text.find(stop) + len(stop): stop for stop in stops if stop in text}
    read = text[: -(-min(ends) // step) * step] if ends else text
    assert shown == text[: min((read.find(stop) for stop in stops if stop in read), default=len(text))]
    assert stream.stopped == any(stop in text for stop in stops)


def test_a_character_waits_for_its_last_byte() -> None:
    stream = TextStream()
    assert [stream.push(bytes([byte])) for byte in "ß🩺".encode()] == ["", "ß", "", "", "", "🩺"]
    assert stream.push(b"\xf0\x9f") + stream.flush() == "�"
