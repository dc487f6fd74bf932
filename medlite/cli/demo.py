"""`medlite demo`: the whole of medlite on the embedded model, offline, in about a minute; seconds when run again."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medlite.cli import print_json

if TYPE_CHECKING:
    from bench.compare.runs import TaskComparison
    from bench.run.child import Progress
    from bench.run.record import RunRecord

RECIPES = ("BF16", "Q8_0", "Q4_K_M", "Q2_K")


@click.command(
    "demo",
    epilog="""\b
Examples:
  medlite demo
  medlite demo --json > demo.json
  medlite demo --fresh         measure again instead of reading what was measured before""",
)
@click.option("--fresh", is_flag=True, help="Quantize and measure again.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the table as data.")
def command(fresh: bool, device: str, as_json: bool) -> None:
    """Quantize, run and measure the embedded model, offline.

    The full-precision checkpoint becomes GGUF at BF16, Q8_0, Q4_K_M and Q2_K; each answers the embedded questions
    in a process of its own; the table shows what the low bits cost.
    """
    from bench.compare.runs import compare_runs
    from bench.reports.to_json import summary_json

    paths = make_artifacts(fresh=fresh, quiet=as_json)
    records = [measured(path, device, fresh=fresh, quiet=as_json) for path in paths]
    (found,) = compare_runs({"demo": records[0]}, [{"demo": record} for record in records[1:]])
    if as_json:
        print_json(
            {
                "n_questions": len(records[0].samples),
                "device": records[0].engine.get("device_name"),
                "artifacts": [{"path": str(path), **row} for path, row in zip(paths, summary_json(found), strict=True)],
            }
        )
        return
    show(found, paths)


def make_artifacts(*, fresh: bool, quiet: bool) -> list[Path]:
    """The demo artifacts in the cache, quantized now where they are missing or of another checkpoint."""
    from medlite.cli.quantize import write_with_progress
    from medlite.demo import checkpoint_path
    from medlite.models.registry import demo_artifact
    from quantize.gguf.plan import make_plan
    from quantize.gguf.receipt import is_current
    from quantize.gguf.recipes import RECIPES as ALL_RECIPES
    from quantize.source.checkpoint import open_checkpoint
    from quantize.stream.writer import Output, WriteSettings

    checkpoint = open_checkpoint(checkpoint_path())
    paths = [demo_artifact(recipe) for recipe in RECIPES]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    outputs = [
        Output(make_plan(checkpoint, ALL_RECIPES[recipe]), path) for recipe, path in zip(RECIPES, paths, strict=True)
    ]
    missing = [output for output in outputs if fresh or not is_current(output.plan, output.path)]
    if missing:
        write_with_progress(missing, WriteSettings(force=True), quiet=quiet)
    return paths


def measured(path: Path, device: str, *, fresh: bool, quiet: bool) -> "RunRecord":
    """The record of the artifact at `path`: the kept one if nothing it depends on changed, else a new one."""
    from bench.run.run import RunRequest, run_task
    from bench.settings import RunSettings
    from bench.tasks import demo
    from medlite.cli.display import progress_bar
    from medlite.demo import questions_path

    kept = path.with_suffix(".run.jsonl")
    if not fresh and (record := kept_record(kept, path, device)) is not None:
        return record
    n_questions = sum(1 for _ in questions_path().open(encoding="utf-8"))
    with progress_bar(f"measure {path.stem}", n_questions, quiet=quiet) as advance:
        n_seen = 0

        def on_progress(progress: "Progress") -> None:
            nonlocal n_seen
            if progress.phase == "score":
                advance(progress.done - n_seen)
                n_seen = progress.done

        settings = RunSettings(device=device, protocol=demo.TASK.protocol)
        return run_task(RunRequest(path, "demo", settings, out=kept, force=True), on_progress)


def kept_record(kept: Path, path: Path, device: str) -> "RunRecord | None":
    """The record in `kept`, None if it is of another artifact, question set, device or version of medlite."""
    from bench.ask.question import samples_sha256
    from bench.run.record import read_record
    from bench.tasks import demo
    from medlite.errors import RecordError
    from medlite.files import file_sha256
    from medlite.version import __version__

    if not kept.exists():
        return None
    try:
        record = read_record(kept)
    except RecordError:
        return None
    stands = (
        record.artifact.sha256,
        record.settings.device,
        record.settings.protocol,
        record.environment.get("medlite"),
        record.task.dataset_sha256,
    )
    wanted = (file_sha256(path), device, demo.TASK.protocol, __version__, samples_sha256(demo.read(())))
    return record if record.complete and stands == wanted else None


def show(found: "TaskComparison", paths: Sequence[Path]) -> None:
    """Print the table and the commands that a user would type next."""
    from bench.reports.to_terminal import cost_table
    from medlite.cli.display import stdout
    from medlite.cli.draw import draw_table

    stdout.print(draw_table(cost_table(found)))
    stdout.print(
        f"{len(found.baseline.samples):,} questions, one model of a few hundred facts: it shows the method and says "
        "nothing about medicine.",
        style="dim",
    )
    stdout.print("\nNext:")
    stdout.print("  medlite chat demo                  ask it: What class of drug is metformin?")
    stdout.print("  medlite bench sweep ./YOUR-MODEL   the same on a model of your own")
    stdout.print(f"\nThe files are in {paths[0].parent}", style="dim", soft_wrap=True)
