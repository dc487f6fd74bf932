"""What low bits cost the model that is being talked with, from the run records that lie near its file.

Records are looked for beside the artifact, in the folders beside it (where `medlite bench sweep` writes them), and in
runs/ of medlite's cache. One counts if it names the artifact's SHA-256 and a record at full precision of the same model
answered the same questions in the same words.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlite.errors import MedliteError
from medlite.formats.receipt import stated_sha256

if TYPE_CHECKING:
    from bench.run.record import RunRecord
    from medlite.formats.artifact import Artifact

FULL_PRECISION = ("F32", "BF16", "F16")
MAX_FILES = 500  # looked at, so that a crowded folder does not delay a chat
MAX_HEADER_BYTES = 1 << 20
MINUS = "−"


@dataclass(frozen=True)
class Loss:
    """Change of accuracy against full precision in percentage points, negative where it is worse, with its interval.

    n: distinct questions. baseline: the recipe that it is against.
    """

    points: float
    low: float
    high: float
    task: str
    n: int
    baseline: str

    @property
    def short(self) -> str:
        """For the status line."""
        return f"{signed(self.points)} points on {self.task}"

    @property
    def full(self) -> str:
        """For the banner."""
        return (
            f"accuracy {signed(self.points)} points [{signed(self.low)}, {signed(self.high)}] against "
            f"{self.baseline} ({self.task}, n = {self.n:,})"
        )


def signed(points: float) -> str:
    """One decimal with its sign, and no sign for nothing."""
    text = f"{abs(points):.1f}"
    return text if text == "0.0" else f"{'+' if points > 0 else MINUS}{text}"


def find_losses(artifact: "Artifact") -> list[Loss]:
    """The measured losses of `artifact`, most questions first; none without records, or for full precision itself."""
    from bench.run.record import read_record

    if artifact.recipe in FULL_PRECISION:
        return []
    headers = {path: header for path in record_files(artifact.path) if (header := read_header_line(path)) is not None}
    own = records_of(artifact, headers)
    found = []
    for path in own:
        for baseline in baselines(headers[path], headers):
            try:
                found.append(loss_between(read_record(baseline), read_record(path)))
            except MedliteError:  # unfinished, damaged, or not comparable: it says nothing of this artifact
                continue
            break
    most: dict[str, Loss] = {}
    for loss in sorted(found, key=lambda loss: -loss.n):
        most.setdefault(loss.task, loss)
    return list(most.values())


def record_files(artifact_path: Path) -> Iterator[Path]:
    """Files that may be records of the artifact."""
    from medlite.files import cache_folder

    folder = artifact_path.parent
    places = (folder.glob("*.jsonl"), folder.glob("*/*.jsonl"), (cache_folder() / "runs").glob("**/*.jsonl"))
    yield from islice((path for place in places for path in place), MAX_FILES)


def read_header_line(path: Path) -> dict[str, Any] | None:
    """The header of a finished run record, None for any other file."""
    from bench.run.record import SCHEMA

    try:
        with path.open("rb") as handle:
            value = json.loads(handle.readline(MAX_HEADER_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    if (
        not isinstance(value, dict)
        or value.get("schema") != SCHEMA
        or not all(isinstance(value.get(key), dict) for key in ("artifact", "task", "settings"))
    ):
        return None
    return value


def records_of(artifact: "Artifact", headers: dict[Path, dict[str, Any]]) -> list[Path]:
    """The records that measured exactly this artifact. Its hash is only computed where a record has its size."""
    same_size = [path for path, header in headers.items() if header["artifact"].get("n_bytes") == artifact.n_bytes]
    if not same_size:
        return []
    digest = stated_sha256(artifact.path, artifact.n_bytes) or measured_sha256(artifact.path)
    return [path for path in same_size if headers[path]["artifact"].get("sha256") == digest]


def measured_sha256(path: Path) -> str:
    """The hash as a run record has it."""
    from bench.run.artifacts import facts_of, look_at

    return facts_of(look_at(path), lambda n: None).sha256


def baselines(own: dict[str, Any], headers: dict[Path, dict[str, Any]]) -> list[Path]:
    """Records at full precision of the same model and questions, the most exact first."""
    from medlite.models.catalog import spelling

    def key(header: dict[str, Any]) -> tuple[Any, ...]:
        settings = header["settings"]
        return (
            spelling(str(header["artifact"].get("model_name"))),
            header["artifact"].get("n_params"),
            header["task"].get("name"),
            header["task"].get("dataset_sha256"),
            header.get("prompts_sha256"),
            settings.get("protocol"),
            settings.get("n_shots"),
        )

    def rank(header: dict[str, Any]) -> int:
        recipe = header["artifact"].get("recipe")
        return (
            -1
            if header["artifact"].get("format") == "safetensors"
            else FULL_PRECISION.index(recipe)
            if (recipe in FULL_PRECISION)
            else len(FULL_PRECISION)
        )

    ranked = [(rank(header), path) for path, header in headers.items() if key(header) == key(own)]
    return [path for place, path in sorted(ranked) if place < len(FULL_PRECISION)]


def loss_between(baseline: "RunRecord", candidate: "RunRecord") -> Loss:
    """The loss as `medlite bench compare` computes it. Raises RecordError if the two cannot be compared."""
    from bench.compare.compare import check_comparable, credits_of, label, paired_loss
    from bench.intervals import N_RESAMPLES

    check_comparable(baseline, candidate)
    measure, clusters = baseline.task.measure, [sample.cluster for sample in baseline.samples]
    before, after = (credits_of(record.samples, measure) for record in (baseline, candidate))
    lost = paired_loss(before, after, clusters, seed=0, n_resamples=N_RESAMPLES, binary=measure == "accuracy")
    return Loss(
        -100 * lost.value, -100 * lost.high, -100 * lost.low, baseline.task.name, len(set(clusters)), label(baseline)
    )


def loss_line(losses: "Sequence[Loss]", artifact: "Artifact") -> str:
    """What the banner says of the cost of the artifact's recipe."""
    if losses:
        return "Measured: " + "; ".join(loss.full for loss in losses[:3])
    if artifact.recipe in FULL_PRECISION:
        return ""
    return "What its bits cost was not measured here: medlite bench sweep"
