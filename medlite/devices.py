"""This machine: cores, memory, GPUs, and which device a model runs on."""

import functools
import os
import platform
import re
import resource
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from medlite.errors import DeviceError
from medlite.native import requirement

DEVICES = ("auto", "cpu", "cuda")
ROOT = Path("/")  # of the file systems in which Linux describes the machine

# Source: llama-cpp-python 0.3.36 README, the CUDA versions it publishes wheels for, newest first.
CUDA_WHEELS = ((13, 2), (13, 0), (12, 5), (12, 4), (12, 3), (12, 2), (12, 1), (11, 8))
WHEEL_INDEX = "https://abetlen.github.io/llama-cpp-python/whl"


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as its driver describes it. Memory in bytes. cuda_version: the newest that the driver runs."""

    name: str
    n_bytes_total: int
    n_bytes_free: int
    driver_version: str
    cuda_version: tuple[int, int] | None = None


@dataclass(frozen=True)
class DeviceChoice:
    """Where a model will run. warning: what the user should know about the choice, empty if nothing."""

    device: str
    device_name: str
    warning: str = ""


@dataclass(frozen=True)
class ProcessMemory:
    """Memory of this process in bytes. On systems without /proc only the peak is known and the rest is 0.

    peak: most ever resident. resident: now. anonymous: its own data (KV cache, buffers, repacked weights).
    file: mapped from files (weights), which the system may drop and read again.
    """

    peak: int
    resident: int
    anonymous: int
    file: int


# --- processor -------------------------------------------------------------------------------------------------------


def cpu_name() -> str:
    """The processor's name as it calls itself."""
    return _cpu_line("model name") or platform.processor() or platform.machine()


@functools.cache
def cpu_features() -> frozenset[str]:
    """Instruction sets by /proc/cpuinfo's names (avx2, avx512f, asimddp, ...); empty where it is not there."""
    return frozenset(_cpu_line("flags|Features").split())


def _cpu_line(name: str) -> str:
    """What /proc/cpuinfo says under a name, a regular expression, of the first processor; empty where it does not."""
    try:
        found = re.search(rf"^(?:{name})\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""


def physical_cores(root: Path = ROOT, allowed: Collection[int] | None = None) -> int:
    """Physical cores that this process may use: hyper-threads counted once, affinity and container quota respected.

    allowed: the logical processors that it may run on; None asks the system. psutil knows neither which of them share
    a core nor a container's quota.
    """
    if allowed is None:
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    try:
        n_cores = len({_siblings(root, cpu) for cpu in allowed})
    except OSError:
        n_cores = min(len(allowed), psutil.cpu_count(logical=False) or len(allowed))
    return max(1, min(n_cores, container_cores(root) or n_cores))


def _siblings(root: Path, cpu: int) -> str:
    """The logical processors of one core, as Linux writes them ("0,4")."""
    return (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()


def container_cores(root: Path = ROOT) -> int | None:
    """Whole cores that a container's CPU quota allows (cgroup v2), or None without a quota."""
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None


# --- memory ----------------------------------------------------------------------------------------------------------


def total_memory() -> int:
    """Bytes of memory that the machine has; a container may be allowed less."""
    return int(psutil.virtual_memory().total)


def available_memory(root: Path = ROOT, free: int | None = None) -> int:
    """Bytes that can be allocated without swapping: the system's estimate, or what a container's limit leaves.

    free: the system's estimate; None asks it. A container's limit is not in it.
    """
    limits = (
        _container_free(root / "sys/fs/cgroup", "memory.max", "memory.current"),
        _container_free(root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    )
    free = int(psutil.virtual_memory().available) if free is None else free
    return min([free, *(limit for limit in limits if limit is not None)])


def _container_free(cgroup: Path, limit_name: str, used_name: str) -> int | None:
    """Bytes left under a cgroup's limit; its file cache counts as free, since the kernel drops it first."""
    try:
        limit, used = (cgroup / limit_name).read_text().strip(), int((cgroup / used_name).read_text())
        if limit == "max" or int(limit) >= 1 << 60:
            return None
        cache = re.search(r"^(?:total_)?inactive_file (\d+)", (cgroup / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return None
    return max(0, int(limit) - used + (int(cache[1]) if cache else 0))


def process_memory() -> ProcessMemory:
    """What this process holds and has held. Source: proc(5), /proc/pid/status; getrusage(2) elsewhere.

    psutil has neither the peak nor, at this price, what of it is the process's own.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return ProcessMemory(peak if sys.platform == "darwin" else peak * 1024, 0, 0, 0)
    found = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", status, re.MULTILINE)}
    return ProcessMemory(
        found.get("VmHWM", 0),
        found.get("VmRSS", 0),
        found.get("RssAnon", 0) + found.get("RssShmem", 0),
        found.get("RssFile", 0),
    )


# --- GPUs ------------------------------------------------------------------------------------------------------------


def load_nvml() -> Any:
    """pynvml. It loads the driver's library in nvmlInit only, so it can be imported without a GPU."""
    import pynvml

    return pynvml


def find_gpus(nvml: Any = None) -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that the driver reports now; empty without a driver. Free memory is of this moment.

    nvml: a module like pynvml; None is the real one.
    """
    nvml = nvml or load_nvml()
    try:
        nvml.nvmlInit()
        driver, cuda = nvml.nvmlSystemGetDriverVersion(), nvml.nvmlSystemGetCudaDriverVersion()
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return ()
    found = []
    for handle in handles:
        try:
            name, memory = nvml.nvmlDeviceGetName(handle), nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError:  # of a GPU that is split up, or was lost
            continue
        # nvml.h: CUDA 12.4 is 12040
        found.append(Gpu(name, int(memory.total), int(memory.free), driver, (cuda // 1000, cuda % 1000 // 10)))
    return tuple(found)


def cuda_install_command(cuda_version: tuple[int, int] | None) -> str:
    """The one command that replaces a CPU-only llama-cpp-python by one for this driver's CUDA."""
    fitting = [v for v in CUDA_WHEELS if cuda_version and v[0] == cuda_version[0] and v <= cuda_version]
    if not fitting:
        return f'CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall --no-cache-dir {requirement()}'
    major, minor = fitting[0]
    index = f"{WHEEL_INDEX}/cu{major}{minor}"
    return f"pip install --force-reinstall --no-deps {requirement()} --extra-index-url {index}"


def resolve_device(wanted: str, *, gpu_build: bool, gpus: Sequence[Gpu] | None = None) -> DeviceChoice:
    """The device for `wanted` (auto, cpu, cuda). gpu_build: whether the runtime was built with GPU support.

    Raises DeviceError if cuda is asked for and not usable. `auto` never fails; a GPU it cannot use is a warning.
    """
    if wanted not in DEVICES:
        raise DeviceError(f"unknown device {wanted!r}", hint=f"one of {', '.join(DEVICES)}")
    if wanted == "cpu":
        return DeviceChoice("cpu", cpu_name())
    gpus = find_gpus() if gpus is None else gpus
    if gpus and gpu_build:
        return DeviceChoice("cuda", gpus[0].name)
    if not gpus:
        if wanted == "cuda":
            raise DeviceError("no NVIDIA GPU found (its driver lists none)", hint="--device cpu")
        return DeviceChoice("cpu", cpu_name())
    command = cuda_install_command(gpus[0].cuda_version)
    message = f"this machine has an {gpus[0].name}, but llama-cpp-python was built for the CPU only"
    if wanted == "cuda":
        raise DeviceError(message, hint=command)
    return DeviceChoice("cpu", cpu_name(), f"{message}. To use the GPU: {command}")
