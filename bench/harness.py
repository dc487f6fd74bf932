"""lm-evaluation-harness on medlite's engines: `medlite bench harness MODEL --tasks ...`, or

    python -m bench.harness --model medlite --model_args artifact=model-Q4_K_M.gguf --tasks headqa_en

Both register the model `medlite` and hand over to the harness's own command line, so that each of its tasks runs on the
engines that users run. Needs the extra [harness]. A sequence that does not fit is cut from the left, as the harness
does with its own models; medlite's tasks count it as wrong instead.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.score.scoring import log_softmax
from bench.settings import CONTEXT_TOKENS
from medlite.engines import open_engine
from medlite.engines.engine import GenerationSettings, LogitsEngine, LogitsRequest, OpenSettings
from medlite.errors import MissingExtraError

MAX_REPLY_TOKENS = 256  # as HFLM.max_gen_toks
N_GROUP = 256  # requests that the engine gets in one call
Pair = tuple[Sequence[int], Sequence[int]]


def score_pairs(engine: LogitsEngine, pairs: Sequence[Pair]) -> Iterator[tuple[float, bool]]:
    """Log-probability in nats of each continuation after its context, and whether it is the greedy one.

    pairs: (context tokens, continuation tokens), both of at least one token.
    """
    for start in range(0, len(pairs), N_GROUP):
        group = [cut(pair, engine.info.n_context) for pair in pairs[start : start + N_GROUP]]
        requests = []
        for context, continuation in group:
            tokens = (*context, *continuation[:-1])
            requests.append(LogitsRequest(tokens, tuple(range(len(context) - 1, len(tokens)))))
        for (_, continuation), logits in zip(group, engine.logits(requests), strict=True):
            rows = log_softmax(logits)
            total = sum(float(rows[i, token]) for i, token in enumerate(continuation))
            yield total, all(int(rows[i].argmax()) == token for i, token in enumerate(continuation))


def cut(pair: Pair, n_context: int) -> Pair:
    """The pair without the first tokens that do not fit. Source: lm_eval HFLM._loglikelihood_tokens."""
    context, continuation = pair
    excess = len(context) + len(continuation) - 1 - n_context
    return (context[min(max(excess, 0), len(context) - 1) :], continuation)


def generate_text(engine: LogitsEngine, context: str, settings: dict[str, Any]) -> str:
    """The reply to `context` under the harness's generation settings."""
    until = settings.get("until") or []
    n_tokens = int(settings.get("max_gen_toks", MAX_REPLY_TOKENS))
    tokens = engine.tokenize(context)[-max(1, engine.info.n_context - n_tokens) :]
    chosen = GenerationSettings(
        max_tokens=n_tokens,
        temperature=float(settings.get("temperature", 0.0)) if settings.get("do_sample") else 0.0,
        stop=(until,) if isinstance(until, str) else tuple(until),
    )
    return "".join(step.text for step in engine.generate(tokens, chosen))


def model_class() -> type:
    """The harness's model class over our engines. Raises MissingExtraError without lm_eval."""
    try:
        from lm_eval.api.model import TemplateLM
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    except ImportError as error:
        raise MissingExtraError(error.name or "lm_eval", "harness") from error

    class MedliteLM(TemplateLM):  # type: ignore[misc, unused-ignore]
        """The arguments are those of --model_args: artifact, engine, n_context, n_threads; and of --device."""

        def __init__(
            self,
            artifact: str,
            engine: str = "",
            device: str = "auto",
            n_context: int = CONTEXT_TOKENS,
            n_threads: int = 0,
            **_: object,
        ) -> None:
            super().__init__()
            settings = OpenSettings(device or "auto", int(n_context), int(n_threads) or None)
            self.engine = open_engine(Path(artifact), settings, engine=engine)

        @property
        def eot_token_id(self) -> int:
            return self.engine.tokenize("")[0]  # the token that begins a text stands in for what ended the last

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
            return self.engine.tokenize(string, add_bos=add_special_tokens is not False)

        def _loglikelihood_tokens(self, requests: Sequence[Any], **_: object) -> list[tuple[float, bool]]:
            return list(score_pairs(self.engine, [(context, rest) for _, context, rest in requests]))

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            del disable_tqdm
            totals = []
            for request in requests:
                windows = get_rolling_token_windows(
                    token_list=self.engine.tokenize(request.args[0], add_bos=False),
                    prefix_token=self.eot_token_id,
                    max_seq_len=self.engine.info.n_context,
                    context_len=1,
                )
                pairs = [make_disjoint_window(window) for window in windows]
                totals.append(sum(value for value, _ in score_pairs(self.engine, pairs)))
            return totals

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            del disable_tqdm
            return [generate_text(self.engine, *request.args) for request in requests]

    return MedliteLM


def run_harness(arguments: Sequence[str]) -> None:
    """Register the model `medlite` and run the harness's command line with `arguments`.

    lm_eval 0.4.13 finds models in a table of its own (lm_eval/models/__init__.py, MODEL_MAPPING) and has no entry
    points, so the registration happens in its process, before its command line reads the arguments.
    """
    cls = model_class()
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model

    register: Callable[[type], type] = register_model("medlite")
    register(cls)
    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()


if __name__ == "__main__":
    run_harness(sys.argv[1:])
