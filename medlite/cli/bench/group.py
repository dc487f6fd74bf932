"""`medlite bench`: measure engines on medical questions and say what low bits cost."""

from dataclasses import asdict

import click

from medlite.cli import print_json
from medlite.cli.bench import compare as bench_compare
from medlite.cli.bench import harness as bench_harness
from medlite.cli.bench import run as bench_run
from medlite.cli.bench import sweep
from medlite.cli.bench import text as bench_text
from medlite.cli.params import json_option


@click.group(
    "bench",
    epilog="""\b
Examples:
  medlite bench tasks
  medlite bench run model-Q4_K_M.gguf --task medqa -o q4.jsonl
  medlite bench compare bf16.jsonl q4.jsonl --margin 1.0
  medlite bench sweep ./Llama-3.2-1B-Instruct --task medqa --report report.html

It is not a medical device: a verdict here is about a question set, not about patients.""",
)
def command() -> None:
    """Measure what low bits cost on medical questions."""


@command.command(
    "tasks",
    epilog="""\b
Examples:
  medlite bench tasks
  medlite bench tasks --json""",
)
@json_option("Print the table as data.")
def tasks_command(as_json: bool) -> None:
    """List the question sets: size, licence, source, and whether they are on this machine."""
    from bench.reports.to_terminal import task_table
    from bench.tasks import GROUPS, TASKS
    from bench.tasks.fetch import is_local, known_sha256
    from medlite.cli.display import stdout
    from medlite.cli.draw import draw_table

    local = {name: is_local(task) for name, task in TASKS.items()}
    if as_json:
        print_json(
            [
                {
                    "name": t.name,
                    "title": t.title,
                    "n_samples": t.n_samples,
                    "licence": t.licence,
                    "source": t.source,
                    "revision": " ".join(dict.fromkeys(f.revision for f in t.files)),
                    "harness_task": t.harness_task,
                    "local": local[t.name],
                    "note": t.note,
                    "files": [
                        {
                            **asdict(f),
                            "sha256": known_sha256(f),
                            "sha256_from": "task table" if f.sha256 else "first fetch",
                        }
                        for f in (*t.files, *t.shots_files)
                    ],
                }
                for t in TASKS.values()
            ]
        )
        return
    stdout.print(draw_table(task_table(list(TASKS.values()), local)))
    stdout.print(
        "Files are pinned by commit, and checked against the SHA-256 that each had when it was first fetched "
        "here (--json shows them).",
        style="dim",
    )
    for name, members in GROUPS.items():
        stdout.print(f"{name}: {', '.join(members)}", style="dim")


command.add_command(bench_run.command, "run")
command.add_command(bench_compare.command, "compare")
command.add_command(sweep.command, "sweep")
command.add_command(bench_text.command, "text")
command.add_command(bench_harness.command, "harness")
