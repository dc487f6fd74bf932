"""Scoring by what the model replies, under the chat protocol (`bench.ask.chat_protocol`)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from bench.ask.chat_protocol import parse_reply
from bench.ask.question import Prompt, Sample
from bench.score.scoring import TRUNCATED, UNPARSED, ScoredSample, answered, unanswered
from medlite.engines.engine import Engine, GenerationSettings


def score_chat(engine: Engine, items: Sequence[tuple[Sample, Prompt]], *, reply_tokens: int) -> Iterator[ScoredSample]:
    """One answered sample an item, in order, greedy. A prompt that leaves no room for the reply is truncated."""
    settings = GenerationSettings(max_tokens=reply_tokens, temperature=0.0)
    for sample, prompt in items:
        tokens = engine.tokenize(prompt.context, add_bos=False, parse_special=True)
        if len(tokens) + reply_tokens > engine.info.n_context:
            yield unanswered(sample, prompt, TRUNCATED, len(tokens))
            continue
        text = "".join(step.text for step in engine.generate(tokens, settings))
        prediction = parse_reply(text, len(sample.options))
        if prediction is None:
            yield unanswered(sample, prompt, UNPARSED, len(tokens), text)
            continue
        yield replace(answered(sample, prompt, len(tokens), prediction), text=text)
