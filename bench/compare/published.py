"""Published accuracies beside a local run of the same model: only those of the same questions, protocol and shots.

The table is published_scores.jsonl, one row a published value, with its source. Values of other protocols are counted
and not shown: the same weights differ by up to 20 points between evaluators, quantization costs a tenth of that.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.compare.compare import label
from bench.compare.runs import TaskComparison
from bench.intervals import Interval, wilson
from bench.run.record import RunRecord
from medlite.errors import TaskError
from medlite.formats.json import decode_json
from medlite.models.catalog import recognise

SCORES_PATH = Path(__file__).with_name("published_scores.jsonl")

# As the sources describe what they did -> our protocol. What is not here is not comparable with any of ours.
PROTOCOLS: dict[str, str] = {
    "lm-eval letter log-likelihood, no chat template": "letters",
    "Open Medical-LLM leaderboard (lm-eval letters), 9-task unweighted mean": "letters",
    "lm-eval": "letters",
    "leaderboard entry typed by hand (stderr copied from another model)": "letters",
    "leaderboard entry typed from the literature (no stderr)": "letters",
}

# Published question set -> our task, the subject within it, and how many questions it holds.
DATASETS: dict[str, tuple[str, str, int]] = {
    "medqa4": ("medqa", "", 1273),
    "medqa5": ("medqa_5", "", 1273),
    "medmcqa": ("medmcqa", "", 4183),
    "pubmedqa": ("pubmedqa", "", 500),
    "mmlu_anatomy": ("mmlu_medical", "anatomy", 135),
    "mmlu_clinical_knowledge": ("mmlu_medical", "clinical_knowledge", 265),
    "mmlu_college_biology": ("mmlu_medical", "college_biology", 144),
    "mmlu_college_medicine": ("mmlu_medical", "college_medicine", 173),
    "mmlu_medical_genetics": ("mmlu_medical", "medical_genetics", 100),
    "mmlu_professional_medicine": ("mmlu_medical", "professional_medicine", 272),
}
MEAN_OF_NINE = "avg9"  # the Open Medical-LLM leaderboard's unweighted mean
NINE = tuple(name for name in DATASETS if name != "medqa5")

# The flag of a row, in words: whether a single run could have given the value.
ATTAINABLE: dict[str, str] = {
    "yes": "yes",
    "no": "no: no share of the set's questions rounds to it",
    "n-1": "only with one question less than the set has",
    "na": "not a share of one set's questions",
}
EVIDENCES = {"R": "read in the source", "S": "second hand", "M": "from memory"}


@dataclass(frozen=True)
class Score:
    """One published value, in percent. model: the catalogue's name, empty for what it does not list.

    shots: a number, or the source's words. evidence: a key of EVIDENCES. single_run: whether the source states one
    run, not a mean. attainable: a key of ATTAINABLE.
    """

    system: str
    model: str
    dataset: str
    value: float
    precision: str
    shots: int | str
    protocol: str
    source: str
    evidence: str
    single_run: bool
    attainable: str


@dataclass(frozen=True)
class Beside:
    """A published value and what each local run scored on the same questions, in percent over all rows, as
    lm-evaluation-harness counts. None where a run did not ask them."""

    score: Score
    local: tuple[Interval | None, ...]


@dataclass(frozen=True)
class Published:
    """What is published of one model. matched_by: the name that told which model it is. names: of the local runs, in
    the order of `Beside.local`. n_other: published values on the same question sets by other protocols or shots.
    """

    model: str
    matched_by: str
    names: tuple[str, ...]
    rows: tuple[Beside, ...]
    n_other: int
    other_protocols: tuple[tuple[str, int], ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


@cache
def read_scores(path: Path = SCORES_PATH) -> tuple[Score, ...]:
    """Every published value. Raises TaskError naming the line that is malformed."""
    scores = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        score = decode_json(line, Score, TaskError, where=f"{path} line {number}")
        if score.attainable not in ATTAINABLE or score.evidence not in EVIDENCES:
            raise TaskError(
                f"{path} line {number}: attainable {score.attainable!r}, evidence {score.evidence!r}",
                hint=f"{', '.join(ATTAINABLE)}; {', '.join(EVIDENCES)}",
            )
        scores.append(score)
    return tuple(scores)


def model_of(record: RunRecord) -> tuple[str, str]:
    """The catalogue's name of the measured model, and the text that said so; empty if nothing did.

    Asked are, in this order, the checkpoint that the artifact was made from and the name in the artifact's header.
    """
    for text in (record.artifact.source, record.artifact.model_name):
        if text and (model := recognise(text)) is not None:
            return model.name, text
    return "", ""


def published_beside(tasks: Sequence[TaskComparison]) -> list[Published]:
    """What is published of each model among the runs of a report, the baseline's first; models without are left out."""
    by_label: dict[str, dict[str, RunRecord]] = {}
    for one in tasks:
        for record in one.records:
            by_label.setdefault(label(record), {})[one.task] = record
    models: dict[str, tuple[str, list[str]]] = {}
    for name, runs in by_label.items():
        model, matched_by = model_of(next(iter(runs.values())))
        if model:
            models.setdefault(model, (matched_by, []))[1].append(name)
    found = [
        _of_model(model, matched_by, {name: by_label[name] for name in names})
        for model, (matched_by, names) in models.items()
    ]
    return [one for one in found if one.rows or one.n_other]


