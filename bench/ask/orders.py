"""Each question asked with its options in several orders: how much of an accuracy hangs on the letters.

The first order is the published one; the others rotate it by distinct seeded steps, so with as many orders as options
the key stands once behind every letter. Source of the idea: Zheng et al. 2024, Large Language Models Are Not Robust
Multiple Choice Selectors (arXiv 2309.03882); the rotations are ours.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bench.ask.question import Prompt, Sample
from medlite.errors import TaskError

MARK = "~"  # between a question's id and the step of its rotation


def in_orders(samples: Sequence[Sample], n_orders: int, seed: int) -> list[Sample]:
    """Each sample in n_orders orders of its options (as many as it has, if fewer), the published one first."""
    return [turned for sample in samples for turned in _orders_of(sample, n_orders, seed)]


def _orders_of(sample: Sample, n_orders: int, seed: int) -> list[Sample]:
    rng = np.random.default_rng([seed, zlib.crc32(sample.id.encode())])
    steps = 1 + rng.permutation(len(sample.options) - 1)[: n_orders - 1]
    return [sample, *(rotate(sample, int(step)) for step in steps)]


def rotate(sample: Sample, step: int) -> Sample:
    """The sample with its options moved `step` places forward, the first ones to the end; its id says so."""
    n = len(sample.options)
    return replace(
        sample,
        id=f"{sample.id}{MARK}{step}",
        options=sample.options[step:] + sample.options[:step],
        answer=(sample.answer - step) % n,
        true_options=tuple(sorted((i - step) % n for i in sample.true_options)),
    )


def check_shown(items: Sequence[tuple[Sample, Prompt]]) -> None:
    """Raise TaskError if the prompts do not show the options: their order would change nothing."""
    contexts: dict[str, set[str]] = {}
    for sample, prompt in items:
        contexts.setdefault(sample.id.partition(MARK)[0], set()).add(prompt.context)
    if items and all(len(found) == 1 for found in contexts.values()):
        raise TaskError(
            "the prompts do not show the options, so their order changes nothing",
            hint="--permute-options needs a task and protocol with lettered options",
        )
