"""The noise floor: what the baseline loses against itself, run again with another device, dtype, batch or thread count.

A loss that is no greater than this is no evidence of anything that quantization did.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.compare.compare import Comparison, compare
from bench.run.record import RunRecord


@dataclass(frozen=True)
class NoiseFloor:
    """The greatest of several reruns. loss_points: absolute, in percentage points; mean_kl_nats 0 if not known."""

    n_reruns: int
    loss_points: float
    n_flips: int
    mean_kl_nats: float
    differs_in: tuple[str, ...]


def noise_floor(baseline: RunRecord, reruns: Sequence[RunRecord], *, seed: int = 0) -> NoiseFloor | None:
    """The floor that `reruns` of the same weights show; None without reruns. Raises RecordError as `compare` does."""
    if not reruns:
        return None
    found = [compare(baseline, rerun, seed=seed) for rerun in reruns]
    return NoiseFloor(
        n_reruns=len(reruns),
        loss_points=max(abs(c.loss_points.value) for c in found),
        n_flips=max(len(c.flips) for c in found),
        mean_kl_nats=max(c.vocabulary_kl.mean.value if c.vocabulary_kl else 0.0 for c in found),
        differs_in=tuple(dict.fromkeys(what for rerun in reruns for what in differences(baseline, rerun))),
    )


def noise_floors(
    baseline: Mapping[str, RunRecord], reruns: Sequence[Mapping[str, RunRecord]], *, seed: int = 0
) -> dict[str, NoiseFloor]:
    """The floor of every task of which there is a rerun."""
    found = {
        name: noise_floor(record, [runs[name] for runs in reruns if name in runs], seed=seed)
        for name, record in baseline.items()
    }
    return {name: floor for name, floor in found.items() if floor}


def within_floor(comparison: Comparison, floor: NoiseFloor | None) -> bool:
    """Whether the candidate's loss is no greater than the floor."""
    return floor is not None and abs(comparison.loss_points.value) <= floor.loss_points


def differences(baseline: RunRecord, rerun: RunRecord) -> list[str]:
    """What was changed between the two runs, in words: "device cpu -> cuda"."""
    pairs = [
        (key.removeprefix("n_").replace("_", " "), baseline.engine.get(key), rerun.engine.get(key))
        for key in ("engine", "engine_version", "device", "device_name", "n_threads", "n_context")
    ]
    pairs += [
        ("artifact", baseline.artifact.recipe, rerun.artifact.recipe),
        ("number type", baseline.settings.runtime.dtype, rerun.settings.runtime.dtype),
        ("group", baseline.settings.n_group, rerun.settings.n_group),
    ]
    return [f"{name} {old} -> {new}" for name, old, new in pairs if old != new]
