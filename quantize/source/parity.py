"""Whether an artifact's tokenizer and chat template are still the checkpoint's, token by token.

Two independent implementations are compared: the Hugging Face tokenizers library on the source's tokenizer.json, and
llama.cpp on the artifact's metadata. Weights are not read, so a plan is checked before its conversion begins.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medlite.errors import TokenizerError
from medlite.formats.gguf import Value, pack_header
from medlite.formats.tokenizer_json import load_tokenizer
from medlite.native import Vocabulary, open_vocabulary
from quantize.source.checkpoint import SourceFiles
from quantize.source.parity_texts import TEXTS, excerpt
from quantize.source.templates import NO_TEMPLATE, REFUSES_ALL, common_prompts

NO_TOKENIZER_JSON = "no tokenizer.json: llama.cpp's token ids were compared with nothing"


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
    """Compare the tokenizer and chat template that an artifact will have with the checkpoint's `files`.

    Raises TokenizerError if the source's tokenizer.json cannot be loaded or a template does not compile, ArtifactError
    if llama.cpp refuses the artifact's vocabulary. A difference is reported, not raised.
    """
    not_checked: list[str] = []
    mismatches: list[str] = []
    n_tokens = n_prompt_tokens = 0
    prompts, problem = common_prompts({key: value.value for key, value in metadata.items()}, files)
    stated = files.path("tokenizer.json")
    source = load_tokenizer(stated, TokenizerError, "download the file again") if stated.is_file() else None
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "vocabulary.gguf"
        path.write_bytes(pack_header(metadata, []))
        with open_vocabulary(path) as vocabulary:
            if source is None:
                not_checked.append(NO_TOKENIZER_JSON)
            else:
                for adds_special in (False, True):
                    n, found = _compare(source, vocabulary, TEXTS, adds_special=adds_special)
                    n_tokens += n
                    mismatches += found
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
                f"token {place} of {excerpt(text)} ({how} special tokens): "
                f"the checkpoint has {_shown(theirs[place : place + 3], source)}, "
                f"llama.cpp has {_shown(ours[place : place + 3], source)}"
            ]
        n_tokens += len(ours)
    return n_tokens, []


def _shown(ids: Sequence[int], source: Any) -> str:
    return " ".join(f"{index} {source.id_to_token(index)!r}" for index in ids) or "no more"
