"""Which requests the torch engine works on together: each shared beginning once, and little padding. Needs no torch."""

from medlite.engines.engine import LogitsRequest
from medlite.engines.torch import LEAST_FILL, WINDOW_REQUESTS, batches, shared_prefix, windows

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
