"""What a table of several artifacts shows: one row each, against the first."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.compare.compare import Comparison, accuracy, compare, label
from bench.intervals import Interval, holm
from bench.run.record import RunRecord


@dataclass(frozen=True)
class SummaryRow:
    """One artifact. Sizes in bytes (GPU memory None: not measured), speeds in tokens per second (0: not measured),
    accuracy a fraction.

    loss_points and what follows is None for the baseline itself. p_holm: McNemar's p, adjusted over the rows.
    """

    name: str
    n_bytes: int
    bits_per_weight: float
    peak_rss_bytes: int
    accuracy: Interval
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    n_samples: int
    loss_points: Interval | None = None
    right_to_wrong: int | None = None
    wrong_to_right: int | None = None
    mean_kl_nats: float | None = None
    p_holm: float | None = None
    verdict: str | None = None
    peak_vram_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The row as JSON types."""
        return asdict(self)


def summarize(
    baseline: RunRecord, candidates: Sequence[RunRecord], *, margin_points: float | None = None, seed: int = 0
) -> list[SummaryRow]:
    """The baseline's row, then one a candidate, in order. Raises RecordError if they cannot be compared."""
    comparisons = [compare(baseline, candidate, margin_points=margin_points, seed=seed) for candidate in candidates]
    return summary_rows(baseline, candidates, comparisons)


def summary_rows(
    baseline: RunRecord, candidates: Sequence[RunRecord], comparisons: Sequence[Comparison]
) -> list[SummaryRow]:
    """The same from comparisons that were made already."""
    adjusted = holm([c.mcnemar_p for c in comparisons])
    rows = [_row(baseline, None, None)]
    return rows + [_row(r, c, p) for r, c, p in zip(candidates, comparisons, adjusted, strict=True)]


def _row(record: RunRecord, comparison: Comparison | None, p_holm: float | None) -> SummaryRow:
    kl = comparison.vocabulary_kl if comparison else None
    return SummaryRow(
        name=label(record),
        n_bytes=record.artifact.n_bytes,
        bits_per_weight=record.artifact.bits_per_weight,
        peak_rss_bytes=record.performance.peak_rss_bytes,
        accuracy=accuracy(record),
        prefill_tokens_per_second=record.performance.prefill_tokens_per_second,
        decode_tokens_per_second=record.performance.decode_tokens_per_second,
        n_samples=len(record.samples),
        loss_points=comparison.loss_points if comparison else None,
        right_to_wrong=comparison.count("right_to_wrong") if comparison else None,
        wrong_to_right=comparison.count("wrong_to_right") if comparison else None,
        mean_kl_nats=kl.mean.value if kl else None,
        p_holm=p_holm,
        verdict=comparison.verdict.kind if comparison else None,
        peak_vram_bytes=record.performance.peak_vram_bytes,
    )
