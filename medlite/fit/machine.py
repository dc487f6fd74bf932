"""The machine that a prediction is for: this one, or one whose memory is stated."""

from dataclasses import dataclass

from medlite.devices import Gpu, available_memory, find_gpus, physical_cores


@dataclass(frozen=True)
class Machine:
    """n_bytes: memory to use. stated: whether the user said so instead of the system. gpus: of this machine."""

    n_bytes: int
    stated: bool
    n_threads: int
    gpus: tuple[Gpu, ...] = ()


def find_machine(n_bytes: int | None = None, n_threads: int | None = None) -> Machine:
    """This machine; what is stated counts instead of what it has free, and instead of a thread for each core."""
    return Machine(
        available_memory() if n_bytes is None else n_bytes,
        n_bytes is not None,
        n_threads or physical_cores(),
        find_gpus(),
    )
