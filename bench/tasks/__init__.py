"""The table of tasks. To add one: one file beside this one, one row here."""

from bench.task import Sample, Task
from bench.tasks import demo
from medlite.errors import TaskError

TASKS: dict[str, Task] = {task.name: task for task in (demo.TASK,)}

__all__ = ["TASKS", "Sample", "Task", "find_task"]


def find_task(name: str) -> Task:
    """The row called `name`. Raises TaskError listing the names there are."""
    if name not in TASKS:
        raise TaskError(f"{name}: no such task", hint=f"one of {', '.join(TASKS)}; or --data FILE")
    return TASKS[name]
