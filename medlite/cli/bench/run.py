"""`medlite bench run`: ask a model the questions and keep every answer."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medlite.cli import print_json
from medlite.errors import EngineError, OutputError, TaskError

if TYPE_CHECKING:
    from bench.run.child import OnProgress, Progress
    from bench.run.record import RunRecord
    from bench.settings import RunSettings


def run_options(function: Any) -> Any:
    """The options that decide how questions are asked; run and sweep share them."""
    for option in reversed(
        (
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
                type=click.Path(path_type=Path),
                metavar="FILE",
                help="Your own questions (.jsonl, .csv, .parquet) instead of the published file.",
            ),
            click.option(
                "--shots-data",
                type=click.Path(path_type=Path),
                metavar="FILE",
                help="Few-shot examples of your own instead of the published ones.",
            ),
            click.option(
                "--shots",
                "n_shots",
                type=click.IntRange(0),
                default=0,
                show_default=True,
                help="Solved examples before each question.",
            ),
            click.option(
                "--protocol",
                type=click.Choice(["letters", "cloze", "chat"]),
                default=None,
                help="letters: likelihood of the option's letter. cloze: of its text, per character. chat: the "
                "model's own template, a greedy reply, strictly parsed. Default: letters; cloze for demo.",
            ),
            click.option(
                "--reply-tokens",
                type=click.IntRange(1),
                default=64,
                show_default=True,
                help="Longest reply of the chat protocol; thinking models need many more.",
            ),
            click.option("--limit", type=click.IntRange(0), default=0, help="Ask only N questions, drawn with --seed."),
            click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
            click.option(
                "--permute-options",
                "n_orders",
                type=click.IntRange(2),
                default=None,
                metavar="ORDERS",
                help="Ask each question with its options in ORDERS orders, rotated by seeded steps: accuracy "
                "then hangs less on the letters, and how often the answer stays is shown.",
            ),
            click.option(
                "--engine",
                default="",
                metavar="NAME",
                help="llamacpp, onnx or torch. Default: by the artifact's format. torch: the checkpoint folder "
                "itself, the full-precision reference.",
            ),
            click.option(
                "--dtype",
                type=click.Choice(["float32", "bfloat16", "float16"]),
                default=None,
                help="Of the torch engine. Default: float32 on CPU, the checkpoint's own on CUDA.",
            ),
            click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
            click.option(
                "--context",
                "n_context",
                type=click.IntRange(0),
                default=0,
                metavar="TOKENS",
                help="Context length. Default: 4096, or the model's own if that is less.",
            ),
            click.option("--threads", "n_threads", type=click.IntRange(0), default=0, help="Default: physical cores."),
            click.option(
                "--margin",
                "margin_points",
                type=click.FloatRange(0),
                default=1.0,
                show_default=True,
                help="Loss in percentage points that you declare tolerable before the run.",
            ),
            click.option(
                "--exact", is_flag=True, help="Keep whole distributions: exact KL, records of many megabytes."
            ),
            click.option("--no-speed", is_flag=True, help="Skip the measurement of prefill and decode speed."),
        )
    ):
        function = option(function)
    return function


def run_settings(options: dict[str, Any], task: str) -> "RunSettings":
    """The settings among a command's options, for one task: its own protocol where the user names none."""
    from bench.settings import RunSettings
    from bench.tasks import TASKS

    names = ("n_shots", "limit", "seed", "engine", "device", "n_context", "n_threads", "margin_points", "reply_tokens")
    settings = {name: options[name] for name in names}
    if options.get("url"):
        settings |= {
            "engine": "openai",
            "url": options["url"],
            "server_model": options["server_model"],
            "n_parallel": options["n_parallel"],
        }
    settings["dtype"] = options["dtype"] or ""
    settings["n_orders"] = options["n_orders"] or 1
    settings["protocol"] = options["protocol"] or (TASKS[task].protocol if task in TASKS else "letters")
    if options["exact"]:
        settings["max_tokens"] = 0
    return RunSettings(**settings, measure_speed=not options["no_speed"] and not options.get("url"))


