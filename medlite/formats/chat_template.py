"""Chat templates: messages to the text that a model was trained on, equal to transformers' apply_chat_template.

A template is a program that came with the model file, so it runs in Jinja's sandbox: it reaches no file, no module
and no Python internals, and cannot change what it is given.
"""

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medlite.errors import ArtifactError
from medlite.formats.gguf import Header

PROBE = "MEDLITE-PROBE"
# What a template may name -> what GGUF calls it, in tokenizer.ggml.*_token_id.
TOKEN_KEYS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
THINK_START = "<think>"
# <|im_start|>, <start_of_turn>, <s>: how models spell control tokens.
CONTROL_MARK = re.compile(r"<\|[^|<>\s]{1,40}\|>|<(?:start|end)_of_turn>|</?s>")
# What a template's code can raise besides jinja2.TemplateError, which includes the sandbox's own refusals.
TEMPLATE_FAILURES = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Message:
    """One entry of a conversation. role: system, user or assistant."""

    role: str
    content: str


class ChatTemplate:
    """A compiled template with the special tokens that it may name.

    takes_system: whether it has a place for a system message; where it has none, `render` folds the system text into
    the first user message, as its authors recommend (Gemma's model card). starts_thinking: whether it opens a <think>
    block itself, so that the reply begins inside it.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        now: Callable[[], datetime.datetime] = datetime.datetime.now,
        *,
        stop: Sequence[str] = (),
    ) -> None:
        """special_tokens: bos_token, eos_token, ... as text. now: the clock of templates that print the date. stop:
        texts that end a reply, of formats without a token for it.

        Raises ArtifactError if the source is no template.
        """
        import jinja2

        try:
            self._compiled = _environment(now).from_string(source)
        except jinja2.TemplateError as error:
            raise ArtifactError(
                f"the chat template cannot be compiled: {error}", hint="--raw sends the prompt without a template"
            ) from error
        self.source, self.stop, self._special_tokens = source, tuple(stop), dict(special_tokens)
        self.takes_system = PROBE in self._probe(Message("system", PROBE), Message("user", "a"))
        self.starts_thinking = self._probe(Message("user", "a")).rstrip().endswith(THINK_START)

    def marks(self) -> list[str]:
        """The control tokens that it writes around texts, as far as they can be told from words."""
        text = self._probe(Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
        return list(dict.fromkeys(CONTROL_MARK.findall(text)))

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text of `messages`, ending where the assistant's reply begins.

        Raises ArtifactError with the template's own words if it refuses the messages.
        """
        if messages and messages[0].role == "system" and not self.takes_system:
            messages = fold_system(messages)
        return self._run(messages, add_generation_prompt)

    def _run(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        import jinja2

        try:
            text = self._compiled.render(
                messages=[{"role": message.role, "content": message.content} for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except (jinja2.TemplateError, *TEMPLATE_FAILURES) as error:
            raise ArtifactError(
                f"the chat template refuses the conversation: {error}", hint="--raw sends the prompt without a template"
            ) from error
        return str(text)

    def try_render(self, messages: Sequence[Message]) -> str | None:
        """The text of exactly these messages, nothing folded; None where the template refuses them."""
        try:
            return self._run(messages, True)
        except ArtifactError:
            return None

    def _probe(self, *messages: Message) -> str:
        return self.try_render(messages) or ""


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """The messages with the system text put before the first user text."""
    system, *rest = messages
    if not rest:
        return [Message("user", system.content)]
    return [Message(rest[0].role, f"{system.content}\n\n{rest[0].content}"), *rest[1:]]


def read_template(header: Header) -> ChatTemplate | None:
    """The chat template of a GGUF file with its special tokens, or None for a model without one."""
    source = header.get("tokenizer.chat_template")
    if not isinstance(source, str) or not source.strip():
        return None
    return ChatTemplate(source, special_tokens(header))


def special_tokens(metadata: Header | Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, unk_token, pad_token as text, those that a GGUF file names. metadata: plain values."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        return {}
    found: dict[str, str] = {}
    for name, key in TOKEN_KEYS.items():
        token = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(token, int) and 0 <= token < len(tokens) and isinstance(tokens[token], str):
            found[name] = tokens[token]
    return found


def stated_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, ... as text, those that a tokenizer_config.json states."""
    return {name: text for name in TOKEN_KEYS if (text := token_text(config.get(name))) is not None}


def token_text(stated: Any) -> str | None:
    """A token's text, from a plain string or from an added token's object."""
    text = stated.get("content") if isinstance(stated, dict) else stated
    return text if isinstance(text, str) else None


def _environment(now: Callable[[], datetime.datetime]) -> Any:
    """Jinja as transformers sets it up. Source: transformers utils/chat_template_utils.py, _compile_jinja_template."""
    import jinja2.ext
    import jinja2.sandbox

    class GenerationTag(jinja2.ext.Extension):
        """{% generation %} marks a reply for training; here its body is all that matters."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own interface

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class GuardedNamespace(jinja2.utils.Namespace):
        """A namespace whose attributes cannot reach Python internals."""

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a template may not set {name!r}")
            super().__setitem__(name, value)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda pattern: now().strftime(pattern)
    environment.globals["namespace"] = GuardedNamespace
    return environment
