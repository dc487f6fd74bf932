"""JSON over HTTP to one host that the user named: no proxy, no redirect, no cookie, nothing to anybody else.

A key is read from the environment (MEDLITE_API_KEY) and goes into the Authorization header only.
"""

import http.client
import ipaddress
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from medlite.errors import ServerError

KEY_VARIABLE = "MEDLITE_API_KEY"
MAX_REPLY_BYTES = 256 << 20  # one distribution over 128,256 tokens is 11 MB of JSON
TIMEOUT_SECONDS = 300.0  # of one request: a large prompt on a busy server takes minutes
WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # before each further try
LONGEST_WAIT_SECONDS = 120.0  # that a server may ask for with Retry-After
BUSY = (429, 502, 503, 504)  # worth another try; 503 is also llama-server while it loads


@dataclass(frozen=True)
class Address:
    """Where a server listens. prefix: what stands before /v1 in its paths. text: as the record shows it."""

    scheme: str
    host: str
    port: int
    prefix: str

    @property
    def text(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.prefix}"

    @property
    def is_this_machine(self) -> bool:
        """Whether the name is localhost or a loopback address; no name is looked up."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(url: str) -> Address:
    """The server that `url` names, with or without its /v1. Raises ServerError for what is no plain address."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port or {"https": 443}.get(parts.scheme, 80)
    except ValueError as error:
        raise ServerError(f"{url}: no address: {error}") from error
    if parts.username or parts.password:
        raise ServerError(
            "the address holds a name or password, which would stand in the record",
            hint=f"a key goes into the environment: {KEY_VARIABLE}=...",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ServerError(f"{url}: no address of a server", hint="--url http://localhost:8080")
    return Address(parts.scheme, parts.hostname, port, parts.path.rstrip("/").removesuffix("/v1"))


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
        self._timeout, self._sleep = timeout_seconds, sleep
        self._key = os.environ.get(KEY_VARIABLE, "")
        if not self._key.isprintable() or not self._key.isascii():
            raise ServerError(f"{KEY_VARIABLE} holds characters that no header may hold")
        self._was_reached = False  # until then a refused connection is a wrong address, afterwards a restart
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

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
            except (OSError, http.client.HTTPException) as error:
                trouble = f"{type(error).__name__}: {error}".rstrip(": ")
                if isinstance(error, ConnectionRefusedError | socket.gaierror) and not self._was_reached:
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
        """One request: the reply, and the seconds after which the server wants to be asked again."""
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        connection = self._take_connection()
        try:
            connection.request(method, f"{self.address.prefix}{path}", body=body, headers=headers)
            answer = connection.getresponse()
            raw = answer.read(MAX_REPLY_BYTES + 1)
        except BaseException:
            connection.close()
            raise
        if len(raw) > MAX_REPLY_BYTES:
            connection.close()
            raise ServerError(f"{self.address.text}{path}: a reply of more than {MAX_REPLY_BYTES >> 20} MiB")
        with self._lock:
            self._idle.append(connection)
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError):
            value = None
        asked = answer.headers.get("Retry-After") or ""
        return Reply(answer.status, value), float(asked) if asked.isdecimal() else 0.0

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

    def _take_connection(self) -> http.client.HTTPConnection:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        kind = http.client.HTTPSConnection if self.address.scheme == "https" else http.client.HTTPConnection
        return kind(self.address.host, self.address.port, timeout=self._timeout)

    def close(self) -> None:
        """Close what is idle; requests that are under way close their own connection."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
