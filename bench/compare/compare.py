"""Two run records -> what the candidate lost against the baseline. A pure function of the records."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.compare.verdict import Verdict, judge
from bench.intervals import (
    N_RESAMPLES,
    Interval,
    Values,
    bootstrap_mean,
    cluster_means,
    mcnemar_exact,
    newcombe_paired,
    wilson,
)
from bench.run.record import RunRecord
from bench.score.distributions import kl_bounds
from bench.score.scoring import OK, ScoredSample
from medlite.errors import RecordError

Samples = Sequence[ScoredSample]

UNKNOWN = -1.0
NEAR_TIE_NATS = 0.5  # a flip whose baseline margin is below this was undecided already: odds of at most 1.65 to 1


@dataclass(frozen=True)
class Flip:
    """One question whose answer changed. Margins: nats between the best and the second option; UNKNOWN without them.

    kind: "right_to_wrong", "wrong_to_right" or "wrong_to_other_wrong".
    """

    id: str
    subject: str
    kind: str
    answer: int
    baseline_prediction: int
    candidate_prediction: int
    baseline_margin_nats: float
    candidate_margin_nats: float

    @property
    def near_tie(self) -> bool:
        """Whether the baseline was close to undecided."""
        return 0 <= self.baseline_margin_nats < NEAR_TIE_NATS

    @property
    def confident(self) -> bool:
        """Whether the baseline was not close to undecided; neither is true where the margin is not known."""
        return self.baseline_margin_nats >= NEAR_TIE_NATS


@dataclass(frozen=True)
class Divergence:
    """KL(baseline || candidate) in nats over n questions, lower bounds. gap: most by which any question's value may be
    too low; mean_gap: the same of the mean."""

    n: int
    mean: Interval
    p90: float
    p99: float
    greatest: float
    gap: float
    mean_gap: float


@dataclass(frozen=True)
class SubjectLoss:
    """Accuracy loss within one subject, in percentage points; descriptive, no verdict."""

    subject: str
    n: int
    baseline_accuracy: float
    loss_points: Interval


@dataclass(frozen=True)
class Comparison:
    """A candidate against its baseline on the same questions. Every field is defined in bench/README.md.

    Accuracies are fractions over n_distinct questions; losses are percentage points, positive where the candidate is
    worse. seed, n_resamples: of the bootstrap.
    """

    baseline: str
    candidate: str
    task: str
    n_samples: int
    n_distinct: int
    baseline_accuracy: Interval
    candidate_accuracy: Interval
    loss_points: Interval
    flips: tuple[Flip, ...]
    mcnemar_p: float
    verdict: Verdict
    vocabulary_kl: Divergence | None
    option_kl: Divergence | None
    top_token_agreement: Interval | None
    subjects: tuple[SubjectLoss, ...]
    warnings: tuple[str, ...]
    seed: int
    n_resamples: int

    def of_kind(self, kind: str) -> list[Flip]:
        """Flips of that kind."""
        return [flip for flip in self.flips if flip.kind == kind]

    def count(self, kind: str) -> int:
        """How many flips of that kind."""
        return len(self.of_kind(kind))

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON types."""
        counts = {kind: self.count(kind) for kind in ("right_to_wrong", "wrong_to_right", "wrong_to_other_wrong")}
        return {**asdict(self), "flip_counts": counts}


