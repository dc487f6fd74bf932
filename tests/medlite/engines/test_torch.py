"""Which requests the torch engine works on together: each shared beginning once, and little padding. Replies: slow."""

import json
from pathlib import Path

import jsonschema
import pytest

from medlite.engines.engine import GenerationSettings, LogitsRequest, OpenSettings
from medlite.engines.json_schema import lark_from_json_schema
from medlite.engines.torch import (
    LEAST_FILL,
    WINDOW_REQUESTS,
    JoinedText,
    batches,
    open_torch_reference,
    shared_prefix,
    windows,
)
from tests.helpers.tiny_checkpoint import make_llama

EXAMPLES = {subject: tuple(range(1000 * subject, 1000 * subject + 500)) for subject in (1, 2)}


def request(*parts: tuple[int, ...]) -> LogitsRequest:
    tokens = sum(parts, ())
    return LogitsRequest(tokens, (len(tokens) - 1,))


def test_another_subjects_examples_begin_another_window() -> None:
    requests = [request((1,), EXAMPLES[subject], (7, n)) for subject in (1, 2) for n in range(5)]
    found = list(windows(requests))
    assert [len(window) for window in found] == [5, 5]
    assert [shared_prefix([r.tokens for r in window]) for window in found] == [502, 502]


def test_each_questions_options_share_its_beginning() -> None:
    requests = [request((1,), (10 + question,) * 60, (option, 3)) for question in range(3) for option in range(4)]
    assert [len(window) for window in windows(requests)] == [4, 4, 4]


def test_questions_with_nothing_in_common_stay_together() -> None:
    requests = [request((1, 2), tuple(range(n, n + 200))) for n in range(10, 150)]
    assert [len(window) for window in windows(requests)] == [WINDOW_REQUESTS, WINDOW_REQUESTS, 12]


def test_windows_keep_every_request_in_order() -> None:
    requests = [request((n % 3,) * 40, (n,)) for n in range(100)]
    assert [one for window in windows(requests) for one in window] == requests


def test_no_batch_is_mostly_padding() -> None:
    window = [request(tuple(range(n))) for n in (50, 400, 395, 60, 200, 100, 190)]
    found = batches(window, 0, n_vocab=100)
    assert sorted(i for batch in found for i in batch) == list(range(7))
    for batch in found:
        lengths = [len(window[i].tokens) for i in batch]
        assert min(lengths) >= LEAST_FILL * max(lengths)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")  # by Transformers 5, not by 4.51
def test_a_reply_follows_a_schema(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    properties = {"dose": {"type": "integer", "minimum": 5, "maximum": 2550}, "unit": {"enum": ["mg", "µg"]}}
    schema = {"type": "object", "properties": properties, "required": ["dose", "unit"]}
    engine = open_torch_reference(make_llama(tmp_path / "m"), OpenSettings(device="cpu", dtype="float32"))
    for seed in range(3):
        settings = GenerationSettings(
            max_tokens=200, temperature=1.5, top_k=0, min_p=0, seed=seed, grammar=lark_from_json_schema(schema)
        )
        steps = list(engine.generate(engine.tokenize("The patient"), settings))
        assert steps[-1].finish == "stop"
        jsonschema.validate(json.loads("".join(step.text for step in steps)), schema)
    engine.close()


def test_a_character_of_two_tokens_is_shown_once_it_is_whole() -> None:
    parts = [b'"', b"\xc2", b"\xb5", b"g", b'"']
    joined = JoinedText(lambda tokens: b"".join(parts[token] for token in tokens).decode(errors="replace").encode())
    assert [joined(token) for token in range(5)] == [b'"', b"", "µ".encode(), b"g", b'"']
