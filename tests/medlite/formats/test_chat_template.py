"""Chat templates against literal goldens and transformers, hostile ones, and the special tokens that they name."""

import datetime

import pytest

from medlite.errors import ArtifactError
from medlite.formats.chat_template import ChatTemplate, Message, special_tokens, stated_tokens
from tests.helpers.chat_templates import MESSAGES, SPECIAL_TOKENS, TEMPLATES

CONVERSATION = [Message(role, content) for role, content in MESSAGES]
TOKENS = {"bos_token": "<|begin_of_text|>"}


def july(_: object = None) -> datetime.datetime:
    return datetime.datetime(2024, 7, 6)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_its_golden_text(name: str) -> None:
    case = TEMPLATES[name]
    template = ChatTemplate(case.source, SPECIAL_TOKENS, now=july)
    assert template.takes_system == case.takes_system
    assert template.render(CONVERSATION) == case.golden


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_as_transformers_renders_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    template = ChatTemplate(TEMPLATES[name].source, SPECIAL_TOKENS)
    messages = CONVERSATION if template.takes_system else CONVERSATION[1:]
    for n in (1, 2, 3, 4) if template.takes_system else (1, 2, 3):
        for prompt in (True, False):
            theirs = utils.render_jinja_template(
                conversations=[[{"role": m.role, "content": m.content} for m in messages[:n]]],
                chat_template=template.source,
                add_generation_prompt=prompt,
                **SPECIAL_TOKENS,
            )
            text = theirs[0][0] if isinstance(theirs, tuple) else theirs[0]
            assert template.render(messages[:n], add_generation_prompt=prompt) == text


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "{% for a in range(100000000) %}{% endfor %}",
        "{{ messages[9].content }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_hostile_or_broken_template_ends_in_one_error(source: str) -> None:
    with pytest.raises(ArtifactError, match="chat template refuses"):
        ChatTemplate(source, TOKENS).render([Message("user", "a")])


def test_a_template_that_does_not_compile_is_named() -> None:
    with pytest.raises(ArtifactError, match="cannot be compiled"):
        ChatTemplate("{% for %}", TOKENS)


def test_special_tokens_are_read_from_metadata_and_from_a_tokenizer_config() -> None:
    metadata = {
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": -1,
    }
    assert special_tokens(metadata) == {"bos_token": "<s>", "eos_token": "</s>"}
    assert special_tokens({"tokenizer.ggml.bos_token_id": 0}) == {}
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "pad_token": None, "unk_token": {}}
    assert stated_tokens(config) == {"bos_token": "<s>", "eos_token": "</s>"}
