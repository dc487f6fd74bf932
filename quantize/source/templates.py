"""The chat templates of a checkpoint, and whether an artifact's renders the same prompts."""

import datetime
from collections.abc import Mapping
from typing import Any

from medlite.errors import ArtifactError, TokenizerError
from medlite.formats.chat_template import ChatTemplate, Message, special_tokens, stated_tokens
from medlite.formats.gguf import Kind, Value
from quantize.source.checkpoint import SourceFiles
from quantize.source.parity_texts import CONVERSATIONS, excerpt

NO_TEMPLATE = "no chat template in the checkpoint"
REFUSES_ALL = "the chat template refuses every conversation of the check"


def chat_templates(files: SourceFiles) -> dict[str, Value]:
    """The tokenizer.chat_template* keys: the default template, and named ones."""
    stated = files.object_if_any("tokenizer_config.json")
    found = stated.get("chat_template", read_chat_template_file(files))
    if found is None or isinstance(found, str):
        return {} if found is None else {"tokenizer.chat_template": Value(Kind.STRING, found)}
    if not (isinstance(found, list) and all(isinstance(row, dict) for row in found)):
        raise TokenizerError(f"{files.folder}: chat_template is a {type(found).__name__}, a text or a list was needed")
    named: dict[str, str] = {}
    for row in found:
        name = "".join(c if c.isascii() and c.isalnum() else "_" for c in str(row.get("name", "")))
        if name and isinstance(row.get("template"), str):
            named[name] = row["template"]
    result = {
        f"tokenizer.chat_template.{name}": Value(Kind.STRING, text) for name, text in named.items() if name != "default"
    }
    if result:
        names = sorted(set(named) - {"default"})
        result["tokenizer.chat_templates"] = Value(Kind.STRING, names, is_array=True)
    if "default" in named:
        result["tokenizer.chat_template"] = Value(Kind.STRING, named["default"])
    return result


def read_chat_template_file(files: SourceFiles) -> Any:
    """What chat_template.jinja (with additional_chat_templates beside it) or chat_template.json holds, or None."""
    if not files.has("chat_template.jinja"):
        return files.object_if_any("chat_template.json").get("chat_template")
    default = files.text("chat_template.jinja")
    more = sorted(files.path("additional_chat_templates").glob("*.jinja"))
    if not more:
        return default
    return [
        {"name": "default", "template": default},
        *({"name": file.stem, "template": files.text(f"additional_chat_templates/{file.name}")} for file in more),
    ]


def pinned_date() -> datetime.datetime:
    """The clock of templates that print the date, so that both print the same one."""
    return datetime.datetime(2024, 7, 26)


def common_prompts(metadata: Mapping[str, Any], files: SourceFiles) -> tuple[list[str] | None, str]:
    """CONVERSATIONS as both templates render them, or None and why not. metadata: the artifact's, plain values."""
    stated, tokens = source_template(files)
    ours = metadata.get("tokenizer.chat_template")
    if stated is None and ours is None:
        return None, NO_TEMPLATE
    if stated is None or not isinstance(ours, str):
        return None, "only one of checkpoint and artifact has a chat template"
    try:
        theirs_template = ChatTemplate(stated, tokens, now=pinned_date)
        our_template = ChatTemplate(ours, special_tokens(metadata), now=pinned_date)
    except ArtifactError as error:
        raise TokenizerError(str(error)) from error
    prompts = []
    for conversation in CONVERSATIONS:
        messages = [Message(role, content) for role, content in conversation]
        theirs, mine = theirs_template.try_render(messages), our_template.try_render(messages)
        if theirs != mine:
            return None, (
                f"the chat prompt of {excerpt(conversation[0][1])}: "
                f"the checkpoint has {theirs!r}, the artifact has {mine!r}"
            )
        if theirs is not None:
            prompts.append(theirs)
    return (prompts, "") if prompts else (None, REFUSES_ALL)


def source_template(files: SourceFiles) -> tuple[str | None, dict[str, str]]:
    """The checkpoint's default chat template and its special tokens as text, as Transformers reads them.

    chat_template.jinja wins over tokenizer_config.json (transformers tokenization_utils_base.py, from_pretrained).
    """
    stated = files.object_if_any("tokenizer_config.json")
    found = read_chat_template_file(files)
    template = found if found is not None else stated.get("chat_template")
    if isinstance(template, list):
        template = next((row.get("template") for row in template if row.get("name") == "default"), None)
    return (template if isinstance(template, str) else None), stated_tokens(stated)
