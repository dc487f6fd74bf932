"""What every test may rely on."""

import signal

import pytest


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell that runs the suite in the background ignores SIGINT, and children inherit that; the tests send it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
