"""Which prompt format a model gets: its file's own template, else the catalogue's for the model, else none."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medlite.errors import ArtifactError
from medlite.formats.chat_template import ChatTemplate, special_tokens
from medlite.formats.gguf import Header
from medlite.formats.onnx_folder import OnnxFacts
from medlite.formats.receipt import source_name
from medlite.models.catalog import PROMPT_FORMATS, recognise

PLAIN = "none"  # the row of PROMPT_FORMATS that only continues text

# Metadata that names the model itself. A base model's name says nothing of how a fine-tune was trained to be asked.
NAMING_KEYS = ("general.source.huggingface.repository", "general.repo_url", "general.name", "general.basename")


@dataclass(frozen=True)
class Prompting:
    """template: None for a model that only continues text. note: what a user should know of where it comes from,
    empty for the file's own template.
    """

    template: ChatTemplate | None
    note: str = ""


def gguf_prompting(path: Path, header: Header, wanted: str = "") -> Prompting:
    """The prompting of a GGUF file. wanted: a row of PROMPT_FORMATS instead. Raises ArtifactError for another name."""
    own = header.get("tokenizer.chat_template")
    names = [source_name(path), *(header.get(key) for key in NAMING_KEYS), path.stem]
    return choose(own if isinstance(own, str) else "", special_tokens(header), names, wanted)


def onnx_prompting(folder: Path, facts: OnnxFacts, wanted: str = "") -> Prompting:
    """The prompting of an ONNX folder; as `gguf_prompting`."""
    return choose(facts.chat_template or "", facts.special_tokens, [facts.name, folder.name], wanted)


def choose(own: str, tokens: Mapping[str, str], names: list[object], wanted: str) -> Prompting:
    """The template `own` if there is one, else the format of the catalogue row that one of `names` means."""
    if wanted:
        if wanted not in PROMPT_FORMATS:
            raise ArtifactError(f"no prompt format {wanted!r}", hint=f"one of {', '.join(PROMPT_FORMATS)}")
        return documented(wanted, tokens, "as asked for")
    if own.strip():
        return Prompting(ChatTemplate(own, tokens))
    known = next((row for name in names if isinstance(name, str) and (row := recognise(name))), None)
    if known is None:
        return Prompting(
            None,
            "This model has no chat template: it continues your text, and does not answer as an "
            "assistant. --prompt-format NAME gives it one.",
        )
    if known.prompt == PLAIN:
        return Prompting(
            None,
            f"{known.name} is a base model without a prompt format: it continues your text, and "
            "does not answer as an assistant.",
        )
    return documented(known.prompt, tokens, f"as documented for {known.name}")


def documented(name: str, tokens: Mapping[str, str], why: str) -> Prompting:
    """A row of PROMPT_FORMATS as a template, and a note that says so."""
    if name == PLAIN:
        return Prompting(None, f"Without a template, {why}: the model continues your text.")
    row = PROMPT_FORMATS[name]
    return Prompting(ChatTemplate(row.jinja(), tokens, stop=row.stop), f"Prompts follow the format {name}, {why}.")
