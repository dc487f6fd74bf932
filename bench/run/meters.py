"""What the machine's own counters say while a model runs: GPU memory of this process, energy of processor and GPU.

Where a counter cannot be read, the value is None and a note says why; it is never 0. Energy counters are of the whole
package or GPU, so other programs count too.
"""

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from medlite.devices import load_nvml

POWERCAP = Path("/sys/class/powercap")
POLL_SECONDS = 0.5  # a package counter of 262 kJ wraps after 22 minutes at 200 W; GPU memory peaks may be short


class NotMeasured(Exception):
    """A counter that cannot be read; the text says why. It becomes a note of the record, never an error."""


class Nvml(Protocol):
    """The part of NVML that is used here, by pynvml's names; NVMLError is raised by all of them."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...
    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> Sequence[Any]: ...
    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int: ...


@dataclass(frozen=True)
class Costs:
    """What was read. Bytes and joules; None where it was not measured, as `notes` says."""

    peak_vram_bytes: int | None = None
    cpu_joules: float | None = None
    gpu_joules: float | None = None
    notes: tuple[str, ...] = ()


class PackageEnergy:
    """Joules that the processor packages, and memory where it is counted apart, used since the last `zero`.

    Source: Linux Documentation/power/powercap/powercap.rst; zones intel-rapl:N, on AMD processors too. Raises
    NotMeasured if there is none that may be read.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        zones = [
            zone for zone in sorted(root.glob("intel-rapl:*")) if _text(zone / "name").startswith(("package", "dram"))
        ]
        if not zones:
            raise NotMeasured(f"{root} holds no package counter")
        self._counters = [zone / "energy_uj" for zone in zones]
        try:
            self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
            self._last = [int(counter.read_text()) for counter in self._counters]
        except PermissionError as error:
            raise NotMeasured(f"{error.filename} may be read by root only") from error
        except (OSError, ValueError) as error:
            raise NotMeasured(f"the counters under {root} cannot be read: {error}") from error
        self._used_uj = 0

    def poll(self) -> None:
        """Add what was used since the last poll; a counter that wrapped is taken to have wrapped once."""
        for i, counter in enumerate(self._counters):
            with suppress(OSError, ValueError):
                now = int(counter.read_text())
                self._used_uj += (now - self._last[i]) % (self._ranges[i] + 1)
                self._last[i] = now

    def zero(self) -> None:
        """Begin to count."""
        self.poll()
        self._used_uj = 0

    def joules(self) -> float:
        """Joules since `zero`."""
        self.poll()
        return self._used_uj / 1e6


class GpuCounters:
    """Memory of this process on all GPUs, and the energy of those that it uses. Raises NotMeasured without a GPU.

    The driver's process list is asked first. Inside a container it shows other process ids; then the growth of the
    GPUs' used memory since this object was made stands in, and `shared` is True: other programs count too.
    """

    def __init__(self, nvml: Nvml | None = None, pid: int | None = None) -> None:
        self._nvml, self._pid = nvml or load_nvml(), pid or os.getpid()
        try:
            self._nvml.nvmlInit()
            count = self._nvml.nvmlDeviceGetCount()
            self._gpus = [self._nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
            self._used_before = [int(self._nvml.nvmlDeviceGetMemoryInfo(gpu).used) for gpu in self._gpus]
        except self._nvml.NVMLError as error:
            raise NotMeasured(f"NVML: {error}") from error
        if not self._gpus:
            raise NotMeasured("NVML lists no GPU")
        self.peak_bytes, self.shared, self._active = 0, False, set[int]()
        self._zero_mj: dict[int, int] = {}

    def poll(self) -> None:
        """Take the memory of this moment into the peak."""
        total = 0
        for i, gpu in enumerate(self._gpus):
            with suppress(self._nvml.NVMLError):
                n_bytes = self._bytes(i, gpu)
                total += n_bytes
                if n_bytes:
                    self._active.add(i)
        self.peak_bytes = max(self.peak_bytes, total)

    def _bytes(self, i: int, gpu: Any) -> int:
        for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(gpu):
            if process.pid == self._pid and process.usedGpuMemory is not None:
                return int(process.usedGpuMemory)
        grown = max(0, int(self._nvml.nvmlDeviceGetMemoryInfo(gpu).used) - self._used_before[i])
        self.shared = self.shared or grown > 0
        return grown

    def zero(self) -> None:
        """Begin to count energy."""
        for i, gpu in enumerate(self._gpus):
            with suppress(self._nvml.NVMLError):
                self._zero_mj[i] = int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(gpu))

    def joules(self) -> float:
        """Joules since `zero` of the GPUs that held memory of this process. Raises NotMeasured if one does not tell."""
        millijoules = 0
        for i in sorted(self._active):
            if i not in self._zero_mj:
                raise NotMeasured("the GPU has no energy counter (it came with Volta)")
            try:
                millijoules += int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpus[i])) - self._zero_mj[i]
            except self._nvml.NVMLError as error:
                raise NotMeasured(f"NVML: {error}") from error
        return millijoules / 1e3


class Meters:
    """All counters of this machine, polled by a thread. To be entered before the model is loaded.

    powercap, nvml: the kernel's tree and the driver's library, for tests; None is the real one.
    """

    def __init__(self, powercap: Path = POWERCAP, nvml: Nvml | None = None) -> None:
        self._notes: dict[str, str] = {}
        self._package: PackageEnergy | None = None
        self._gpus: GpuCounters | None = None
        try:
            self._package = PackageEnergy(powercap)
        except NotMeasured as why:
            self._notes["package"] = f"energy of the processor was not measured: {why}"
        try:
            self._gpus = GpuCounters(nvml)
        except NotMeasured as why:
            self._notes["gpu"] = f"GPU memory and energy were not measured: {why}"
        self._counters = [counters for counters in (self._package, self._gpus) if counters]
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._poll_until_stopped, daemon=True)

    def zero(self) -> None:
        """Begin to count energy: the questions start."""
        with self._lock:
            for counters in self._counters:
                counters.zero()

    def read(self, device: str) -> Costs:
        """What was used so far: memory since the start, energy since `zero`. device: where the model ran.

        Of a model on the CPU no GPU memory and energy is claimed.
        """
        with self._lock:
            notes = dict(self._notes)
            cpu = self._package.joules() if self._package else None
            if device == "cpu":
                return Costs(None, cpu, None, tuple(note for name, note in notes.items() if name != "gpu"))
            if self._gpus is None:
                return Costs(None, cpu, None, tuple(notes.values()))
            self._gpus.poll()
            joules = None
            try:
                joules = self._gpus.joules()
            except NotMeasured as why:
                notes["gpu"] = f"energy of the GPU was not measured: {why}"
            if self._gpus.shared:
                notes["shared"] = (
                    "GPU memory is the growth of the whole GPU's use, since its driver lists no process of this number"
                )
            return Costs(self._gpus.peak_bytes, cpu, joules, tuple(notes.values()))

    def _poll_until_stopped(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            with self._lock:
                for counters in self._counters:
                    counters.poll()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
