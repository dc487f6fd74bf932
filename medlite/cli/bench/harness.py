"""`medlite bench harness`: lm-evaluation-harness's tasks on medlite's engines."""

from collections.abc import Sequence

import click


@click.command(
    "harness",
    context_settings={"ignore_unknown_options": True},
    epilog="""\b
Examples:
  medlite bench harness model-Q4_K_M.gguf --tasks headqa_en
  medlite bench harness model-Q4_K_M.gguf --tasks hellaswag,arc_easy --limit 100 --output_path results/
  medlite bench harness ./MODEL-onnx --model_args engine=ort,n_threads=8 --tasks lambada_openai

The same as lm_eval --model medlite --model_args artifact=MODEL ..., were lm_eval to know medlite: it has no way to
learn of models from outside, so this registers medlite and hands over. Every option of `lm_eval run` is taken.
Needs: pip install 'medlite[harness]'.""",
)
@click.argument("model")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[LM_EVAL OPTIONS]...")
def command(model: str, arguments: tuple[str, ...]) -> None:
    """Run tasks of lm-evaluation-harness on MODEL, a file or folder of medlite, or demo."""
    from bench.harness import run_harness
    from medlite.models.registry import resolve_model

    run_harness(harness_arguments(str(resolve_model(model)), arguments))


def harness_arguments(artifact: str, arguments: Sequence[str]) -> list[str]:
    """Arguments of lm_eval: the user's, with the model and its artifact put in front."""
    rest, more = list(arguments), ""
    for i, argument in enumerate(rest):
        name, equals, value = argument.partition("=")
        if name in ("--model_args", "-a"):
            more = value if equals else "".join(rest[i + 1 : i + 2])
            del rest[i : i + (1 if equals else 2)]
            break
    model_args = ",".join(filter(None, (f"artifact={artifact}", more)))
    return ["run", "--model", "medlite", "--model_args", model_args, *rest]
