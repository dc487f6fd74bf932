"""The openai engine: a model behind an OpenAI-compatible server (llama-server, vLLM, ...), for what no single process
holds.

A server tells log-probabilities, not logits, and mostly of the few most probable tokens. What it tells is found out
by asking when it is opened, and stands in the record. What it does not tell is a RefusedError, never a number.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medlite.engines.engine import (
    EngineInfo,
    GeneratedToken,
    GenerationSettings,
    Logits,
    LogitsRequest,
    OnPrompt,
    ServedModel,
)
from medlite.engines.requests import check_logits_request
from medlite.engines.server.address import parse_address
from medlite.engines.server.http import JsonClient, Reply
from medlite.engines.server.replies import (
    LEAST_LOG_PROBABILITY,
    Completion,
    Name,
    continuation_sum,
    read_completion,
    text_sum,
    told,
)
from medlite.errors import ContextError, RefusedError, ServerError
from medlite.models.hub import is_offline

TOPS = (100, 20, 5, 1)  # tried in this order: vLLM's usual limit is 20, OpenAI's 5
PROBE = "The patient takes"
ECHO = {"echo": True}
FORCING_BIAS = 1e4  # added to a logit: no model's logits differ by as much
NO_LIMIT = 1 << 30  # tokens, where the server does not tell its context: it refuses what is too long
LLAMA_SERVER, VLLM, OTHER = "llama-server", "vLLM", "OpenAI-compatible server"


@dataclass(frozen=True)
class ServerFacts:
    """What a server is and tells. n_vocab, n_context: 0 where it does not say.

    tokenizer: it turns text into ids and takes ids as a prompt; without, tokens are compared as text.
    n_top: most probable tokens that one request may ask for. full: it can return all n_vocab.
    plain_token: a token of whole characters, which llama-server is made to generate: it tells no probabilities of a
    place where the generated token is a piece of a character (tools/server/server-context.cpp, process_token), and
    what it tells is from before any bias.
    echo: it gives the log-probabilities of the prompt's own tokens, so that a continuation is scored in one request.
    """

    served: ServedModel
    version: str = ""
    n_vocab: int = 0
    n_context: int = 0
    n_top: int = 0
    echo: bool = False
    tokenizer: bool = False
    full: bool = False
    plain_token: int | None = None


class OpenAIEngine:
    """An `engine.AnswersEngine`. May be called from several threads at once."""

    def __init__(self, client: JsonClient, facts: ServerFacts) -> None:
        self._client, self.facts = client, facts
        self.served, self.has_tokenizer = facts.served, facts.tokenizer
        self._complete = partial(complete, client, facts)
        told_tokens = "all" if facts.full else f"up to {facts.n_top} most probable"
        self.info = EngineInfo(
            engine="openai",
            engine_version=" ".join(filter(None, (facts.served.server, facts.version))),
            device="server",
            device_name=client.address.text,
            model_name=facts.served.name,
            n_vocab=facts.n_vocab,
            n_context=facts.n_context or NO_LIMIT,
            n_threads=0,
            load_seconds=0.0,
            settings={
                "url": client.address.text,
                "tokens_told": told_tokens,
                "echo": str(facts.echo).lower(),
                "tokenizer": str(facts.tokenizer).lower(),
            },
            warnings=() if facts.full else (f"the server tells {told_tokens} tokens: KL is not claimed",),
        )

    # --- text --------------------------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_bos: bool = True, parse_special: bool = False) -> list[int]:
        """The server's own token ids. vLLM reads control tokens in `text` as such, whatever parse_special says."""
        if not self.has_tokenizer:
            raise ServerError(f"{self.info.device_name} has no /tokenize")
        if self.served.server == LLAMA_SERVER:
            value: Any = {"content": text, "add_special": add_bos, "parse_special": parse_special}
        else:
            value = {"model": self.served.name, "prompt": text, "add_special_tokens": add_bos}
        return _token_ids(self._client.post("/tokenize", value))

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        reply = self._client.post("/detokenize", {"model": self.served.name, "tokens": list(tokens)})
        found = _accepted(reply)
        return str(found.get("content", found.get("prompt", ""))).encode()

    # --- log-probabilities -------------------------------------------------------------------------------------------

    def log_probabilities(self, context: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[float]:
        """Sum over each continuation's tokens, in nats. Raises RefusedError if the server does not tell one of them.

        One request where all are single tokens among the most probable; else one echo each; else token by token.
        """
        first = self._top(context, self.facts.n_top)
        if all(len(one) == 1 and one[0] in first for one in continuations):
            return [told(first[one[0]]) for one in continuations]
        if self.facts.echo:
            return [self._echoed(context, one) for one in continuations]
        known: dict[tuple[int, ...], dict[Name, float]] = {(): first}
        return [sum(self._next(context, one[:i], one[i], known) for i in range(len(one))) for one in continuations]

    def text_log_probabilities(self, context: str, continuations: Sequence[str]) -> tuple[list[float], int]:
        """The same from text alone, and how many tokens the context has, for a server without a tokenizer."""
        found = self._complete(context, n_top=self.facts.n_top)
        first = found.steps[0].top if found.steps else {}
        if all(one in first for one in continuations):
            return [told(first[one]) for one in continuations], found.n_prompt_tokens
        if not self.facts.echo:
            missing = ", ".join(repr(one)[:20] for one in continuations if one not in first)
            raise RefusedError(f"{missing} not among the {len(first)} tokens that the server tells, and it has no echo")
        sums = []
        for one in continuations:
            sums.append(text_sum(self._complete(context + one, n_top=1, more=ECHO).echoed, one))
        return sums, found.n_prompt_tokens

    def generate(
        self, tokens: Sequence[int], settings: GenerationSettings, on_prompt: OnPrompt | None = None
    ) -> Iterator[GeneratedToken]:
        """The reply, which comes whole: its text is in the last step. on_prompt hears of the prompt as one piece."""
        body = {"max_tokens": settings.max_tokens, "temperature": settings.temperature, "stop": list(settings.stop)}
        report = on_prompt or (lambda _read, _total: None)
        report(0, len(tokens))
        found = self._complete(list(tokens), n_top=1, more=body)
        report(len(tokens), len(tokens))
        last = len(found.steps) - 1
        for i, step in enumerate(found.steps):
            yield GeneratedToken(
                step.name if isinstance(step.name, int) else -1,
                found.text if i == last else "",
                step.log_probability or 0.0,
                (found.finish or "length") if i == last else None,
            )

    def close(self) -> None:
        self._client.close()

    # --- requests ----------------------------------------------------------------------------------------------------

    def _top(self, tokens: Sequence[int], n_top: int) -> dict[Name, float]:
        found = self._complete(list(tokens), n_top=n_top)
        if not found.steps:
            raise RefusedError("the server told no log-probability")
        return dict(found.steps[0].top)

    def _echoed(self, context: Sequence[int], continuation: Sequence[int]) -> float:
        return continuation_sum(self._complete([*context, *continuation], n_top=1, more=ECHO).echoed, continuation)

    def _next(
        self, context: Sequence[int], before: Sequence[int], token: int, known: dict[tuple[int, ...], dict[Name, float]]
    ) -> float:
        """Log-probability of `token` after context and `before`. known: tables that were asked for already."""
        key = tuple(before)
        if key not in known:
            known[key] = self._top([*context, *before], self.facts.n_top)
        if token not in known[key] and self.facts.n_vocab:
            known[key] = self._top([*context, *before], self.facts.n_vocab)
        if token not in known[key]:
            raise RefusedError(f"token {token} is not among the {len(known[key])} that the server tells")
        return told(known[key][token])


class ExactOpenAIEngine(OpenAIEngine):
    """An `engine.LogitsEngine` too: the server returns the log-probabilities of the whole vocabulary (facts.full)."""

    def distribution(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Log-probabilities of the whole vocabulary after `tokens`, (n_vocab,), nats. Raises RefusedError."""
        table = self._top(tokens, self.facts.n_vocab)
        row = np.full(self.facts.n_vocab, np.nan, dtype=np.float32)
        for name, value in table.items():
            if isinstance(name, int) and 0 <= name < row.size:
                row[name] = max(value, LEAST_LOG_PROBABILITY)
        if np.isnan(row).any():
            raise RefusedError(f"the server tells {len(table)} of {row.size} log-probabilities")
        return row

    def logits(self, requests: Sequence[LogitsRequest]) -> Iterator[Logits]:
        """Log-probabilities in the place of logits, which differ from them by a constant per row."""
        for number, request in enumerate(requests):
            check_logits_request(number, request, self.info)
        return (
            np.stack([self.distribution(request.tokens[: at + 1]) for at in request.positions]) for request in requests
        )


def complete(
    client: JsonClient,
    facts: ServerFacts,
    prompt: str | list[int],
    *,
    n_top: int,
    more: Mapping[str, Any] | None = None,
) -> Completion:
    """One completion, greedy and of one token unless `more` says otherwise. Raises RefusedError, ContextError."""
    value: dict[str, Any] = {
        "model": facts.served.name,
        "prompt": prompt,
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": n_top,
        **(more or {}),
    }
    if facts.plain_token is not None and value["max_tokens"] == 1:
        value["logit_bias"] = [[facts.plain_token, FORCING_BIAS]]
    if facts.tokenizer and facts.served.server == VLLM:
        value["return_tokens_as_token_ids"] = True
    return read_completion(_accepted(client.post("/v1/completions", value)))


def _accepted(reply: Reply) -> dict[str, Any]:
    if reply.status != 200:
        kind = ContextError if "context" in reply.reason and reply.status == 400 else RefusedError
        raise kind(f"the server refuses: {reply.reason}")
    body: dict[str, Any] = reply.body
    return body


def _token_ids(reply: Reply) -> list[int]:
    tokens = _accepted(reply).get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise ServerError("the server's /tokenize gives no list of ids")
    return tokens


# --- opening ---------------------------------------------------------------------------------------------------------


def open_openai(
    url: str, model: str = "", exact: bool = False, *, sleep: Callable[[float], None] = time.sleep
) -> OpenAIEngine:
    """The server at `url`, asked what it is and what it tells. exact: all log-probabilities are needed, and an
    ExactOpenAIEngine comes back.

    Raises ServerError if it cannot be reached, has no such model, or tells no log-probabilities, and for another
    machine where the user forbade the network.
    """
    address = parse_address(url)
    if is_offline() and not address.is_this_machine:
        raise ServerError(
            f"{address.text} is another machine, and --offline or HF_HUB_OFFLINE forbids the network",
            hint="a server on localhost may be asked",
        )
    client = JsonClient(address, sleep=sleep)
    try:
        facts = _dialect(client, _model_row(client, model))
        facts = replace(facts, n_top=_most_told(client, facts), echo=_echoes(client, facts))
        if exact and not (facts.n_vocab and facts.tokenizer):
            raise ServerError(
                f"{address.text}: {facts.served.server} does not tell the whole vocabulary's probabilities",
                hint="without --exact, or with llama-server",
            )
    except BaseException:
        client.close()
        raise
    return (ExactOpenAIEngine if exact else OpenAIEngine)(client, replace(facts, full=exact))


def _model_row(client: JsonClient, wanted: str) -> dict[str, Any]:
    """The row of /v1/models that the user means."""
    reply = client.get("/v1/models")
    rows = reply.body.get("data") if isinstance(reply.body, dict) else None
    if reply.status != 200 or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ServerError(
            f"{client.address.text}/v1/models: no list of models: {reply.reason}",
            hint="is this an OpenAI-compatible server?",
        )
    names = [str(row.get("id")) for row in rows]
    if wanted and wanted not in names:
        raise ServerError(f"{client.address.text} has no model {wanted!r}", hint=f"--model {' | '.join(names[:8])}")
    if not wanted and len(names) != 1:
        raise ServerError(f"{client.address.text} has {len(names)} models", hint=f"--model {' | '.join(names[:8])}")
    found: dict[str, Any] = rows[names.index(wanted) if wanted else 0]
    return found


def _dialect(client: JsonClient, row: dict[str, Any]) -> ServerFacts:
    """What kind of server it is, by what only that kind answers."""
    model = str(row.get("id"))
    props = client.get("/props")
    if props.status == 200 and "default_generation_settings" in props.body:
        meta = row.get("meta") if isinstance(row.get("meta"), dict) else {}
        bos, eos = (str(props.body.get(key) or "") for key in ("bos_token", "eos_token"))
        plain = _token_ids(client.post("/tokenize", {"content": PROBE, "add_special": False, "parse_special": False}))
        served = ServedModel(
            model,
            LLAMA_SERVER,
            n_params=_count(meta, "n_params"),
            n_bytes=_count(meta, "size"),
            recipe=str((meta or {}).get("ftype") or ""),
            chat_template=str(props.body.get("chat_template") or ""),
            special_tokens={"bos_token": bos, "eos_token": eos},
        )
        return ServerFacts(
            served,
            version=str(props.body.get("build_info") or ""),
            n_vocab=_count(meta, "n_vocab"),
            n_context=_count(meta, "n_ctx") or _count(props.body["default_generation_settings"], "n_ctx"),
            tokenizer=True,
            plain_token=plain[-1] if plain else None,
        )
    version, n_context = client.get("/version"), _count(row, "max_model_len")
    if version.status == 200 and "version" in version.body:
        asked = client.post("/tokenize", {"model": model, "prompt": PROBE, "add_special_tokens": True})
        return ServerFacts(
            ServedModel(model, VLLM), str(version.body["version"]), n_context=n_context, tokenizer=asked.status == 200
        )
    return ServerFacts(ServedModel(model, OTHER), n_context=n_context)


def _most_told(client: JsonClient, facts: ServerFacts) -> int:
    """How many of the most probable tokens one request may ask for."""
    reasons = []
    for n_top in TOPS:
        try:
            found = complete(client, facts, PROBE, n_top=n_top)
        except (RefusedError, ContextError) as error:
            reasons.append(str(error))
            continue
        if found.steps and found.steps[0].top:
            return n_top
    raise ServerError(
        f"{client.address.text} tells no log-probabilities" + (f": {reasons[-1]}" if reasons else ""),
        hint="llama-server and vLLM do",
    )


def _echoes(client: JsonClient, facts: ServerFacts) -> bool:
    """Whether the prompt's own tokens come back with their log-probabilities."""
    try:
        echoed = complete(client, facts, PROBE, n_top=1, more=ECHO).echoed
    except (RefusedError, ContextError):
        return False
    return len(echoed) > 1 and all(step.log_probability is not None for step in echoed[1:])


def _count(value: Any, key: str) -> int:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, int) and found > 0 else 0
