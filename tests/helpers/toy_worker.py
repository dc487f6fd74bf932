"""A measuring process whose engine is the toy one, or one that dies: what `run_task` must survive."""

import os
import signal
import sys
from pathlib import Path

from bench.ask.prompts import question_letters_answer
from bench.run.worker import main
from bench.settings import RunSettings
from medlite.engines.engine import Engine
from tests.helpers.bench_toys import make_sample
from tests.helpers.toy_engine import ToyEngine


def open_toy(path: Path, settings: RunSettings) -> Engine:
    """The toy engine that knows every even question; seeds 901 to 903 end the process instead."""
    if settings.prompting.seed == 901:
        os.kill(os.getpid(), signal.SIGKILL)
    if settings.prompting.seed == 902:
        sys.exit("loading went wrong")
    os.write(1, b"native code says hello on stdout\n")
    samples = [make_sample(i) for i in range(0, 20, 2)]
    return ToyEngine({question_letters_answer(s).context: f" {'ABCD'[s.answer]}" for s in samples})


if __name__ == "__main__":
    main(open_toy)
