"""A report as JSON: every number of the other forms, unrounded."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np

from bench.compare.calibration import Calibration, coverage_at_risk
from bench.compare.compare import Comparison, accuracy, label, per_question_kl
from bench.compare.published import published_beside
from bench.compare.runs import TaskComparison
from bench.compare.safety import count_topics, marked_flips
from bench.intervals import holm
from bench.reports.content import Evidence, Report, evidence_of
from bench.reports.front import file_bytes, memory_bytes, on_front
from bench.reports.tables import constant_answer_share, mean_of_subjects
from bench.reports.verdicts import smallest_non_inferior
from bench.run.record import RunRecord
from bench.settings import settings_to_json

SHARES = np.linspace(0, 1, 101)  # where curves are given: every percent of the questions


def to_json(report: Report) -> str:
    """The report as an object: tasks, each with its baseline, candidates, comparisons and noise floor; then what is
    published of the same models."""
    tasks = [task_json(evidence_of(one, report.floors.get(one.task))) for one in report.tasks]
    published = [found.to_json() for found in published_beside(report.tasks)]
    value = {"schema": "medlite.report/1", "tasks": tasks, "published": published}
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def task_json(evidence: Evidence) -> dict[str, Any]:
    """One task."""
    one, base = evidence.comparison, evidence.calibrations[0]
    adjusted = holm([c.mcnemar_p for c in one.comparisons])
    samples, records = one.baseline.samples, evidence.records
    fronts = zip(records, on_front(records, file_bytes), on_front(records, memory_bytes), strict=True)
    candidates = zip(one.candidates, evidence.calibrations[1:], one.comparisons, adjusted, strict=True)
    return {
        "task": one.task,
        "smallest_non_inferior": smallest_non_inferior(one),
        "constant_answer_share": constant_answer_share(samples),
        "on_front": {label(record): {"file": by_file, "memory": by_memory} for record, by_file, by_memory in fronts},
        "baseline": facts(one.baseline, base, base),
        "noise_floor": asdict(evidence.floor) if evidence.floor else None,
        "candidates": [
            {
                **facts(record, calibration, base),
                "comparison": {**comparison.to_json(), "p_holm": p, "kl_nats_by_share": kl_curve(one, record)},
                "topics": [asdict(row) for row in count_topics(samples, comparison)],
                "turned": [asdict(marked) for marked in marked_flips(samples, comparison)],
            }
            for record, calibration, comparison, p in candidates
        ],
    }


def kl_curve(one: TaskComparison, record: RunRecord) -> list[float]:
    """The KL divergence that 0, 1, ... 100 % of the questions do not exceed; empty where it is not known."""
    values = per_question_kl(one.baseline.samples, record.samples)
    return [float(v) for v in np.quantile(values, SHARES)] if values.size else []


def facts(record: RunRecord, calibration: Calibration | None, base: Calibration | None) -> dict[str, Any]:
    """A record without its samples, with its calibration. base: of the baseline."""
    known: dict[str, Any] | None = None
    if calibration and base:
        at = np.maximum(1, np.ceil(SHARES * calibration.n).astype(int)) - 1
        known = {
            "n": calibration.n,
            "ece": asdict(calibration.ece),
            "brier": asdict(calibration.brier),
            "nll_nats": asdict(calibration.nll_nats),
            "aurc": calibration.aurc,
            "bins": [asdict(one) for one in calibration.bins],
            "risk_by_share": [float(risk) for risk in calibration.risks[at]],
            "coverage_at_baseline_error": coverage_at_risk(calibration.risks, float(base.risks[-1])),
        }
    costs = record.performance
    return {
        "artifact": asdict(record.artifact),
        "engine": record.engine,
        "task": asdict(record.task),
        "settings": settings_to_json(record.settings),
        "environment": record.environment,
        "performance": {
            **asdict(costs),
            "questions_per_second": costs.questions_per_second,
            "cpu_joules_per_question": costs.joules_per_question(costs.cpu_joules),
            "gpu_joules_per_question": costs.joules_per_question(costs.gpu_joules),
        },
        "all_rows_accuracy": record.n_correct / len(record.samples),
        "mean_of_subjects": mean_of_subjects(record.samples),
        "prompts_sha256": record.prompts_sha256,
        "calibration": known,
    }


def summary_json(one: TaskComparison) -> list[dict[str, Any]]:
    """One object an artifact, the baseline first: what a short table shows. Sizes in bytes, speeds in tokens a second.

    loss_points and what follows is None for the baseline itself. p_holm: McNemar's p, adjusted over the rows.
    """
    adjusted = holm([c.mcnemar_p for c in one.comparisons])
    return [_summary(one.baseline, None, None)] + [
        _summary(record, c, p) for record, c, p in zip(one.candidates, one.comparisons, adjusted, strict=True)
    ]


def _summary(record: RunRecord, comparison: Comparison | None, p_holm: float | None) -> dict[str, Any]:
    kl = comparison.vocabulary_kl if comparison else None
    costs = record.performance
    return {
        "name": label(record),
        "n_bytes": record.artifact.n_bytes,
        "bits_per_weight": record.artifact.bits_per_weight,
        "peak_rss_bytes": costs.peak_rss_bytes,
        "accuracy": asdict(accuracy(record)),
        "prefill_tokens_per_second": costs.prefill_tokens_per_second,
        "decode_tokens_per_second": costs.decode_tokens_per_second,
        "n_samples": len(record.samples),
        "loss_points": asdict(comparison.loss_points) if comparison else None,
        "right_to_wrong": comparison.count("right_to_wrong") if comparison else None,
        "wrong_to_right": comparison.count("wrong_to_right") if comparison else None,
        "mean_kl_nats": kl.mean.value if kl else None,
        "p_holm": p_holm,
        "verdict": comparison.verdict.kind if comparison else None,
        "peak_vram_bytes": costs.peak_vram_bytes,
    }
