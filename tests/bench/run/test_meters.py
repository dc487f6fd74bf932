"""Counters on a made-up machine: a powercap tree in a folder, an NVML of plain numbers."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.run import meters
from bench.run.meters import Costs, GpuCounters, Meters, NotMeasured, PackageEnergy

PID = 4711


def zone(root: Path, name: str, label: str, energy_uj: int, range_uj: int = 10_000_000) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(label + "\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    return folder / "energy_uj"


def test_packages_and_memory_are_added_and_what_lies_inside_a_package_is_not(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    dram = zone(tmp_path, "intel-rapl:0:1", "dram", 0)
    core = zone(tmp_path, "intel-rapl:0:0", "core", 0)
    platform = zone(tmp_path, "intel-rapl:1", "psys", 0)
    energy = PackageEnergy(tmp_path)
    energy.zero()
    for counter, value in ((package, 3_500_000), (dram, 250_000), (core, 900_000), (platform, 9_000_000)):
        counter.write_text(str(value))
    assert energy.joules() == pytest.approx(2.75)
    energy.zero()
    assert energy.joules() == 0.0


def test_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 9_999_000)
    energy = PackageEnergy(tmp_path)
    energy.zero()
    counter.write_text("999")
    assert energy.joules() == pytest.approx(2e-3)


def test_no_counter_is_said_and_is_not_zero(tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match="holds no package counter"):
        PackageEnergy(tmp_path / "gone")
    zone(tmp_path, "intel-rapl:0", "package-0", 0).write_text("no number")
    with pytest.raises(NotMeasured, match="cannot be read"):
        PackageEnergy(tmp_path)


class Driver:
    """An NVML with GPUs of plain numbers. processes: of each GPU, pid -> bytes."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, n_gpus: int = 1, energy: bool = True, fails: bool = False) -> None:
        self.used = [100] * n_gpus
        self.processes: list[dict[int, int | None]] = [{} for _ in range(n_gpus)]
        self.millijoules = [5000] * n_gpus
        self.energy, self.fails = energy, fails

    def nvmlInit(self) -> None:
        if self.fails:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.used)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=self.used[handle])

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=n) for pid, n in self.processes[handle].items()]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if not self.energy:
            raise self.NVMLError("Not Supported")
        return self.millijoules[handle]


def test_the_peak_is_of_this_process_alone_over_all_gpus() -> None:
    driver = Driver(n_gpus=2)
    gpus = GpuCounters(driver, PID)
    for mine in (300, 700, 200):
        driver.processes = [{PID: mine, 1: 10**9}, {PID: 50}]
        gpus.poll()
    assert (gpus.peak_bytes, gpus.shared) == (750, False)


@pytest.mark.parametrize("listed", [{}, {PID: None}, {1: 5}])
def test_where_the_driver_does_not_list_the_process_the_growth_stands_in(listed: dict[int, int | None]) -> None:
    driver = Driver()
    gpus = GpuCounters(driver, PID)
    driver.processes, driver.used = [listed], [1600]
    gpus.poll()
    assert (gpus.peak_bytes, gpus.shared) == (1500, True)


def test_energy_is_of_the_gpus_that_the_process_uses() -> None:
    driver = Driver(n_gpus=2)
    gpus = GpuCounters(driver, PID)
    driver.processes = [{PID: 10}, {}]
    gpus.poll()
    gpus.zero()
    driver.millijoules = [7500, 9000]
    assert gpus.joules() == 2.5


def test_a_run_on_the_gpu_reads_all_and_one_on_the_cpu_claims_no_gpu(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    driver = Driver()
    with Meters(tmp_path, driver) as found:
        driver.used = [4196]
        found.zero()
        counter.write_text("2000000")
        driver.millijoules = [8000]
        costs = found.read("cuda")
        assert (costs.peak_vram_bytes, costs.cpu_joules, costs.gpu_joules) == (4096, 2.0, 3.0)
        assert any("growth of the whole GPU" in note for note in costs.notes)
        assert found.read("cpu") == Costs(None, 2.0, None, ())


@pytest.mark.parametrize(
    ("driver", "memory", "reason"),
    [
        (Driver(fails=True), None, "GPU memory and energy were not measured: NVML: Driver Not Loaded"),
        (Driver(n_gpus=0), None, "NVML lists no GPU"),
        (Driver(energy=False), 900, "energy of the GPU was not measured"),
    ],
)
def test_what_cannot_be_read_is_none_with_its_reason(
    tmp_path: Path, driver: Driver, memory: int | None, reason: str
) -> None:
    with Meters(tmp_path, driver) as found:
        found.zero()
        driver.used = [1000] * len(driver.used)
        costs = found.read("cuda")
    assert (costs.peak_vram_bytes, costs.cpu_joules, costs.gpu_joules) == (memory, None, None)
    assert any(reason in note for note in costs.notes)
    assert any("energy of the processor was not measured" in note for note in costs.notes)


def test_the_thread_sees_a_peak_that_is_gone_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "POLL_SECONDS", 0.001)
    driver, polled = Driver(), threading.Event()

    def in_use(handle: int) -> SimpleNamespace:
        polled.set()
        return SimpleNamespace(used=5100)

    with Meters(tmp_path, driver) as found:
        calm = driver.nvmlDeviceGetMemoryInfo
        monkeypatch.setattr(driver, "nvmlDeviceGetMemoryInfo", in_use)
        assert polled.wait(10)
        monkeypatch.setattr(driver, "nvmlDeviceGetMemoryInfo", calm)
        assert found.read("cuda").peak_vram_bytes == 5000


def test_this_machine_answers_without_an_error() -> None:
    with Meters() as found:
        found.zero()
        costs = found.read("cpu")
    assert costs.peak_vram_bytes is None
    assert (costs.cpu_joules is None) == any("processor was not measured" in note for note in costs.notes)
