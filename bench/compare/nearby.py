"""What low bits cost an artifact, from the run records that lie near its file.

Records are looked for in the artifact's folder, in the folders within it (where `medlite bench sweep` writes them), and
in runs/ of medlite's cache. One counts if it names the artifact's SHA-256 and a record at full precision of the same
model answered the same questions in the same words.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bench.compare.compare import check_comparable, credits_of, label, paired_loss
from bench.intervals import N_RESAMPLES
from bench.run.artifacts import facts_of, look_at
from bench.run.record import RunRecord, read_header, read_record
from medlite.errors import MedliteError, RecordError
from medlite.files import cache_folder
from medlite.formats.artifact import Artifact
from medlite.formats.receipt import stated_sha256
from medlite.models.catalog import spelling

FULL_PRECISION = ("F32", "BF16", "F16")
MAX_FILES = 500  # looked at, so that a crowded folder does not delay a chat


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


def find_losses(artifact: Artifact) -> list[Loss]:
    """The measured losses of `artifact`, most questions first; none without records, or for full precision itself."""
    if artifact.recipe in FULL_PRECISION:
        return []
    headers = dict(record_headers(artifact.path))
    found = []
    for path in records_of(artifact, headers):
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


def record_headers(artifact_path: Path) -> Iterator[tuple[Path, RunRecord]]:
    """The run records near the artifact, without their samples."""
    folder = artifact_path.parent
    places = (folder.glob("*.jsonl"), folder.glob("*/*.jsonl"), (cache_folder() / "runs").glob("**/*.jsonl"))
    for path in islice((path for place in places for path in place), MAX_FILES):
        try:
            yield path, read_header(path)
        except RecordError:  # questions, or what else is kept as lines of JSON
            continue


def records_of(artifact: Artifact, headers: Mapping[Path, RunRecord]) -> list[Path]:
    """The records that measured exactly this artifact. Its hash is only computed where a record has its size."""
    same_size = [path for path, header in headers.items() if header.artifact.n_bytes == artifact.n_bytes]
    if not same_size:
        return []
    digest = stated_sha256(artifact.path, artifact.n_bytes)
    digest = digest or facts_of(look_at(artifact.path), lambda n: None).sha256
    return [path for path in same_size if headers[path].artifact.sha256 == digest]


def baselines(own: RunRecord, headers: Mapping[Path, RunRecord]) -> list[Path]:
    """Records at full precision of the same model and questions, the most exact first."""

    def key(header: RunRecord) -> tuple[Any, ...]:
        return (
            spelling(header.artifact.model_name),
            header.artifact.n_params,
            header.task.name,
            header.task.dataset_sha256,
            header.prompts_sha256,
            header.settings.prompting.protocol,
            header.settings.prompting.n_shots,
        )

    def rank(header: RunRecord) -> int:
        """Place among FULL_PRECISION, before it for a checkpoint itself, behind it for all others."""
        if header.artifact.format == "safetensors":
            return -1
        recipe = header.artifact.recipe
        return FULL_PRECISION.index(recipe) if recipe in FULL_PRECISION else len(FULL_PRECISION)

    ranked = [(rank(header), path) for path, header in headers.items() if key(header) == key(own)]
    return [path for place, path in sorted(ranked) if place < len(FULL_PRECISION)]


def loss_between(baseline: RunRecord, candidate: RunRecord) -> Loss:
    """The loss as `medlite bench compare` computes it. Raises RecordError if the two cannot be compared."""
    check_comparable(baseline, candidate)
    measure, clusters = baseline.task.measure, [sample.cluster for sample in baseline.samples]
    before, after = (credits_of(record.samples, measure) for record in (baseline, candidate))
    lost = paired_loss(before, after, clusters, seed=0, n_resamples=N_RESAMPLES, binary=measure == "accuracy").percent
    return Loss(-lost.value, -lost.high, -lost.low, baseline.task.name, len(set(clusters)), label(baseline))
