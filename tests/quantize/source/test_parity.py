"""The check that an artifact still reads text as its checkpoint does: it passes what is equal and names what is not."""

import json
from pathlib import Path

import pytest

from medlite.errors import ArtifactError, TokenizerError
from medlite.formats.chat_template import ChatTemplate, Message
from medlite.formats.gguf import Kind, Value, read_header
from quantize.gguf.plan import plan_gguf
from quantize.gguf.recipes import RECIPES
from quantize.match import match_checkpoint
from quantize.source.checkpoint import SourceFiles, open_checkpoint
from quantize.source.parity import NO_TOKENIZER_JSON, check_metadata
from quantize.source.parity_texts import CONVERSATIONS, TEXTS
from quantize.source.templates import NO_TEMPLATE, REFUSES_ALL, pinned_date
from quantize.stream.writer import write
from tests.helpers.tiny_families import FAMILIES, make_family


def metadata_of(folder: Path, pre_tokenizer: str | None = None) -> dict[str, Value]:
    return dict(plan_gguf(match_checkpoint(open_checkpoint(folder), pre_tokenizer), RECIPES["Q8_0"]).metadata)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_text_as_its_checkpoint_does(family: str, tmp_path: Path) -> None:
    folder = make_family(family, tmp_path / family)
    report = check_metadata(metadata_of(folder), SourceFiles(folder))
    assert report.mismatches == ()
    report.require()
    has_json, has_template = family != "llama2_model_only", "llama2" not in family
    assert (report.n_tokens > 4000) == has_json
    assert (report.n_prompt_tokens > 100) == has_template
    assert (NO_TOKENIZER_JSON in report.not_checked, NO_TEMPLATE in report.not_checked) == (
        not has_json,
        not has_template,
    )


def test_a_written_artifact_is_checked_as_its_plan_is(tmp_path: Path) -> None:
    folder = make_family("llama3", tmp_path / "llama3")
    plan = plan_gguf(match_checkpoint(open_checkpoint(folder)), RECIPES["Q8_0"])
    write([plan.output(tmp_path / "m.gguf")])
    written = read_header(tmp_path / "m.gguf").metadata
    assert check_metadata(written, SourceFiles(folder)) == check_metadata(plan.metadata, SourceFiles(folder))


def refused(metadata: dict[str, Value], folder: Path) -> str:
    report = check_metadata(metadata, SourceFiles(folder))
    with pytest.raises(TokenizerError) as caught:
        report.require()
    assert "--allow-mismatch" in str(caught.value.hint)
    return str(caught.value)


def test_another_pre_tokenizer_is_seen_where_digits_are_cut(tmp_path: Path) -> None:
    folder = make_family("qwen2", tmp_path / "qwen2")
    message = refused(metadata_of(folder, "gpt-2"), folder)
    assert "the checkpoint has" in message
    assert "llama.cpp has" in message


def test_a_changed_merge_is_seen(tmp_path: Path) -> None:
    folder = make_family("llama3", tmp_path / "llama3")
    metadata = metadata_of(folder)
    key = "tokenizer.ggml.merges"
    metadata[key] = Value(Kind.STRING, metadata[key].value[3:], is_array=True)
    assert "without special tokens" in refused(metadata, folder)


def test_the_converters_equal_scores_would_be_seen(tmp_path: Path) -> None:
    """llama.cpp's converter scores every piece of a tokenizer.json alike; our scores are the ranks of merges."""
    folder = make_family("llama2_json_only", tmp_path / "llama2")
    metadata = metadata_of(folder)
    key = "tokenizer.ggml.scores"
    metadata[key] = Value(Kind.FLOAT32, [-1000.0] * len(metadata[key].value), is_array=True)
    assert "without special tokens" in refused(metadata, folder)


def test_a_bos_that_is_not_added_is_seen(tmp_path: Path) -> None:
    folder = make_family("llama3", tmp_path / "llama3")
    metadata = metadata_of(folder) | {"tokenizer.ggml.add_bos_token": Value(Kind.BOOL, False)}
    message = refused(metadata, folder)
    assert "(with special tokens)" in message
    assert "'<|begin_of_text|>'" in message