def _of_model(model: str, matched_by: str, runs: dict[str, dict[str, RunRecord]]) -> Published:
    rows, others = [], []
    for score in read_scores():
        if score.model != model:
            continue
        local = tuple(local_accuracy(records, score) for records in runs.values())
        if any(local):
            rows.append(Beside(score, local))
        elif any(DATASETS.get(score.dataset, ("",))[0] in records for records in runs.values()):
            others.append(score)
    order = [*DATASETS, MEAN_OF_NINE]
    rows.sort(key=lambda row: order.index(row.score.dataset))
    return Published(
        model,
        matched_by,
        tuple(runs),
        tuple(rows),
        len(others),
        tuple(Counter(score.protocol for score in others).most_common()),
    )


def local_accuracy(records: dict[str, RunRecord], score: Score) -> Interval | None:
    """What a model's runs scored on the questions of `score`, in percent; None unless asked in the same way.

    A run with --limit drew from the same questions, so it stands too, with its wider interval.
    """
    if score.dataset != MEAN_OF_NINE:
        return _all_rows(records, score.dataset, score)
    parts = [_all_rows(records, name, score) for name in NINE]
    known = [part for part in parts if part is not None]
    if len(known) < len(NINE):
        return None
    # Nine independent sets: the half-lengths of the mean's interval add in squares.
    value = sum(part.value for part in known) / len(NINE)
    below = sum((part.value - part.low) ** 2 for part in known) ** 0.5 / len(NINE)
    above = sum((part.high - part.value) ** 2 for part in known) ** 0.5 / len(NINE)
    return Interval(value, value - below, value + above)


def _all_rows(records: dict[str, RunRecord], dataset: str, score: Score) -> Interval | None:
    """Right answers over rows, in percent, Wilson interval; None unless they were asked under the score's protocol."""
    task, subject, _ = DATASETS.get(dataset, ("", "", 0))
    record = records.get(task)
    n_all = sum(n for name, _, n in DATASETS.values() if name == task)
    if (
        record is None
        or record.settings.prompting.protocol != PROTOCOLS.get(score.protocol)
        or record.settings.prompting.n_shots != score.shots
        or record.task.n_all != n_all
    ):
        return None
    samples = [s for s in record.samples if not subject or s.subject == subject]
    return wilson(sum(s.correct for s in samples), len(samples)).percent if samples else None
