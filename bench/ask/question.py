"""What a question is, what a prompt is, and what a row of the task table says.

A task is data and two pure functions: rows -> samples, sample -> prompt. Nothing inherits, nothing registers itself.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Sample:
    """One question. answer: index into `options`. true_options: all correct indices where there is more than one."""

    id: str
    question: str
    options: tuple[str, ...]
    answer: int
    context: str = ""
    subject: str = ""
    true_options: tuple[int, ...] = ()

    @property
    def cluster(self) -> str:
        """A name shared by samples that ask the same: equal question, context and set of options.

        Source for the need: 78 of the 1,089 medical MMLU questions stand in two subjects, some with options reordered.
        Letter case and spacing are set aside.
        """
        texts = [self.question, self.context, *sorted(_plain(option) for option in self.options)]
        return _sha256("\x1f".join(_plain(text) for text in texts))[:16]


@dataclass(frozen=True)
class Prompt:
    """What the model reads and the continuations whose log-probability is taken, in the order of the options.

    lengths: the characters by which `cloze` divides each log-probability; empty where sums are compared.
    """

    context: str
    continuations: tuple[str, ...]
    lengths: tuple[int, ...] = ()

    @property
    def sha256(self) -> str:
        """Hex digest of context, continuations and lengths: equal prompts, equal digests, and only then."""
        return _sha256(json.dumps([self.context, list(self.continuations), list(self.lengths)], ensure_ascii=True))


PromptBuilder = Callable[[Sample, Sequence[Sample]], Prompt]


@dataclass(frozen=True)
class HubFile:
    """One file of a dataset repository on the hub. revision: a commit, which pins the content by git's own hashes.

    sha256: None where it is not known here; `bench.tasks.fetch` then keeps that of the first fetch and checks
    the later ones.
    """

    repo: str
    path: str
    revision: str
    sha256: str | None = None


@dataclass(frozen=True)
class Task:
    """A row of the task table.

    read: (paths of `files`, or the embedded file) -> samples in the published order. build_prompt: (sample, shots) ->
    the `letters` prompt, byte-identical to lm-evaluation-harness's `harness_task` where there is one.
    measure: "accuracy", or "true_mass" (share of probability on true options, TruthfulQA MC2).
    """

    name: str
    title: str
    n_samples: int
    licence: str
    source: str
    read: Callable[[Sequence[Path]], list[Sample]]
    build_prompt: PromptBuilder
    files: tuple[HubFile, ...] = ()
    shots_files: tuple[HubFile, ...] = ()
    read_shots: Callable[[Sequence[Path]], list[Sample]] | None = None
    harness_task: str = ""
    measure: str = "accuracy"
    duplicate_options: str = "error"  # "kept": the published set has such rows, and dropping them would change n
    note: str = ""
    protocol: str = "letters"  # what `medlite bench` takes where the user names none


def samples_sha256(samples: Sequence[Sample]) -> str:
    """Digest of every field of every sample, in order: the identity of a question set."""
    digest = hashlib.sha256()
    for s in samples:
        row = [s.id, s.question, list(s.options), s.answer, s.context, s.subject, list(s.true_options)]
        digest.update(json.dumps(row, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
