"""Cores, memory and GPUs, and the choice of a device, on made-up machines and on this one."""

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from medlite import devices
from medlite.devices import (
    Gpu,
    available_memory,
    cuda_install_command,
    find_gpus,
    physical_cores,
    process_memory,
    resolve_device,
)
from medlite.errors import DeviceError
from medlite.native import requirement

GB = 10**9
GPU = Gpu("NVIDIA H100 80GB HBM3", 80 << 30, 79 << 30, "550.54", (12, 4))


def test_hyper_threads_count_once(tmp_path: Path) -> None:
    for cpu, siblings in enumerate(("0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert physical_cores(tmp_path, range(8)) == 4
    assert physical_cores(tmp_path, {0, 4, 5}) == 2
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("150000 100000")
    assert physical_cores(tmp_path, range(8)) == 1


def test_without_a_topology_the_cores_are_psutils(tmp_path: Path) -> None:
    assert physical_cores(tmp_path, range(1)) == 1
    assert physical_cores(tmp_path, range(1 << 20)) == psutil.cpu_count(logical=False)


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000", None), ("150000 100000", 1), ("400000 100000", 4), ("50000 100000", 1), ("nonsense", None)],
)
def test_a_container_quota_is_read(tmp_path: Path, text: str, cores: int | None) -> None:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text(text)
    assert devices.container_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("folder", "limit", "used"),
    [
        ("sys/fs/cgroup", "memory.max", "memory.current"),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_a_containers_memory_limit_leaves_what_is_not_used_or_cached(
    tmp_path: Path, folder: str, limit: str, used: str
) -> None:
    cgroup = tmp_path / folder
    assert available_memory(tmp_path, free=GB) == GB
    cgroup.mkdir(parents=True)
    (cgroup / limit).write_text("1000000\n")
    (cgroup / used).write_text("700000\n")
    (cgroup / "memory.stat").write_text("anon 5\ntotal_inactive_file 200000\n")
    assert available_memory(tmp_path, free=GB) == 500000
    assert available_memory(tmp_path, free=400000) == 400000
    for unlimited in ("max", str(1 << 62)):
        (cgroup / limit).write_text(unlimited + "\n")
        assert available_memory(tmp_path, free=GB) == GB


def test_this_machine_has_cores_memory_and_a_name() -> None:
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
    assert 0 < available_memory() <= devices.total_memory() < 1 << 50
    assert devices.cpu_name()
    memory = process_memory()
    assert memory.peak >= memory.resident > 0


class Driver:
    """An NVML of made-up GPUs: name -> bytes (total, free); None for one that does not answer."""

    class NVMLError(Exception):
        pass

    def __init__(self, gpus: dict[str, tuple[int, int] | None], *, loaded: bool = True) -> None:
        self.gpus, self.loaded = gpus, loaded

    def nvmlInit(self) -> None:
        if not self.loaded:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlSystemGetDriverVersion(self) -> str:
        return "550.54"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return 12040

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return list(self.gpus)[index]

    def nvmlDeviceGetName(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        memory = self.gpus[handle]
        if memory is None:
            raise self.NVMLError("GPU is lost")
        return SimpleNamespace(total=memory[0], free=memory[1])


def test_the_drivers_gpus_are_described_and_lost_ones_left_out() -> None:
    driver = Driver({GPU.name: (GPU.n_bytes_total, GPU.n_bytes_free), "lost": None})
    assert find_gpus(driver) == (GPU,)
    assert find_gpus(Driver({})) == ()


def test_without_a_driver_there_is_no_gpu_and_no_error() -> None:
    assert find_gpus(Driver({GPU.name: (1, 1)}, loaded=False)) == ()
    assert isinstance(find_gpus(), tuple)


@pytest.mark.parametrize(
    ("version", "expected"),
    [((12, 4), "/cu124"), ((12, 8), "/cu125"), ((13, 1), "/cu130"), ((11, 4), "GGML_CUDA=on"), (None, "GGML_CUDA=on")],
)
def test_the_install_command_fits_the_drivers_cuda(version: tuple[int, int] | None, expected: str) -> None:
    assert expected in cuda_install_command(version)
    assert requirement() in cuda_install_command(version)


@pytest.mark.parametrize(
    ("wanted", "gpu_build", "gpus", "device"),
    [
        ("cpu", True, [GPU], "cpu"),
        ("auto", True, [GPU], "cuda"),
        ("cuda", True, [GPU], "cuda"),
        ("auto", True, [], "cpu"),
        ("auto", False, [], "cpu"),
        ("auto", False, [GPU], "cpu"),
    ],
)
def test_the_device_follows_the_wish_the_build_and_the_machine(
    wanted: str, gpu_build: bool, gpus: list[Gpu], device: str
) -> None:
    choice = resolve_device(wanted, gpu_build=gpu_build, gpus=gpus)
    assert choice.device == device
    assert ("pip install" in choice.warning) == (bool(gpus) and not gpu_build and wanted == "auto")


def test_asking_for_a_gpu_that_cannot_be_used_is_an_error_with_the_way_out() -> None:
    with pytest.raises(DeviceError, match="no NVIDIA GPU") as missing:
        resolve_device("cuda", gpu_build=True, gpus=[])
    assert missing.value.hint == "--device cpu"
    with pytest.raises(DeviceError, match="built for the CPU only") as cpu_only:
        resolve_device("cuda", gpu_build=False, gpus=[GPU])
    assert "pip install" in (cpu_only.value.hint or "")
    with pytest.raises(DeviceError, match="unknown device"):
        resolve_device("tpu", gpu_build=False, gpus=[])
