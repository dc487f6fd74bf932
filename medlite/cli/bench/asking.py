"""The options that decide what is asked and how; run and sweep share them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medlite.cli.params import PATH, context_option, device_option, engine_option, grouped, threads_option, value_option
from medlite.errors import TaskError

if TYPE_CHECKING:
    from bench.settings import RunSettings


@dataclass(frozen=True)
class Asking:
    """What the user chose. None and empty: not chosen."""

    tasks: str
    data: Path | None
    shots_data: Path | None
    n_shots: int
    protocol: str | None
    reply_tokens: int
    limit: int
    seed: int
    n_orders: int | None
    engine: str
    dtype: str | None
    device: str
    n_context: int | None
    n_threads: int | None
    margin_points: float
    exact: bool
    no_speed: bool

    def task_names(self) -> list[str]:
        """Task names of --task; "local" where only --data was given."""
        from bench.tasks import task_names

        explicit = click.get_current_context().get_parameter_source("tasks") == click.core.ParameterSource.COMMANDLINE
        if self.data and not explicit:
            return ["local"]
        names = task_names([name.strip() for name in self.tasks.split(",") if name.strip()])
        if self.data and len(names) > 1:
            raise TaskError(f"--data is one file, --task names {len(names)} sets", hint="name one task with --data")
        return names

    def settings(self, task: str) -> "RunSettings":
        """The settings for one task: its own protocol where the user names none."""
        from bench.settings import MAX_TOKENS, Prompting, RunSettings, Runtime
        from bench.tasks import TASKS

        protocol = self.protocol or (TASKS[task].protocol if task in TASKS else "letters")
        return RunSettings(
            Prompting(protocol, self.n_shots, self.limit, self.seed, self.n_orders or 1),
            Runtime(self.engine, self.device, self.dtype or "", self.n_context or 0, self.n_threads or 0),
            max_tokens=0 if self.exact else MAX_TOKENS,
            reply_tokens=self.reply_tokens,
            margin_points=self.margin_points,
            measure_speed=not self.no_speed,
        )


OPTIONS = (
    click.option(
        "--task",
        "tasks",
        default="demo",
        show_default=True,
        metavar="NAME,...",
        help="Question sets, see `medlite bench tasks`.",
    ),
    click.option(
        "--data",
        type=PATH,
        metavar="FILE",
        help="Your own questions (.jsonl, .csv, .parquet) instead of the published file.",
    ),
    click.option(
        "--shots-data", type=PATH, metavar="FILE", help="Few-shot examples of your own instead of the published ones."
    ),
    value_option("--shots", click.IntRange(0), 0, "Solved examples before each question.", as_name="n_shots"),
    click.option(
        "--protocol",
        type=click.Choice(["letters", "cloze", "chat"]),
        help="letters: likelihood of the option's letter. cloze: of its text, per character. chat: the model's own "
        "template, a greedy reply, strictly parsed. Default: letters; cloze for demo.",
    ),
    value_option(
        "--reply-tokens", click.IntRange(1), 64, "Longest reply of the chat protocol; thinking models need many more."
    ),
    click.option("--limit", type=click.IntRange(0), default=0, help="Ask only N questions, drawn with --seed."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
    click.option(
        "--permute-options",
        "n_orders",
        type=click.IntRange(2),
        metavar="ORDERS",
        help="Ask each question with its options in ORDERS orders, rotated by seeded steps: accuracy then hangs less "
        "on the letters, and how often the answer stays is shown.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        help="Of the torch engine. Default: float32 on CPU, the checkpoint's own on CUDA.",
    ),
    device_option(),
    context_option("Context length. Default: 4096, or the model's own if that is less."),
    threads_option(),
    value_option(
        "--margin",
        click.FloatRange(0),
        1.0,
        "Loss in percentage points that you declare tolerable before the run.",
        as_name="margin_points",
    ),
    click.option("--exact", is_flag=True, help="Keep whole distributions: exact KL, records of many megabytes."),
    click.option("--no-speed", is_flag=True, help="Skip the measurement of prefill and decode speed."),
)


def asking_options(*, servers: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The shared options of a command, which gets them as one `asking`. servers: --engine may name one that asks a
    server."""
    engine = engine_option(
        "Default: by the artifact's format. torch: the checkpoint folder itself, the full-precision reference.",
        servers=servers,
    )
    return grouped("asking", Asking, *OPTIONS, engine)
