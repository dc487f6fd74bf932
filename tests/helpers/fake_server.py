"""A real HTTP server on localhost over any engine, speaking as llama-server, vLLM or a plain OpenAI server does.

Forms are those of llama.cpp tools/server and vLLM entrypoints/openai: what a dialect refuses or leaves out is refused
and left out here.
"""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from bench.score.scoring import log_softmax
from medlite.engines.engine import Engine, LogitsRequest
from tests.helpers.toy_engine import CHAT_TEMPLATE

DIALECTS = ("llama", "vllm", "plain", "echoing")  # echoing: plain, with echo (llama-cpp-python)
MOST_TOLD = {"llama": 10**9, "vllm": 20, "plain": 5, "echoing": 100}


class FakeServer(ThreadingHTTPServer):
    """failures: (status, headers) that are answered before anything else, one a request. key: that it wants, if any.

    seen: path and JSON body of every request; keys: the Authorization headers.
    """

    daemon_threads = True

    def __init__(
        self, engine: Engine, dialect: str, *, key: str = "", n_context: int = 2048, most_told: int = 0
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.engine, self.dialect, self.key, self.n_context = engine, dialect, key, n_context
        self.most_told = most_told or MOST_TOLD[dialect]
        self.failures: list[tuple[int, dict[str, str]]] = []
        self.seen: list[tuple[str, Any]] = []
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()
        self.connections: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON value."""
        llama, vllm = self.dialect == "llama", self.dialect == "vllm"
        if path == "/v1/models":
            meta = (
                {
                    "meta": {
                        "n_vocab": self.engine.info.n_vocab,
                        "n_ctx": self.n_context,
                        "n_params": 1000,
                        "size": 2000,
                        "ftype": "BF16",
                    }
                }
                if llama
                else {}
            )
            return 200, {"data": [{"id": "toy-70b", **meta, **({"max_model_len": self.n_context} if vllm else {})}]}
        if path == "/props" and llama:
            return 200, {
                "default_generation_settings": {"n_ctx": self.n_context},
                "build_info": "b1",
                "chat_template": CHAT_TEMPLATE,
                "bos_token": "<|begin_of_text|>",
                "eos_token": "<|eot_id|>",
            }
        if path == "/version" and vllm:
            return 200, {"version": "0.26"}
        if path == "/tokenize" and llama:
            return 200, {
                "tokens": self.engine.tokenize(
                    body["content"], add_bos=body.get("add_special", False), parse_special=body["parse_special"]
                )
            }
        if path == "/tokenize" and vllm:
            tokens = self.engine.tokenize(body["prompt"], add_bos=body["add_special_tokens"], parse_special=True)
            return 200, {"tokens": tokens, "count": len(tokens), "max_model_len": self.n_context}
        if path == "/v1/completions":
            return self.complete(body)
        return 404, {"error": {"message": "File Not Found", "code": 404}}

    def complete(self, body: Any) -> tuple[int, Any]:
        """/v1/completions, greedy."""
        if body["logprobs"] > self.most_told:
            return 400, {
                "error": {
                    "message": f"Requested sample logprobs of {body['logprobs']}, which is greater than "
                    f"max allowed: {self.most_told}",
                    "code": 400,
                }
            }
        if body.get("echo") and self.dialect == "plain":
            return 400, {"error": {"message": "echo is not supported"}}
        prompt = body["prompt"]
        if isinstance(prompt, str):
            prompt = self.engine.tokenize(prompt, parse_special=True)
        if len(prompt) >= self.n_context:
            return 400, {"error": {"message": f"request ({len(prompt)} tokens) exceeds the available context size"}}
        tokens, rows = list(prompt), []
        with self.lock:
            for _ in range(body["max_tokens"]):
                (logits,) = self.engine.logits([LogitsRequest(tuple(tokens), (len(tokens) - 1,))])
                rows.append(log_softmax(logits)[0])
                tokens.append(int(rows[-1].argmax()))
                if tokens[-1] >= 256:
                    break
            if body.get("echo") and self.dialect != "llama":
                positions = tuple(range(len(prompt) - 1))
                (of_prompt,) = self.engine.logits([LogitsRequest(tuple(prompt), positions)])
                rows = [None, *log_softmax(of_prompt), *rows]
            else:
                tokens = tokens[len(prompt) :]
        n_generated = len(tokens) - (len(prompt) if body.get("echo") and self.dialect != "llama" else 0)
        text = self.engine.detokenize(tokens[-n_generated:]).decode(errors="replace")
        return 200, {
            "choices": [{"text": text, "finish_reason": "length", "logprobs": self.logprobs(tokens, rows, body)}],
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": n_generated},
        }

    def logprobs(self, tokens: list[int], rows: list[Any], body: Any) -> Any:
        """What is told of each token, in the dialect's form."""
        tops = [
            [] if row is None else [int(t) for t in np.argsort(-row, kind="stable")[: body["logprobs"]]] for row in rows
        ]
        if self.dialect == "llama":
            return {
                "content": [
                    {
                        "id": token,
                        "token": self.text(token),
                        "logprob": float(row[token]),
                        "top_logprobs": [{"id": t, "token": self.text(t), "logprob": float(row[t])} for t in top],
                    }
                    for token, row, top in zip(tokens, rows, tops, strict=True)
                ]
            }
        as_ids = body.get("return_tokens_as_token_ids")

        def name(token: int) -> str:
            return f"token_id:{token}" if as_ids and self.dialect == "vllm" else self.text(token)

        return {
            "tokens": [name(token) for token in tokens],
            "token_logprobs": [
                None if row is None else float(row[token]) for token, row in zip(tokens, rows, strict=True)
            ],
            "top_logprobs": [
                None if row is None else {name(t): float(row[t]) for t in top}
                for row, top in zip(rows, tops, strict=True)
            ],
        }

    def text(self, token: int) -> str:
        return self.engine.detokenize([token]).decode(errors="replace")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet, or every reply waits 40 ms for an acknowledgement
    server: FakeServer

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def do_GET(self) -> None:
        self.respond(None)

    def do_POST(self) -> None:
        self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def respond(self, body: Any) -> None:
        self.server.seen.append((self.path, body))
        self.server.keys.add(self.headers["Authorization"])
        headers: dict[str, str] = {}
        if self.server.failures:
            status, headers = self.server.failures.pop(0)
            value: Any = {"error": {"message": "not now"}}
        elif self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            status, value = 401, {"error": {"message": "Invalid API Key"}}
        else:
            status, value = self.server.answer(self.path, body)
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for key, text in headers.items():
            self.send_header(key, text)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


@contextmanager
def serving(engine: Engine, dialect: str, **options: Any) -> Iterator[FakeServer]:
    """The server, listening on a port of its own until the block ends."""
    server = FakeServer(engine, dialect, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        for connection in server.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
