"""What servers answer at /v1/completions, in the two forms there are, as tables of token -> log-probability.

The classic form (OpenAI, vLLM, llama-cpp-python): logprobs = {tokens, token_logprobs, top_logprobs}, tokens as text, or
as "token_id:NUMBER" where vLLM was asked with return_tokens_as_token_ids.
llama-server's: logprobs = {content: [{id, token, logprob, top_logprobs: [{id, token, logprob}]}]}.
Sources: vLLM entrypoints/openai/completion/serving.py, llama.cpp tools/server/server-task.cpp.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medlite.errors import RefusedError

ID_MARK = "token_id:"
# exp of less is zero in float32: llama-server then writes the least float there is, vLLM -9999.
LEAST_LOG_PROBABILITY = -103.27
MOST_LOG_PROBABILITY = 1e-3  # rounding may lift a certain token a little above 0

Name = int | str  # of a token: its id, or its text where the server tells no ids


@dataclass(frozen=True)
class Step:
    """One token with its log-probability (None for the first of a prompt) and the most probable ones at its place."""

    name: Name
    log_probability: float | None
    top: Mapping[Name, float]


@dataclass(frozen=True)
class Completion:
    """A reply: the text, its tokens (with echo the prompt's come first), and how it ended."""

    text: str
    steps: tuple[Step, ...]
    n_prompt_tokens: int
    n_generated: int
    finish: str

    @property
    def echoed(self) -> tuple[Step, ...]:
        """The prompt's own tokens, where they were asked for."""
        return self.steps[: len(self.steps) - self.n_generated]


def read_completion(body: Any) -> Completion:
    """The reply `body` of /v1/completions. Raises RefusedError saying what it lacks."""
    try:
        choice = body["choices"][0]
        usage = body.get("usage") or {}
        steps = _steps(choice.get("logprobs"))
        return Completion(
            str(choice.get("text") or ""),
            steps,
            int(usage.get("prompt_tokens", 0)),
            int(usage.get("completion_tokens", 1)),
            str(choice.get("finish_reason") or ""),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise RefusedError(f"the server's reply is no completion: {error!r}") from error


def continuation_sum(steps: Sequence[Step], wanted: Sequence[Name]) -> float:
    """Sum of the log-probabilities, in nats, of the prompt's last tokens, which must be `wanted`.

    steps: of an echoed prompt, without what was generated. Raises RefusedError if they end in other tokens.
    """
    tail = steps[len(steps) - len(wanted) :]
    if len(steps) <= len(wanted) or [step.name for step in tail] != list(wanted):
        raise RefusedError("the server echoed other tokens than were sent")
    return sum(told(step.log_probability) for step in tail)


def text_sum(steps: Sequence[Step], continuation: str) -> float:
    """The same where tokens are text: the last tokens whose texts make up `continuation` exactly."""
    joined = ""
    total = 0.0
    for step in reversed(steps):
        joined = f"{step.name}{joined}"
        total += told(step.log_probability)
        if joined == continuation:
            return total
        if len(joined) >= len(continuation):
            break
    raise RefusedError(f"no token border of the server lies before {continuation!r:.40}")


def told(value: float | None) -> float:
    """`value`, if the server really told a log-probability. Raises RefusedError."""
    if value is None or not LEAST_LOG_PROBABILITY < value <= MOST_LOG_PROBABILITY:
        raise RefusedError(f"the server gives {value} where a log-probability was needed")
    return value


def _steps(logprobs: Any) -> tuple[Step, ...]:
    if not logprobs:
        return ()
    if "content" in logprobs:
        return tuple(
            Step(_name(one), float(one["logprob"]), {_name(top): float(top["logprob"]) for top in one["top_logprobs"]})
            for one in logprobs["content"]
        )
    tokens, values = logprobs["tokens"], logprobs["token_logprobs"]
    tops = logprobs.get("top_logprobs") or [None] * len(tokens)
    return tuple(
        Step(
            _classic(token),
            None if value is None else float(value),
            {_classic(key): float(top[key]) for key in top or ()},
        )
        for token, value, top in zip(tokens, values, tops, strict=True)
    )


def _name(value: Mapping[str, Any]) -> Name:
    return int(value["id"]) if "id" in value else str(value["token"])


def _classic(token: str) -> Name:
    return int(token.removeprefix(ID_MARK)) if token.startswith(ID_MARK) else token
