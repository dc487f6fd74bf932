"""How a run is done: what the user chose, kept in every record."""

from dataclasses import dataclass

CONTEXT_TOKENS = 4096  # holds every prompt of the task table, five-shot MMLU included
MAX_TOKENS = 256  # 2 kB a question; at a vocabulary of 128 k the tail of a peaked answer is then below 1e-3


@dataclass(frozen=True)
class RunSettings:
    """How to run. limit 0 is every sample; a limit draws a seeded sample without replacement, kept in order.

    engine: empty for the one that runs the artifact's format. dtype: of the torch engine; empty for float32 on CPU
    and the checkpoint's own on CUDA. n_context 0: CONTEXT_TOKENS, or the model's own if that is less. n_threads 0: the
    engine's choice. max_tokens: kept per distribution, see `distributions.compact`; 0 is exact. n_group: questions
    that the engine gets in one call, to share their prefixes; a resumed run begins at a group, so that it gives the
    same bits. reply_tokens: longest reply of the chat protocol.
    margin_points: accuracy loss, in percentage points, that the user declared tolerable before the run.
    n_orders: in how many orders of its options each question is asked, see `bench.ask.orders`.
    url, server_model, n_parallel: of the openai engine: the server's address, the model's name there, and how many
    requests are under way at once.
    """

    protocol: str = "letters"
    n_shots: int = 0
    limit: int = 0
    seed: int = 0
    engine: str = ""
    device: str = "auto"
    dtype: str = ""
    n_context: int = 0
    n_threads: int = 0
    max_tokens: int = MAX_TOKENS
    n_group: int = 128
    reply_tokens: int = 64
    margin_points: float = 1.0
    measure_speed: bool = True
    n_orders: int = 1
    url: str = ""
    server_model: str = ""
    n_parallel: int = 1
