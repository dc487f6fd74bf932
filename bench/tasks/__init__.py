"""The table of tasks. To add one: one file beside this one, one row here."""

from collections.abc import Sequence
from pathlib import Path

from bench.ask.question import Task
from bench.tasks import demo, medmcqa, medqa, mmlu_medical, pubmedqa, truthfulqa
from bench.tasks.local import local_task
from medlite.errors import TaskError

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        demo.TASK,
        medqa.MEDQA,
        medqa.MEDQA_5,
        medmcqa.TASK,
        pubmedqa.TASK,
        mmlu_medical.TASK,
        truthfulqa.MC1,
        truthfulqa.MC2,
    )
}

# Names that stand for several tasks.
GROUPS: dict[str, tuple[str, ...]] = {
    "truthfulqa": ("truthfulqa_mc1", "truthfulqa_mc2"),
    "medical": ("medqa", "medmcqa", "pubmedqa", "mmlu_medical"),
}


def find_task(name: str, data: Path | None = None) -> Task:
    """The row called `name`; of "local" with a file of the user's own, that file as a set.

    Raises TaskError listing the names there are.
    """
    if name == "local" and data is not None:
        return local_task(data)
    if name not in TASKS:
        raise TaskError(f"{name}: no such task", hint=f"one of {', '.join(TASKS)}; or --data FILE")
    return TASKS[name]


def task_names(names: Sequence[str]) -> list[str]:
    """The names with groups replaced by their members, each once, in order. Raises TaskError for an unknown one."""
    flat = [one for name in names for one in GROUPS.get(name, (name,))]
    return [find_task(name).name for name in dict.fromkeys(flat)]
