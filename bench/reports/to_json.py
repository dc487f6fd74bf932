"""A report as JSON: every number of the other forms, unrounded."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bench.calibration import calibrate
from bench.intervals import holm
from bench.record import RunRecord
from bench.safety import count_topics, marked_flips

if TYPE_CHECKING:
    from bench.reports import Report


def to_json(report: "Report") -> str:
    """The report as an object: tasks, each with its baseline, candidates, comparisons and noise floor."""
    tasks = []
    for one in report.tasks:
        adjusted = holm([c.mcnemar_p for c in one.comparisons])
        samples = one.baseline.samples
        floor = report.floors.get(one.task)
        tasks.append({
            "task": one.task,
            "baseline": facts(one.baseline),
            "noise_floor": asdict(floor) if floor else None,
            "candidates": [
                {**facts(record), "comparison": {**comparison.to_json(), "p_holm": p},
                 "topics": [asdict(row) for row in count_topics(samples, comparison)],
                 "turned": [asdict(marked) for marked in marked_flips(samples, comparison)]}
                for record, comparison, p in zip(one.candidates, one.comparisons, adjusted, strict=True)
            ],
        })
    return json.dumps({"schema": "medlite.report/1", "tasks": tasks}, indent=1, ensure_ascii=False) + "\n"


def facts(record: RunRecord) -> dict[str, Any]:
    """A record without its samples, with its calibration."""
    calibration = calibrate(record.samples)
    known: dict[str, Any] | None = None
    if calibration:
        known = {"n": calibration.n, "ece": asdict(calibration.ece), "brier": asdict(calibration.brier),
                 "nll_nats": asdict(calibration.nll_nats), "aurc": calibration.aurc,
                 "bins": [asdict(one) for one in calibration.bins]}
    return {
        "artifact": asdict(record.artifact), "engine": record.engine, "task": asdict(record.task),
        "settings": asdict(record.settings), "performance": asdict(record.performance),
        "environment": record.environment, "prompts_sha256": record.prompts_sha256, "calibration": known,
    }
