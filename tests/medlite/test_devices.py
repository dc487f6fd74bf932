"""Cores, memory and GPUs, and the choice of a device, on made-up machines and on this one."""

import os
from pathlib import Path

import pytest

from medlite import devices
from medlite.devices import Gpu, cuda_install_command, parse_gpus, physical_cores, process_memory, resolve_device
from medlite.errors import DeviceError
from tests.helpers.places import ROOT

GPU = Gpu("NVIDIA H100 80GB HBM3", 80 << 30, 79 << 30, "550.54", (12, 4))


def test_hyper_threads_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu, siblings in enumerate(("0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7")):
        folder = tmp_path / f"cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(devices, "_container_cores", lambda: None)
    assert physical_cores(tmp_path) == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 4, 5}, raising=False)
    assert physical_cores(tmp_path) == 2
    monkeypatch.setattr(devices, "_container_cores", lambda: 1)
    assert physical_cores(tmp_path) == 1


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000", None), ("150000 100000", 1), ("400000 100000", 4), ("50000 100000", 1), ("nonsense", None)],
)
def test_a_container_quota_is_read(tmp_path: Path, text: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert devices._container_cores(tmp_path) == cores


def test_a_containers_memory_limit_leaves_what_is_not_used_or_cached(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 200000\n")
    assert devices._container_free(tmp_path, "memory.max", "memory.current") == 500000
    (tmp_path / "memory.max").write_text("max\n")
    assert devices._container_free(tmp_path, "memory.max", "memory.current") is None
    assert devices._container_free(tmp_path, "missing", "memory.current") is None


def test_this_machine_has_cores_memory_and_a_name() -> None:
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
    assert 0 < devices.available_memory() < 1 << 50
    assert devices.cpu_name()
    memory = process_memory()
    assert memory.peak >= memory.resident > 0


def test_nvidia_smi_lines_become_gpus_and_other_lines_do_not() -> None:
    answer = "NVIDIA H100 80GB HBM3, 81559, 81000, 550.54\nNo devices were found\nbroken, [N/A], 5, 1\n"
    (gpu,) = parse_gpus(answer, (12, 4))
    assert (gpu.name, gpu.n_bytes_total, gpu.n_bytes_free) == ("NVIDIA H100 80GB HBM3", 81559 << 20, 81000 << 20)


@pytest.mark.parametrize(
    ("version", "expected"),
    [((12, 4), "/cu124"), ((12, 8), "/cu125"), ((13, 1), "/cu130"), ((11, 4), "GGML_CUDA=on"), (None, "GGML_CUDA=on")],
)
def test_the_install_command_fits_the_drivers_cuda(version: tuple[int, int] | None, expected: str) -> None:
    assert expected in cuda_install_command(version)
    assert devices.LLAMA_CPP_PYTHON in cuda_install_command(version)


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


def test_the_pinned_runtime_is_the_one_the_install_command_names() -> None:
    import tomllib

    from medlite.engines.llamacpp.native import SUPPORTED_VERSION

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"llama-cpp-python=={SUPPORTED_VERSION}" in project["dependencies"]
    assert f"llama-cpp-python=={SUPPORTED_VERSION}" == devices.LLAMA_CPP_PYTHON
