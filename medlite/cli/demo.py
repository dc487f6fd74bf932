"""`medlite demo`: the whole of medlite on the embedded model, offline, in about a minute; seconds when run again."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medlite.cli import print_json
from medlite.cli.bench.measuring import make_artifacts, measure_artifact
from medlite.cli.params import device_option, json_option

if TYPE_CHECKING:
    from bench.compare.runs import TaskComparison

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
@device_option()
@json_option("Print the table as data.")
def command(fresh: bool, device: str, as_json: bool) -> None:
    """Quantize, run and measure the embedded model, offline.

    The full-precision checkpoint becomes GGUF at BF16, Q8_0, Q4_K_M and Q2_K; each answers the embedded questions
    in a process of its own; the table shows what the low bits cost.
    """
    from bench.compare.runs import compare_runs
    from bench.reports.to_json import summary_json
    from bench.run.kept import questions_sha256
    from bench.run.run import RunRequest
    from bench.settings import Prompting, RunSettings, Runtime
    from bench.tasks import demo
    from medlite.demo import checkpoint_path
    from medlite.models.registry import demo_artifact

    files = {recipe: demo_artifact(recipe) for recipe in RECIPES}
    make_artifacts(checkpoint_path(), files, fresh=fresh, quiet=as_json)
    paths = list(files.values())
    settings = RunSettings(Prompting(demo.TASK.protocol), Runtime(device=device))
    requests = [RunRequest(path, "demo", settings, out=path.with_suffix(".run.jsonl")) for path in paths]
    datasets = {"demo": questions_sha256(requests[0])}
    records = [
        measure_artifact(path, [request], datasets, fresh=fresh, quiet=as_json)["demo"]
        for path, request in zip(paths, requests, strict=True)
    ]
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
