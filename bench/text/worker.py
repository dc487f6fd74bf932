"""The child's side of `bench.text.run`."""

from contextlib import ExitStack, closing

import numpy as np

from bench.run import artifacts
from bench.run.child import Progress, Reporter, answer_parent
from bench.run.worker import open_real_engine
from bench.text.distance import BaselineWriter, Differences, baseline_bytes, read_baseline, tokens_to_keep
from bench.text.perplexity import N_CONTEXT, chunks, nats_of, read_text, scored_blocks, text_score
from bench.text.run import TextRequest, TextResult
from medlite.files import check_free_space


def score_text(request: TextRequest, reporter: Reporter) -> TextResult:
    """The artifact's score, and its distance where the request names a baseline's file."""
    text, text_sha256 = read_text(request.text)
    settings = request.settings.with_context(request.settings.runtime.n_context or N_CONTEXT)
    measured = artifacts.look_at(request.artifact)
    facts = artifacts.facts_of(measured, reporter.counter("hash", measured.n_bytes))
    with closing(open_real_engine(measured.path, settings)) as engine, ExitStack() as stack:
        cut, n_vocab = chunks(engine, text, settings.runtime.n_context), engine.info.n_vocab
        writer = None
        if request.keep:
            n_kept = tokens_to_keep(cut, n_vocab, settings.max_tokens)
            check_free_space(request.keep.parent, baseline_bytes(cut, n_vocab, n_kept))
            writer = stack.enter_context(BaselineWriter(request.keep, cut, n_vocab, n_kept))
        baseline = read_baseline(request.against, cut, n_vocab) if request.against else None
        differences, nats = Differences(), []
        for n_done, (rows, targets) in enumerate(scored_blocks(engine, cut), start=1):
            nats.append(nats_of(rows, targets))
            if writer:
                writer.add(rows, nats[-1])
            if baseline:
                base_nats, base = next(baseline)
                differences.add(base, base_nats, rows, nats[-1])
            reporter(Progress("score", n_done // cut.blocks_per_chunk, len(cut.pieces)))
    score = text_score(facts, cut, text_sha256, np.concatenate(nats))
    return TextResult(score, differences.distance() if baseline else None)


if __name__ == "__main__":
    answer_parent(TextRequest, score_text)