@click.command(
    "run",
    epilog="""\b
Examples:
  medlite bench run demo
  medlite bench run model-Q4_K_M.gguf --task medqa,medmcqa -o runs/q4/
  medlite bench run model-Q4_K_M.gguf --task mmlu_medical --shots 5 -o q4-mmlu.jsonl
  medlite bench run model-Q4_K_M.gguf --task medqa --resume -o q4.jsonl
  medlite bench run model-Q4_K_M.gguf --data my-questions.jsonl -o mine.jsonl
  medlite bench run --engine openai --url http://localhost:8080 --task medqa -o bf16-70b.jsonl

One task makes a file, several make a folder with a file each.""",
)
@click.argument("model", required=False, default="")
@run_options
@click.option(
    "--url",
    metavar="URL",
    default="",
    help="Ask an OpenAI-compatible server that tells log-probabilities (llama-server, vLLM); the questions go there.",
)
@click.option(
    "--model", "server_model", metavar="NAME", default="", help="The model's name at the server. Default: its only one."
)
@click.option(
    "--parallel",
    "n_parallel",
    type=click.IntRange(1, 256),
    default=4,
    show_default=True,
    help="Requests to the server at once.",
)
@click.option("--offline", is_flag=True, help="Open no socket to another machine.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Where the record goes.")
@click.option("--resume", is_flag=True, help="Continue a run that was stopped.")
@click.option("--force", is_flag=True, help="Replace a finished record.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(model: str, out: Path | None, resume: bool, force: bool, as_json: bool, **options: Any) -> None:
    """Ask MODEL the questions and keep every answer in a record. MODEL: a .gguf file, or demo.

    With --engine torch, MODEL is a checkpoint folder; with --engine openai there is a --url instead. A server that
    wants a key gets the one in the environment variable MEDLITE_API_KEY.
    """
    if options["offline"]:
        os.environ["HF_HUB_OFFLINE"] = "1"
    path = model_path(model, options)
    names = wanted_tasks(options)
    records = [
        run_one(
            path,
            name,
            options,
            out=out_path(out, name, several=len(names) > 1),
            resume=resume,
            force=force,
            quiet=as_json,
        )
        for name in names
    ]
    if as_json:
        print_json([record_facts(record) for record in records])
        return
    show_records(records)


def model_path(model: str, options: dict[str, Any]) -> Path:
    """Where the model is; of one behind a server the name of its host, which is said aloud before anything is sent."""
    from medlite.engines.server.http import parse_address
    from medlite.models.registry import resolve_model

    if not options["url"]:
        if options["engine"] == "openai":
            raise EngineError("the openai engine needs a server", hint="--url http://localhost:8080")
        if not model:
            raise click.UsageError("Missing argument 'MODEL'.")
        return Path(model) if options["engine"] == "torch" else resolve_model(model)
    if options["engine"] not in ("", "openai") or model:
        raise EngineError(
            f"--url names a server, {model or options['engine']!r} names another model or engine",
            hint="--engine openai --url URL --model NAME-AT-THE-SERVER",
        )
    address = parse_address(options["url"])
    where = "this machine" if address.is_this_machine else "ANOTHER MACHINE"
    click.echo(f"the questions go to {address.text} ({where})", err=True)
    return Path(address.host)


def wanted_tasks(options: dict[str, Any]) -> list[str]:
    """Task names of --task; "local" where only --data was given."""
    from bench.tasks import task_names

    context = click.get_current_context()
    explicit = context.get_parameter_source("tasks") == click.core.ParameterSource.COMMANDLINE
    if options["data"] and not explicit:
        return ["local"]
    names = task_names([name.strip() for name in options["tasks"].split(",") if name.strip()])
    if options["data"] and len(names) > 1:
        raise TaskError(f"--data is one file, --task names {len(names)} sets", hint="name one task with --data")
    return names


def out_path(out: Path | None, task: str, *, several: bool) -> Path | None:
    """The file of one task's record: `out` itself, or a file in the folder `out`."""
    if out is None:
        return None
    if not several and not out.is_dir():
        return out
    if out.is_file():
        raise OutputError(f"{out}: is a file, several tasks need a folder", hint=f"-o {out.with_suffix('')}/")
    out.mkdir(parents=True, exist_ok=True)
    return out / f"{task}.jsonl"


def run_one(
    model: Path, task: str, options: dict[str, Any], *, out: Path | None, resume: bool, force: bool, quiet: bool
) -> "RunRecord":
    """One measurement in its own process, with a bar for each phase."""
    from bench.run.run import RunRequest, run_task

    with phase_bars(f"{model.stem} {task}", quiet=quiet) as on_progress:
        request = RunRequest(
            model,
            task,
            run_settings(options, task),
            data=options["data"],
            shots_data=options["shots_data"],
            out=out,
            resume=resume,
            force=force,
        )
        return run_task(request, on_progress)


@contextmanager
def phase_bars(title: str, *, quiet: bool) -> "Iterator[OnProgress]":
    """A line on stderr that shows the phase and how far it is; nothing when quiet."""
    from medlite.cli.display import stderr

    if quiet or not stderr.is_terminal:
        yield lambda _: None
        return
    from rich import progress as rich_progress

    texts = {"hash": "read", "load": "load", "speed": "measure speed", "score": "questions"}
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=20),
        rich_progress.TextColumn("{task.fields[count]}"),
        rich_progress.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with rich_progress.Progress(*columns, console=stderr, transient=True) as bars:
        bar = bars.add_task(title, total=None, count="")
        phase = ""

        def on_progress(progress: "Progress") -> None:
            nonlocal phase
            if progress.phase != phase:
                phase = progress.phase
                bars.reset(bar, description=f"{title}: {texts.get(phase, phase)}", total=progress.total or None)
            count = f"{progress.done:,} of {progress.total:,}" if phase == "score" else ""
            bars.update(bar, completed=progress.done, total=progress.total, count=count)

        yield on_progress