def compare(
    baseline: RunRecord,
    candidate: RunRecord,
    *,
    margin_points: float | None = None,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> Comparison:
    """What `candidate` lost. margin_points: None takes the margin that the candidate's run declared.

    Raises RecordError if the two did not answer the same questions in the same words.
    """
    check_comparable(baseline, candidate)
    old, new = baseline.samples, candidate.samples
    clusters = [s.cluster for s in old]
    measure = baseline.task.measure
    before, after = credits_of(old, measure), credits_of(new, measure)
    binary = measure == "accuracy"
    loss = paired_loss(before, after, clusters, seed=seed, n_resamples=n_resamples, binary=binary)
    per_cluster = cluster_means(before - after, clusters)
    deviation = 100 * float(per_cluster.std(ddof=1)) if per_cluster.size > 1 else 0.0
    margin = candidate.settings.margin_points if margin_points is None else margin_points
    warnings = list(status_warnings("baseline", baseline) + status_warnings("candidate", candidate))
    full, options, agreement = _distances(old, new, clusters, seed, n_resamples, warnings)
    return Comparison(
        baseline=label(baseline),
        candidate=label(candidate),
        task=baseline.task.name,
        n_samples=len(old),
        n_distinct=per_cluster.size,
        baseline_accuracy=accuracy(baseline),
        candidate_accuracy=accuracy(candidate),
        loss_points=loss.percent,
        flips=flips_between(old, new),
        mcnemar_p=mcnemar_exact(int((per_cluster > 0).sum()), int((per_cluster < 0).sum())),
        verdict=judge(loss.percent, deviation, margin, per_cluster.size),
        vocabulary_kl=full,
        option_kl=options,
        top_token_agreement=agreement,
        subjects=_by_subject(old, before, after, seed, n_resamples, binary=binary),
        warnings=tuple(warnings),
        seed=seed,
        n_resamples=n_resamples,
    )


def check_comparable(baseline: RunRecord, candidate: RunRecord) -> None:
    """Raise RecordError saying what differs, unless both records hold the same questions asked in the same way."""
    for role, record in (("baseline", baseline), ("candidate", candidate)):
        if not record.complete:
            done = f"{len(record.samples)} of {record.task.n_samples} samples"
            raise RecordError(f"{role} {label(record)}: unfinished, {done}", hint="finish it with --resume")
        if not record.samples:
            raise RecordError(f"{role} {label(record)}: holds no sample")
    pairs = {
        "task": (baseline.task.name, candidate.task.name),
        "protocol": (baseline.settings.prompting.protocol, candidate.settings.prompting.protocol),
        "shots": (baseline.settings.prompting.n_shots, candidate.settings.prompting.n_shots),
        "orders of the options": (baseline.settings.prompting.n_orders, candidate.settings.prompting.n_orders),
        "dataset revision": (baseline.task.revision, candidate.task.revision),
        "number of samples": (len(baseline.samples), len(candidate.samples)),
    }
    for what, (one, other) in pairs.items():
        if one != other:
            raise RecordError(
                f"the records cannot be compared: {what} {one!r} against {other!r}",
                hint="run both with the same task, data and settings",
            )
    for old, new in zip(baseline.samples, candidate.samples, strict=True):
        for what in ("id", "answer", "true_options", "cluster", "prompt_sha256"):
            if getattr(old, what) != getattr(new, what):
                why = _why_prompts_differ(baseline, candidate) if what == "prompt_sha256" else ""
                raise RecordError(
                    f"the records cannot be compared: {why}{what} of sample {old.id} is "
                    f"{getattr(old, what)!r} in the baseline, {getattr(new, what)!r} in the candidate",
                    hint="were both made from the same question file, template and version?",
                )
    if baseline.task.dataset_sha256 != candidate.task.dataset_sha256:
        raise RecordError("the records cannot be compared: the question sets differ (dataset_sha256)")


def _why_prompts_differ(baseline: RunRecord, candidate: RunRecord) -> str:
    """What can have changed the words of a prompt, as far as the records tell."""
    if baseline.task.dataset_sha256 != candidate.task.dataset_sha256:
        return "the question sets differ, "
    versions = [record.environment.get("medlite") for record in (baseline, candidate)]
    if versions[0] != versions[1]:
        return f"made by medlite {versions[0]} and {versions[1]}, "
    return "the chat templates differ, " if baseline.settings.prompting.protocol == "chat" else ""


def label(record: RunRecord) -> str:
    """The name of a run in tables: its own label, else the recipe of a known one, else the file's name."""
    recipe = record.artifact.recipe
    return record.label or (recipe if recipe and recipe != "unknown" else record.artifact.file_name)


def credits_of(samples: Samples, measure: str) -> Values:
    """What each sample earns, 0 to 1. "accuracy": right or wrong; "true_mass": probability on the true options.

    true_mass source: Lin et al. 2022 (TruthfulQA MC2); lm_eval tasks/truthfulqa/utils.py, process_results_mc2.
    """
    if measure == "accuracy":
        return np.array([float(s.correct) for s in samples])
    earned = np.zeros(len(samples))
    for i, sample in enumerate(samples):
        if sample.status == OK:
            mass = option_probabilities(sample)
            earned[i] = mass[list(sample.true_options or (sample.answer,))].sum()
    return earned


def accuracy(record: RunRecord) -> Interval:
    """Share of distinct questions answered rightly (Wilson), or mean true mass (bootstrap)."""
    clusters = [s.cluster for s in record.samples]
    earned = credits_of(record.samples, record.task.measure)
    if record.task.measure != "accuracy":
        return bootstrap_mean(earned, clusters)
    per_cluster = cluster_means(earned, clusters)
    return wilson(float(per_cluster.sum()), per_cluster.size)


def paired_loss(
    before: Values, after: Values, clusters: Sequence[str], *, seed: int, n_resamples: int, binary: bool
) -> Interval:
    """Mean of before - after over clusters: the hull of the cluster bootstrap's and Newcombe's paired interval.

    The hull, because the bootstrap of few flips is too short, and of none has no length. Newcombe's needs answers
    that are right or wrong, so `binary` False takes the bootstrap alone.
    """
    interval = bootstrap_mean(before - after, clusters, seed=seed, n_resamples=n_resamples)
    if not binary:
        return interval
    b, a = cluster_means(before, clusters), cluster_means(after, clusters)
    score = newcombe_paired(
        float(np.minimum(b, a).sum()),
        float(np.maximum(b - a, 0).sum()),
        float(np.maximum(a - b, 0).sum()),
        float((1 - np.maximum(b, a)).sum()),
    )
    return Interval(interval.value, min(interval.low, score.low), max(interval.high, score.high))


def flips_between(old: Samples, new: Samples) -> tuple[Flip, ...]:
    """Every sample whose prediction changed, with its kind, in the order of the samples."""
    flips: list[Flip] = []
    for before, after in zip(old, new, strict=True):
        if before.prediction == after.prediction and before.correct == after.correct:
            continue
        if before.correct and after.correct:
            continue  # two true options of one question: nothing was lost
        kind = "right_to_wrong" if before.correct else "wrong_to_right" if after.correct else "wrong_to_other_wrong"
        predictions, margins = (before.prediction, after.prediction), (option_margin(before), option_margin(after))
        flips.append(Flip(before.id, before.subject, kind, before.answer, *predictions, *margins))
    return tuple(flips)


def option_probabilities(sample: ScoredSample) -> Values:
    """The options' probabilities, scaled to sum to 1. Shape (n_options,)."""
    logp = np.asarray(sample.option_log_probabilities, dtype=np.float64)
    p = np.exp(logp - logp.max())
    return np.asarray(p / p.sum(), dtype=np.float64)


def option_margin(sample: ScoredSample) -> float:
    """Nats between the most and the second most probable option; UNKNOWN for a sample without probabilities."""
    logp = sorted(sample.option_log_probabilities, reverse=True)
    return logp[0] - logp[1] if len(logp) > 1 else UNKNOWN


def status_warnings(role: str, record: RunRecord) -> tuple[str, ...]:
    """A line for each kind of sample that could not be answered."""
    return tuple(
        f"{role} {label(record)}: {record.count(status)} of {len(record.samples)} samples {status}, counted as wrong"
        for status in ("truncated", "failed", "unparsed")
        if record.count(status)
    )


def _distances(
    old: Samples, new: Samples, clusters: Sequence[str], seed: int, n_resamples: int, warnings: list[str]
) -> tuple[Divergence | None, Divergence | None, Interval | None]:
    """KL over the vocabulary and over the options, and how often both rank the same token first."""
    scored = [(a, b, c) for a, b, c in zip(old, new, clusters, strict=True) if a.status == b.status == OK]
    with_options = [(a, b, c) for a, b, c in scored if a.option_log_probabilities and b.option_log_probabilities]
    kept = [(a.distribution, b.distribution, c) for a, b, c in scored if a.distribution and b.distribution]
    options = full = agreement = None
    if with_options:
        low = [option_kl(a, b) for a, b, _ in with_options]
        options = _divergence(low, low, [c for *_, c in with_options], seed, n_resamples)
    if kept and all(p.n_vocab == q.n_vocab for p, q, _ in kept):
        bounds = [kl_bounds(p, q) for p, q, _ in kept]
        names = [c for *_, c in kept]
        full = _divergence([b[0] for b in bounds], [b[1] for b in bounds], names, seed, n_resamples)
        same = np.array([float(p.top_token == q.top_token) for p, q, _ in kept])
        means = cluster_means(same, names)
        agreement = wilson(float(means.sum()), means.size)
    else:
        warnings.append("no KL over the vocabulary: the runs keep no distributions, or their vocabularies differ")
    return full, options, agreement


def per_question_kl(old: Samples, new: Samples) -> Values:
    """KL(baseline || candidate) in nats of each question that both scored, lower bounds, in order. Shape (n,)."""
    pairs = ((a.distribution, b.distribution) for a, b in zip(old, new, strict=True))
    return np.array([kl_bounds(p, q)[0] for p, q in pairs if p and q and p.n_vocab == q.n_vocab])


def option_kl(baseline: ScoredSample, candidate: ScoredSample) -> float:
    """KL(baseline || candidate) over the options alone, each side scaled to sum to 1, in nats."""
    p, q = option_probabilities(baseline), option_probabilities(candidate)
    held = p > 0
    tiny = np.finfo(np.float64).tiny
    return max(0.0, float(p[held] @ (np.log(p[held]) - np.log(np.maximum(q[held], tiny)))))


def _divergence(
    low: Sequence[float], high: Sequence[float], clusters: Sequence[str], seed: int, n_resamples: int
) -> Divergence:
    values = np.asarray(low, dtype=np.float64)
    gaps = np.asarray(high) - values
    p90, p99 = np.quantile(values, [0.9, 0.99])
    return Divergence(
        n=values.size,
        mean=bootstrap_mean(values, clusters, seed=seed, n_resamples=n_resamples),
        p90=float(p90),
        p99=float(p99),
        greatest=float(values.max()),
        gap=float(gaps.max()),
        mean_gap=float(cluster_means(gaps, clusters).mean()),
    )


def _by_subject(
    samples: Samples, before: Values, after: Values, seed: int, n_resamples: int, *, binary: bool
) -> tuple[SubjectLoss, ...]:
    """Loss within each subject, in order of first appearance; empty if there is only one."""
    names = list(dict.fromkeys(s.subject for s in samples))
    if len(names) < 2:
        return ()
    rows = []
    for name in names:
        at = [i for i, s in enumerate(samples) if s.subject == name]
        clusters = [samples[i].cluster for i in at]
        loss = paired_loss(before[at], after[at], clusters, seed=seed, n_resamples=n_resamples, binary=binary)
        rows.append(SubjectLoss(name, len(at), float(before[at].mean()), loss.percent))
    return tuple(rows)
