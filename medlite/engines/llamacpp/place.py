"""Where a model goes: device, context and layers on a GPU, chosen from its header before anything is loaded."""

from dataclasses import dataclass

from medlite.devices import DeviceChoice, available_memory, cpu_name, find_gpus, resolve_device
from medlite.engines.context import choose_context
from medlite.engines.engine import OpenSettings
from medlite.engines.llamacpp.memory import MemoryEstimate, ModelShape, context_needs, estimate, layers_that_fit
from medlite.errors import DeviceError
from medlite.native import gpu_build


@dataclass(frozen=True)
class Placement:
    """Where a model goes and what it takes there."""

    choice: DeviceChoice
    n_context: int
    n_gpu_layers: int
    memory: MemoryEstimate


def place(shape: ModelShape, settings: OpenSettings) -> Placement:
    """Device, context and layers for a model of `shape`, before anything is loaded."""
    device, kv_type, n_batch = settings.device, settings.kv_type, settings.n_batch
    gpus = find_gpus() if device != "cpu" else ()
    choice = resolve_device(device, gpu_build=gpu_build(), gpus=gpus)
    free_gpu_bytes = gpus[0].n_bytes_free if choice.device == "cuda" else 0
    n_context = choose_context(
        context_needs(shape, kv_type, n_batch), settings.n_context, available_memory() + free_gpu_bytes
    )
    need = estimate(shape, n_context, kv_type, n_batch)
    if choice.device == "cpu":
        return Placement(choice, n_context, 0, need)
    n_gpu_layers = layers_that_fit(shape, need, free_gpu_bytes)
    if n_gpu_layers == 0:
        if device == "cuda":
            raise DeviceError(f"{choice.device_name}: not one layer fits into its free memory", hint="--device cpu")
        choice = DeviceChoice("cpu", cpu_name(), f"not one layer fits into the free memory of {choice.device_name}")
    return Placement(choice, n_context, n_gpu_layers, need)
