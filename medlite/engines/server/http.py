"""JSON over HTTP to one host that the user named: no proxy, no redirect, no cookie, nothing to anybody else.

A key is read from the environment (MEDLITE_API_KEY) and goes into the Authorization header only. urllib3 binds a socket
to ::1 when it is imported, so only what asks a server imports this file.
"""

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, Retry
from urllib3.exceptions import HTTPError, InvalidHeader

from medlite.engines.server.address import KEY_VARIABLE, Address
from medlite.errors import ServerError

MAX_REPLY_BYTES = 256 << 20  # one distribution over 128,256 tokens is 11 MB of JSON
TIMEOUT_SECONDS = 300.0  # of one request: a large prompt on a busy server takes minutes
WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # before each further try
LONGEST_WAIT_SECONDS = 120.0  # that a server may ask for with Retry-After
MOST_IDLE = 256  # connections kept open between requests
BUSY = (429, 502, 503, 504)  # worth another try; 503 is also llama-server while it loads


@dataclass(frozen=True)
class Reply:
    """What came back. status: HTTP's. body: the JSON value, None where it was none."""

    status: int
    body: Any

    @property
    def reason(self) -> str:
        """The server's own words for its refusal."""
        found = self.body.get("error", self.body) if isinstance(self.body, dict) else self.body
        for key in ("message", "detail"):
            if isinstance(found, dict) and found.get(key):
                found = found[key]
        return f"HTTP {self.status}: {' '.join(str(found).split())[:300]}"


class JsonClient:
    """Requests to one server, from any number of threads. Connections are kept open between requests, until `close`."""

    def __init__(
        self, address: Address, *, timeout_seconds: float = TIMEOUT_SECONDS, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.address = address
        self._sleep = sleep
        self._key = os.environ.get(KEY_VARIABLE, "")
        if not self._key.isprintable() or not self._key.isascii():
            raise ServerError(f"{KEY_VARIABLE} holds characters that no header may hold")
        self._was_reached = False  # until then a refused connection is a wrong address, afterwards a restart
        kind = HTTPSConnectionPool if address.scheme == "https" else HTTPConnectionPool
        self._pool = kind(address.host, address.port, timeout=timeout_seconds, maxsize=MOST_IDLE)

    def get(self, path: str) -> Reply:
        """The reply to GET. Raises ServerError as `post` does."""
        return self._ask("GET", path, None)

    def post(self, path: str, value: Any) -> Reply:
        """The reply to `value` as JSON. A busy or vanished server is asked again; refusals come back as they are.

        Raises ServerError if it cannot be reached, stays busy, sends us elsewhere, or wants a key.
        """
        return self._ask("POST", path, json.dumps(value).encode())

    def _ask(self, method: str, path: str, body: bytes | None) -> Reply:
        trouble = ""
        for wait in (*WAITS_SECONDS, None):
            try:
                reply, asked_wait = self._once(method, path, body)
            except HTTPError as error:
                cause = error.__cause__ or error  # the system's own words
                trouble = f"{type(cause).__name__}: {cause}".rstrip(": ")
                if isinstance(cause, ConnectionRefusedError | socket.gaierror) and not self._was_reached:
                    raise ServerError(
                        f"{self.address.text} cannot be reached: {trouble}",
                        hint="is the server running, and is this its address?",
                    ) from error
                asked_wait = 0.0
            else:
                self._was_reached = True
                if reply.status not in BUSY:
                    return self._checked(reply, path)
                trouble = reply.reason
            if wait is not None:
                self._sleep(max(wait, min(asked_wait, LONGEST_WAIT_SECONDS)))
        raise ServerError(
            f"{self.address.text}{path}: gave up after {len(WAITS_SECONDS) + 1} tries: {trouble}",
            hint="--resume continues where it stopped",
        )

    def _once(self, method: str, path: str, body: bytes | None) -> tuple[Reply, float]:
        """One request: the reply, and the seconds after which the server wants to be asked again.

        Retries are counted by the caller, since a reply that breaks off is worth one too.
        """
        headers = {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "medlite"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        url = f"{self.address.prefix}{path}"
        answer = self._pool.urlopen(
            method, url, body, headers, retries=False, redirect=False, preload_content=False, decode_content=False
        )
        try:
            raw = answer.read(MAX_REPLY_BYTES + 1)
            if len(raw) > MAX_REPLY_BYTES:
                raise ServerError(f"{self.address.text}{path}: a reply of more than {MAX_REPLY_BYTES >> 20} MiB")
        except BaseException:
            answer.close()
            raise
        answer.release_conn()
        try:
            value = json.loads(raw)  # which takes NaN, as some servers write it: that fails one sample, not the run
        except (ValueError, RecursionError):
            value = None
        try:
            asked = Retry().get_retry_after(answer) or 0.0
        except InvalidHeader:
            asked = 0.0
        return Reply(answer.status, value), asked

    def _checked(self, reply: Reply, path: str) -> Reply:
        where = f"{self.address.text}{path}"
        if 300 <= reply.status < 400:
            raise ServerError(
                f"{where}: sends us to another address, and nothing is sent where the user did not say",
                hint="give --url the address itself",
            )
        if reply.status in (401, 403):
            held = "refuses the key" if self._key else "wants a key"
            raise ServerError(f"{where}: {held}: {reply.reason}", hint=f"export {KEY_VARIABLE}=...")
        if reply.status == 200 and not isinstance(reply.body, dict):
            raise ServerError(f"{where}: the reply is no JSON object", hint="is this an OpenAI-compatible server?")
        return reply

    def close(self) -> None:
        """Close what is idle; requests that are under way close their own connection."""
        self._pool.close()
