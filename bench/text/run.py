"""Score one artifact on a text file, in a process of its own. The child is `bench.text.worker`."""

from dataclasses import dataclass, field
from pathlib import Path

from bench.run.child import OnProgress, ask_child
from bench.settings import RunSettings
from bench.text.distance import TextDistance
from bench.text.perplexity import TextScore
from medlite.errors import EngineError
from medlite.formats.json import decode_json

WORKER = "bench.text.worker"


@dataclass(frozen=True)
class TextRequest:
    """One artifact on one text. settings.runtime.n_context is the length of a chunk.

    keep: write the distributions to this file, settings.max_tokens of each. against: such a file of the baseline's,
    from which the distance is taken.
    """

    artifact: Path
    text: Path
    settings: RunSettings = field(default_factory=RunSettings)
    keep: Path | None = None
    against: Path | None = None


@dataclass(frozen=True)
class TextResult:
    """The score, and the distance where the request names a baseline's file."""

    score: TextScore
    distance: TextDistance | None


def run_text(request: TextRequest, on_progress: OnProgress | None = None) -> TextResult:
    """The score of one artifact on a text file, in a fresh Python process. Errors of the child are raised here."""
    result = ask_child(request, WORKER, on_progress)
    return decode_json(result, TextResult, EngineError, where="the measuring process")
