"""Talking with an artifact: templates, conversations, and a loaded model for callers in Python."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from medlite.chat.conversation import Conversation
from medlite.engines import open_engine
from medlite.engines.engine import Engine, GeneratedToken, GenerationSettings, OnLoad, OpenSettings
from medlite.formats.artifact import Artifact, describe, describe_onnx
from medlite.formats.chat_template import ChatTemplate
from medlite.formats.gguf import read_header
from medlite.formats.onnx_folder import is_onnx_folder, read_onnx_facts
from medlite.models.prompt_formats import gguf_prompting, onnx_prompting
from medlite.models.registry import DEMO_NAME, demo_artifact, resolve_model

DEFAULT_SETTINGS = GenerationSettings()


@dataclass
class LoadedModel:
    """An artifact in its engine, with its chat template if it has one. Use it in a `with`, or close it.

    prompt_note: what a user should know of the template, empty if it is the file's own.
    """

    artifact: Artifact
    engine: Engine
    template: ChatTemplate | None
    prompt_note: str = ""

    def chat(self, system: str = "", settings: GenerationSettings = DEFAULT_SETTINGS) -> Conversation:
        """A new conversation."""
        return Conversation(self.engine, self.template, system, settings)

    def stream(
        self, question: str, *, system: str = "", settings: GenerationSettings = DEFAULT_SETTINGS
    ) -> Iterator[GeneratedToken]:
        """The answer to one question, token by token. Raises ContextError if the question does not fit."""
        conversation = self.chat(system, settings)
        # A single answer needs no more room than it was given; only a conversation keeps some for later.
        return self.engine.generate(conversation.prompt_tokens(question), conversation.full_settings)

    def ask(self, question: str, *, system: str = "", settings: GenerationSettings = DEFAULT_SETTINGS) -> str:
        """The answer to one question; greedy, so the same question gets the same answer, unless settings say else."""
        return "".join(step.text for step in self.stream(question, system=system, settings=settings)).strip()

    def complete(self, text: str, settings: GenerationSettings = DEFAULT_SETTINGS) -> str:
        """How the bare model continues `text`, without a template."""
        return "".join(step.text for step in self.engine.generate(self.engine.tokenize(text), settings))

    def close(self) -> None:
        self.engine.close()

    def __enter__(self) -> "LoadedModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(
    model: str | Path,
    settings: OpenSettings | None = None,
    *,
    prompt_format: str = "",
    on_progress: OnLoad | None = None,
) -> LoadedModel:
    """The model named or stored at `model`, ready to answer.

    prompt_format: a row of `catalog.PROMPT_FORMATS` instead of the file's own template.
    """
    path = resolve_model(str(model))
    if is_onnx_folder(path):
        artifact = describe_onnx(path)
        prompting = onnx_prompting(path, read_onnx_facts(path), prompt_format)
    else:
        header = read_header(path)
        artifact, prompting = describe(path, header), gguf_prompting(path, header, prompt_format)
        del header  # a large vocabulary takes 100 MB of Python strings
    engine = open_engine(path, settings, on_progress=on_progress)
    if path.parent == demo_artifact().parent:  # the file says checkpoint, which is what its folder is called
        artifact = replace(artifact, name=DEMO_NAME)
    note = prompting.note or missing_marks(engine, prompting.template)
    return LoadedModel(artifact, engine, prompting.template, note)


def missing_marks(engine: Engine, template: ChatTemplate | None) -> str:
    """What is wrong if the vocabulary lacks control tokens that the file's own template writes, else an empty text."""
    marks = template.marks() if template else []
    missing = [mark for mark in marks if len(engine.tokenize(mark, add_bos=False, parse_special=True)) != 1]
    if not missing:
        return ""
    return (
        f"The vocabulary has no {', '.join(missing)}, which the file's chat template writes: replies will suffer. "
        "--prompt-format NAME takes another format."
    )
