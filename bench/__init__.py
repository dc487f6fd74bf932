"""What low bits cost: accuracy, flips, memory and speed against full precision, with intervals."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.compare.compare import compare as compare_records
    from bench.reports.forms import write_report
    from bench.run.record import read_record
    from bench.run.run import run_task

__all__ = ["compare_records", "read_record", "run_task", "write_report"]

_HOMES = {
    "compare_records": ("bench.compare.compare", "compare"),
    "read_record": ("bench.run.record", "read_record"),
    "run_task": ("bench.run.run", "run_task"),
    "write_report": ("bench.reports.forms", "write_report"),
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: every `import bench.x` runs this file."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function = _HOMES[name]
    return getattr(import_module(module), function)