def test_phi3_under_another_name_loses_its_stripping_tokens(tmp_path: Path) -> None:
    """llama.cpp strips space after Phi-3's tokens only if general.name says Phi-3 (llama-vocab.cpp)."""
    folder = make_family("phi3", tmp_path / "phi3")
    metadata = metadata_of(folder) | {"general.name": Value(Kind.STRING, "MedicalMini")}
    assert "<|user|>" in refused(metadata, folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.chat_template": Value(Kind.STRING, "{{ messages[0].content }}")}, "the chat prompt of"),
        ({"tokenizer.ggml.bos_token_id": Value(Kind.UINT32, 9)}, "the chat prompt of"),
        ({"tokenizer.chat_template": None}, "only one of checkpoint and artifact has a chat template"),
    ],
)
def test_another_chat_prompt_is_seen(change: dict[str, Value | None], message: str, tmp_path: Path) -> None:
    folder = make_family("llama3", tmp_path / "llama3")
    metadata = {key: value for key, value in (metadata_of(folder) | change).items() if value is not None}
    assert message in refused(metadata, folder)


def test_a_template_that_refuses_every_conversation_is_not_called_checked(tmp_path: Path) -> None:
    folder = make_family("qwen3", tmp_path / "qwen3")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ raise_exception('no') }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    report = check_metadata(metadata_of(folder), SourceFiles(folder))
    assert report.not_checked == (REFUSES_ALL,)
    assert report.mismatches == ()


def test_chat_template_jinja_wins_over_tokenizer_config(tmp_path: Path) -> None:
    """Transformers takes the file, llama.cpp's converter the config: where they differ, it is a mismatch."""
    folder = make_family("llama3", tmp_path / "llama3")
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert "the chat prompt of" in refused(metadata_of(folder), folder)


def test_a_template_without_a_system_role_is_compared_on_the_rest() -> None:
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages | length }}"
    )
    compiled = ChatTemplate(template, {})
    shown = [compiled.try_render([Message(*row) for row in talk]) for talk in CONVERSATIONS]
    assert shown == ["1", "3", None]


MARKS_REPLIES = (
    "{% set ns = namespace(n=0) %}{% for message in messages %}{% set ns.n = ns.n + 1 %}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message.role | tojson(indent=None) }}{{ message.content }}{% endif %}{% endfor %}{{ ns.n }}"
)


def test_what_chat_renders_the_check_renders(tmp_path: Path) -> None:
    """Once the check had a sandbox of its own, which refused {% generation %}, a tag that chat takes."""
    folder = make_family("llama3", tmp_path / "llama3")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = MARKS_REPLIES
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    report = check_metadata(metadata_of(folder), SourceFiles(folder))
    assert (report.mismatches, report.not_checked) == ((), ())
    assert report.n_prompt_tokens > 20
    tokens = {"eos_token": "</s>"}
    for talk in CONVERSATIONS:
        messages = [Message(*row) for row in talk]
        expected = ChatTemplate(MARKS_REPLIES, tokens).render(messages)
        assert ChatTemplate(MARKS_REPLIES, tokens, now=pinned_date).try_render(messages) == expected
        assert expected.endswith(str(len(talk)))


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages[0].update(role=1) }}",
        "{{ messages.append(1) }}",
        "{{ nothing.at.all }}",
    ],
)
def test_a_template_reaches_nothing(template: str) -> None:
    assert ChatTemplate(template, {}).try_render([Message("user", "x")]) is None


def test_a_template_that_is_none_is_an_error(tmp_path: Path) -> None:
    folder = make_family("llama3", tmp_path / "llama3")
    metadata = metadata_of(folder) | {"tokenizer.chat_template": Value(Kind.STRING, "{% if %}")}
    with pytest.raises(TokenizerError, match="cannot be compiled"):
        check_metadata(metadata, SourceFiles(folder))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_json_is_an_error(content: str, tmp_path: Path) -> None:
    folder = make_family("llama3", tmp_path / "llama3")
    metadata = metadata_of(folder)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError):
        check_metadata(metadata, SourceFiles(folder))


def test_a_vocabulary_that_llama_cpp_refuses_is_an_error(tmp_path: Path) -> None:
    folder = make_family("llama3", tmp_path / "llama3")
    metadata = metadata_of(folder) | {"tokenizer.ggml.pre": Value(Kind.STRING, "no-such-pre-tokenizer")}
    with pytest.raises(ArtifactError, match="unknown pre-tokenizer type"):
        check_metadata(metadata, SourceFiles(folder))


def test_the_texts_are_in_composed_form() -> None:
    """llama.cpp normalises nothing, so a text in another form would fail every tokenizer that does."""
    import unicodedata

    texts = [*TEXTS, *(text for talk in CONVERSATIONS for _, text in talk)]
    assert all(unicodedata.is_normalized("NFC", text) for text in texts)
    assert json.dumps(texts)
