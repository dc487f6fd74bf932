"""Every catalogue row's prompt format: equal to what the model's authors publish, and used where it must be."""

import json
from pathlib import Path

import pytest

import medlite
from medlite.chat.conversation import Conversation
from medlite.engines.engine import GenerationSettings
from medlite.errors import ArtifactError
from medlite.formats.chat_template import ChatTemplate, Message
from medlite.formats.gguf import read_header
from medlite.models.catalog import PROMPT_FORMATS, CatalogModel, read_catalog
from medlite.models.prompt_formats import choose, gguf_prompting
from tests.helpers.chat_templates import MESSAGES, SPECIAL_TOKENS, TEMPLATES
from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.helpers.toy_engine import ToyEngine

CONVERSATION = [Message(role, content) for role, content in MESSAGES]
MODELS = list(read_catalog().values())

# Format -> the published template that it must equal. chatml-think: the same with an opened block of thoughts. The
# others are documented in words: a model card or a paper, and no template.
# fmt: off
PUBLISHED = {"llama-3": "llama-3", "llama-3.1": "llama-3.1", "phi-3": "phi-3", "mistral": "mistral", "gemma": "gemma",
             "chatml": "chatml", "chatml-think": "chatml"}
# fmt: on
IN_WORDS = {
    "human-assistant": "<s>Human: \nBe brief.\n\n What is metformin? \n\nAssistant: \nA biguanide.\n\n"
    "Human: \nDose?\n\nAssistant: \n",
    "med42-v1": "<s><|system|>: Be brief.\n<|prompter|>: What is metformin? \n<|assistant|>:A biguanide.\n"
    "<|prompter|>:Dose?\n<|assistant|>:",
}


def template_of(name: str) -> ChatTemplate:
    return ChatTemplate(PROMPT_FORMATS[name].jinja(), SPECIAL_TOKENS, stop=PROMPT_FORMATS[name].stop)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_row_is_asked_as_its_authors_document_it(model: CatalogModel) -> None:
    name = model.prompt
    if name == "none":
        assert choose("", SPECIAL_TOKENS, [model.name], "").template is None
        return
    template = template_of(name)
    if name in IN_WORDS:
        assert template.render(CONVERSATION) == IN_WORDS[name]
        return
    published = ChatTemplate(TEMPLATES[PUBLISHED[name]].source, SPECIAL_TOKENS)
    opened = "<think>\n" if name == "chatml-think" else ""
    for messages in (CONVERSATION, CONVERSATION[:2], CONVERSATION[1:], CONVERSATION[1:2]):
        if PUBLISHED[name] == "chatml" and messages[0].role != "system":
            continue  # the published one puts a system text of its own there, which is another model's name
        wanted = published.render(messages).replace("<|im_start|>assistant\n", f"<|im_start|>assistant\n{opened}")
        assert template.render(messages) == wanted
    assert template.takes_system == published.takes_system
    assert template.starts_thinking == bool(opened)


def test_every_format_is_compared_with_something() -> None:
    assert {"none", *PUBLISHED, *IN_WORDS} == set(PROMPT_FORMATS)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_file_without_a_template_gets_the_format_of_the_model_that_it_names(
    model: CatalogModel, tmp_path: Path
) -> None:
    path = write_tiny_gguf(tmp_path / "renamed.gguf", template=None, n_layer=1)
    source = model.repository or model.name
    path.with_name("renamed.gguf.receipt.json").write_text(json.dumps({"source": {"name": source}}))
    prompting = gguf_prompting(path, read_header(path))
    assert (prompting.template is None) == (model.prompt == "none")
    assert model.name in prompting.note
    if prompting.template:
        assert prompting.template.source == PROMPT_FORMATS[model.prompt].jinja()


def test_the_files_own_template_wins_and_a_stated_format_wins_over_both(tmp_path: Path) -> None:
    named = write_tiny_gguf(tmp_path / "meditron-7b-Q4_K_M.gguf")
    header = read_header(named)
    own = gguf_prompting(named, header)
    assert own.template is not None
    assert (own.template.source, own.note) == (header.get("tokenizer.chat_template"), "")
    stated = gguf_prompting(named, header, "mistral")
    assert stated.template is not None
    assert stated.template.source == PROMPT_FORMATS["mistral"].jinja()
    assert "mistral, as asked for" in stated.note
    assert gguf_prompting(named, header, "none").template is None
    with pytest.raises(ArtifactError) as unknown:
        gguf_prompting(named, header, "alpaca")
    assert "human-assistant" in str(unknown.value.hint)


def test_a_model_that_nobody_knows_continues_text_and_says_so(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "thing.gguf", template=None)
    with medlite.load(str(path), medlite.OpenSettings("cpu", n_threads=1)) as model:
        assert model.template is None
        assert "continues your text" in model.prompt_note
        assert model.ask("the patient", settings=GenerationSettings(max_tokens=2))
    with medlite.load(str(path), medlite.OpenSettings("cpu", n_threads=1), prompt_format="human-assistant") as model:
        text = model.engine.detokenize(model.chat().prompt_tokens("the patient")).decode()
        assert text.endswith("Human: \nthe patient\n\nAssistant: \n")


def test_a_text_that_a_format_names_ends_the_reply() -> None:
    engine = ToyEngine({"Assistant: \n": "A biguanide.\nHuman: \nAnd?"})
    chat = Conversation(engine, ChatTemplate(PROMPT_FORMATS["human-assistant"].jinja(), {}, stop=("\nHuman:",)))
    assert "".join(step.text for step in chat.reply("Metformin?")) == "A biguanide."
    assert chat.turns[0].finish == "stop"
    assert chat.settings.stop == ()
