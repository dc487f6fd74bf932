"""`medlite bench run`: ask a model the questions and keep every answer."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medlite.cli import print_json, warn
from medlite.cli.bench.asking import Asking, asking_options
from medlite.cli.bench.measuring import phase_bars
from medlite.cli.params import PATH, json_option, value_option
from medlite.errors import EngineError, OutputError
from medlite.files import make_folder

if TYPE_CHECKING:
    from bench.run.record import RunRecord


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
@asking_options(servers=True)
@click.option(
    "--url",
    metavar="URL",
    default="",
    help="Ask an OpenAI-compatible server that returns log-probabilities (llama-server, vLLM); the questions go there.",
)
@click.option(
    "--model", "server_model", metavar="NAME", default="", help="The model's name at the server. Default: its only one."
)
@value_option("--parallel", click.IntRange(1, 256), 4, "Requests to the server at once.", as_name="n_parallel")
@click.option("--offline", is_flag=True, help="Open no socket to another machine.")
@click.option("-o", "--out", type=PATH, help="Where the record goes; without it none is kept.")
@click.option("--resume", is_flag=True, help="Continue a run that was stopped.")
@click.option("--force", is_flag=True, help="Replace a finished record.")
@json_option()
def command(
    model: str,
    asking: Asking,
    url: str,
    server_model: str,
    n_parallel: int,
    offline: bool,
    out: Path | None,
    resume: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Ask MODEL the questions and keep every answer in a record.

    MODEL: a .gguf file, an ONNX folder, a name that `medlite models` lists, or demo, the demonstration model. With
    --engine torch it is a checkpoint folder; with --engine openai there is a --url instead. A server that wants a key
    gets the one in the environment variable MEDLITE_API_KEY.
    """
    from bench.run.run import RunRequest, run_task
    from bench.settings import Server

    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    path = model_path(model, asking.engine, url)
    server = Server(url, server_model, n_parallel if url else 1)
    names = asking.task_names()
    records = []
    for name in names:
        request = RunRequest(
            path,
            name,
            replace(asking.settings(name), server=server, measure_speed=not (asking.no_speed or url)),
            data=asking.data,
            shots_data=asking.shots_data,
            out=out_path(out, name, several=len(names) > 1),
            resume=resume,
            force=force,
        )
        with phase_bars(f"{path.stem} {name}", quiet=as_json) as on_progress:
            records.append(run_task(request, on_progress))
    if as_json:
        print_json([record_facts(record) for record in records])
        return
    show_records(records)


def model_path(model: str, engine: str, url: str) -> Path:
    """Where the model is; of one behind a server the name of its host, which is said aloud before anything is sent."""
    from medlite.engines import ENGINES, SERVER_ENGINES
    from medlite.engines.server.address import parse_address
    from medlite.models.registry import resolve_model

    if not url:
        if engine in SERVER_ENGINES:
            raise EngineError(f"the {engine} engine needs a server", hint="--url http://localhost:8080")
        if not model:
            raise click.UsageError("Missing argument 'MODEL'.")
        opens = ENGINES[engine].opens if engine else ""
        return Path(model) if opens == "checkpoint" else resolve_model(model)
    if engine not in ("", *SERVER_ENGINES) or model:
        raise EngineError(
            f"--url names a server, {model or engine!r} names another model or engine",
            hint="--engine openai --url URL --model NAME-AT-THE-SERVER",
        )
    address = parse_address(url)
    where = "this machine" if address.is_this_machine else "ANOTHER MACHINE"
    click.echo(f"the questions go to {address.text} ({where})", err=True)
    return Path(address.host)


def out_path(out: Path | None, task: str, *, several: bool) -> Path | None:
    """The file of one task's record: `out` itself, or a file in the folder `out`."""
    if out is None:
        return None
    if not several and not out.is_dir():
        return out
    if out.is_file():
        raise OutputError(f"{out}: is a file, several tasks need a folder", hint=f"-o {out.with_suffix('')}/")
    make_folder(out)
    return out / f"{task}.jsonl"


def record_facts(record: "RunRecord") -> dict[str, Any]:
    """A record as JSON without its samples."""
    from dataclasses import asdict

    from bench.compare.compare import accuracy
    from bench.compare.orders import order_report
    from bench.settings import settings_to_json

    orders = record.settings.prompting.n_orders
    return {
        "artifact": asdict(record.artifact),
        "engine": record.engine,
        "task": asdict(record.task),
        "settings": settings_to_json(record.settings),
        "accuracy": asdict(accuracy(record)),
        "n_correct": record.n_correct,
        "statuses": {s: record.count(s) for s in ("ok", "truncated", "failed", "unparsed")},
        "orders": asdict(order_report(record.samples, orders)) if orders > 1 else None,
        "performance": {**asdict(record.performance), "questions_per_second": record.performance.questions_per_second},
    }


def orders_line(record: "RunRecord") -> str:
    """What asking in several orders showed."""
    from bench.compare.orders import order_report

    found = order_report(record.samples, record.settings.prompting.n_orders)
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
    from medlite.cli.display import stdout
    from medlite.cli.draw import draw_table

    stdout.print(draw_table(record_table(records)))
    for record in records:
        if record.settings.prompting.n_orders > 1:
            stdout.print(orders_line(record), style="dim")
        for warning in status_warnings(record.task.name, record):
            warn(warning)
