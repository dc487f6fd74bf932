"""Whether an artifact's tokenizer and chat template are still the checkpoint's, token by token.

Two independent implementations are compared: the Hugging Face tokenizers library on the source's tokenizer.json, and
llama.cpp on the artifact's metadata. Weights are not read, so a plan is checked before its conversion begins.
"""

import datetime
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medlite.errors import ArtifactError, TokenizerError
from medlite.formats.chat_template import ChatTemplate, Message, special_tokens, stated_tokens
from medlite.formats.gguf import Value, pack_header, read_header
from medlite.formats.tokenizer_json import load_tokenizer
from medlite.native import Vocabulary, open_vocabulary
from quantize.source.checkpoint import SourceFiles
from quantize.source.parity_texts import CONVERSATIONS, TEXTS
from quantize.source.special_tokens import read_chat_template_file

NO_TOKENIZER_JSON = "no tokenizer.json: llama.cpp's token ids were compared with nothing"
NO_TEMPLATE = "no chat template in the checkpoint"
REFUSES_ALL = "the chat template refuses every conversation of the check"
PINNED_DATE = datetime.datetime(2024, 7, 26)


@dataclass(frozen=True)
class ParityReport:
    """n_tokens: ids compared in plain texts. n_prompt_tokens: in rendered conversations.

    not_checked: what could not be compared, and why. mismatches: the first of each kind, with its place.
    """

    n_tokens: int
    n_prompt_tokens: int
    not_checked: tuple[str, ...]
    mismatches: tuple[str, ...]

    def require(self) -> None:
        """Raise TokenizerError with the mismatches, if there are any."""
        if self.mismatches:
            raise TokenizerError(
                "; ".join(self.mismatches),
                hint="the artifact would read text differently; --allow-mismatch writes it anyway",
            )


def check_metadata(metadata: Mapping[str, Value], files: SourceFiles) -> ParityReport:
    """`check_tokenizer` for an artifact that is only planned: its metadata, written to a file without tensors."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "vocabulary.gguf"
        path.write_bytes(pack_header(metadata, []))
        return _check(path, {key: value.value for key, value in metadata.items()}, files)


def check_tokenizer(artifact_path: Path, files: SourceFiles) -> ParityReport:
    """Compare the artifact's tokenizer and chat template with the checkpoint's `files`.

    Raises TokenizerError if the source's tokenizer.json cannot be loaded, ArtifactError if llama.cpp refuses the
    artifact's vocabulary. A difference is reported, not raised.
    """
    metadata = {key: value.value for key, value in read_header(artifact_path).metadata.items()}
    return _check(artifact_path, metadata, files)


def _check(path: Path, metadata: Mapping[str, Any], files: SourceFiles) -> ParityReport:
    """path: a GGUF file with the vocabulary. metadata: its values."""
    stated = files.path("tokenizer.json")
    source = load_tokenizer(stated, TokenizerError, "download the file again") if stated.is_file() else None
    not_checked: list[str] = []
    mismatches: list[str] = []
    n_tokens = n_prompt_tokens = 0
    with open_vocabulary(path) as vocabulary:
        if source is None:
            not_checked.append(NO_TOKENIZER_JSON)
        else:
            for adds_special in (False, True):
                n, found = _compare(source, vocabulary, TEXTS, adds_special=adds_special)
                n_tokens += n
                mismatches += found
        prompts, problem = _prompts(metadata, files)
        if prompts is None:
            (not_checked if problem in (NO_TEMPLATE, REFUSES_ALL) else mismatches).append(problem)
        elif source is not None:
            n_prompt_tokens, found = _compare(source, vocabulary, prompts, adds_special=False)
            mismatches += found
    return ParityReport(n_tokens, n_prompt_tokens, tuple(not_checked), tuple(mismatches))


def _compare(source: Any, vocabulary: Vocabulary, texts: Sequence[str], *, adds_special: bool) -> tuple[int, list[str]]:
    """How many ids were compared, and the first difference, if any."""
    n_tokens = 0
    for text in texts:
        theirs = list(source.encode(text, add_special_tokens=adds_special).ids)
        ours = vocabulary.tokenize(text, add_special=adds_special, parse_special=True)
        if theirs != ours:
            place = next(
                (i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours))
            )
            how = "with" if adds_special else "without"
            return n_tokens, [
                f"token {place} of {_excerpt(text)} ({how} special tokens): "
                f"the checkpoint has {_shown(theirs[place : place + 3], source)}, "
                f"llama.cpp has {_shown(ours[place : place + 3], source)}"
            ]
        n_tokens += len(ours)
    return n_tokens, []


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _shown(ids: Sequence[int], source: Any) -> str:
    return " ".join(f"{index} {source.id_to_token(index)!r}" for index in ids) or "no more"


# --- chat templates --------------------------------------------------------------------------------------------------


def _prompts(metadata: Mapping[str, Any], files: SourceFiles) -> tuple[list[str] | None, str]:
    """CONVERSATIONS as the artifact's template renders them, or None and why there is nothing to compare."""
    stated, tokens = source_template(files)
    ours = metadata.get("tokenizer.chat_template")
    if stated is None and ours is None:
        return None, NO_TEMPLATE
    if stated is None or not isinstance(ours, str):
        return None, "only one of checkpoint and artifact has a chat template"
    theirs_template, our_template = compile_template(stated, tokens), compile_template(ours, special_tokens(metadata))
    prompts = []
    for conversation in CONVERSATIONS:
        messages = [Message(role, content) for role, content in conversation]
        theirs, mine = theirs_template.try_render(messages), our_template.try_render(messages)
        if theirs != mine:
            return None, (
                f"the chat prompt of {_excerpt(conversation[0][1])}: "
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


def compile_template(source: str, tokens: Mapping[str, str]) -> ChatTemplate:
    """The template as chat renders it, on a fixed date. Raises TokenizerError where it does not compile."""
    try:
        return ChatTemplate(source, tokens, now=lambda: PINNED_DATE)
    except ArtifactError as error:
        raise TokenizerError(str(error)) from error