def record_facts(record: "RunRecord") -> dict[str, Any]:
    """A record as JSON without its samples."""
    from dataclasses import asdict

    from bench.compare.compare import accuracy
    from bench.compare.orders import order_report

    orders = record.settings.n_orders
    return {
        "artifact": asdict(record.artifact),
        "engine": record.engine,
        "task": asdict(record.task),
        "settings": asdict(record.settings),
        "accuracy": asdict(accuracy(record)),
        "n_correct": record.n_correct,
        "statuses": {s: record.count(s) for s in ("ok", "truncated", "failed", "unparsed")},
        "orders": asdict(order_report(record.samples, orders)) if orders > 1 else None,
        "performance": {**asdict(record.performance), "questions_per_second": record.performance.questions_per_second},
    }


def orders_line(record: "RunRecord") -> str:
    """What asking in several orders showed."""
    from bench.compare.orders import order_report

    found = order_report(record.samples, record.settings.n_orders)
    picks = ", ".join(f"{letter} {100 * share:.0f}" for letter, share in found.picks.items())
    return (
        f"{record.task.name}: {found.n:,} questions in {found.n_orders} orders; same answer in all "
        f"{100 * found.same.value:.1f} % ({100 * found.same.low:.1f}..{100 * found.same.high:.1f}), right in all "
        f"{100 * found.always_right.value:.1f} %; letters chosen, %: {picks}"
    )


def show_records(records: "Sequence[RunRecord]") -> None:
    """A table of finished runs, then what could not be answered."""
    from bench.compare.compare import status_warnings
    from bench.reports.to_terminal import record_table
    from medlite.cli.display import stderr, stdout
    from medlite.cli.draw import draw_table

    stdout.print(draw_table(record_table(records)))
    for record in records:
        if record.settings.n_orders > 1:
            stdout.print(orders_line(record), style="dim")
        for warning in status_warnings(record.task.name, record):
            stderr.print(f"[yellow]warning:[/yellow] {warning}")
