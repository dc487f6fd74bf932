"""`medlite doctor`: what this machine has, which engines load here, and the one command that mends what is wrong."""

import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medlite.cli import print_json
from medlite.cli.params import json_option
from medlite.errors import EngineError
from medlite.formats.json import decode_json

if TYPE_CHECKING:
    from medlite.devices import Gpu

PROBE_SECONDS = 60
GOOD, NOTE, WRONG = "good", "note", "wrong"
MARKS = {GOOD: "[green]ok[/]  ", NOTE: "[dim]--[/]  ", WRONG: "[bold red]!![/]  "}

# Processor features that the engines' kernels use, by /proc/cpuinfo's name. The first of a family is needed for speed.
# fmt: off
SHOWN_FEATURES = {
    "avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "avx512f": "AVX-512", "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16", "amx_int8": "AMX", "asimd": "NEON", "asimddp": "DOTPROD", "i8mm": "I8MM",
    "sve": "SVE"}
# fmt: on
SHOWN_PACKAGES = ("llama-cpp-python", "gguf", "numpy", "tokenizers", "huggingface-hub", "onnxruntime", "torch")


@dataclass(frozen=True)
class Machine:
    """What the machine itself says. features: by /proc/cpuinfo's names, empty if unknown. Memory in bytes."""

    architecture: str
    cpu_name: str
    features: frozenset[str]
    n_physical_cores: int
    n_logical_cores: int
    n_bytes_free: int
    n_bytes_total: int
    gpus: "tuple[Gpu, ...]"


@dataclass(frozen=True)
class Finding:
    """One line of the answer. fix: the command that mends or adds it, empty if nothing is to be done."""

    level: str
    name: str
    text: str
    fix: str = ""


@dataclass(frozen=True)
class Probe:
    """What importing an engine in a process of its own came to. missing: it is not installed."""

    version: str = ""
    gpu: bool = False
    missing: bool = False
    failure: str = ""


@click.command(
    "doctor",
    epilog="""\b
Examples:
  medlite doctor
  medlite doctor --json
  medlite doctor --offline-proof

Exit code 0: nothing is wrong. 1: something is, and named with what mends it.""",
)
@click.option(
    "--offline-proof", is_flag=True, help="Do every kind of work on the embedded model with the internet forbidden."
)
@json_option("Print the findings as JSON.")
def command(offline_proof: bool, as_json: bool) -> None:
    """Check this machine, and say what to install.

    Engines are tried in processes of their own, so that a build for another processor cannot end this one.
    """
    if offline_proof:
        show_proof(as_json=as_json)
        return
    show(findings(this_machine()), as_json=as_json)


def show(findings: Iterable[Finding], *, as_json: bool) -> None:
    """Print each finding as it comes; end with code 1 if something is wrong."""
    from rich.markup import escape

    from medlite.cli.display import stdout

    found = []
    for finding in findings:
        found.append(finding)
        if not as_json:
            name = f"[bold]{finding.name:<11}[/bold]"
            stdout.print(f"{MARKS[finding.level]}{name} {escape(finding.text)}", soft_wrap=True)
            if finding.fix:
                stdout.print(f"                {finding.fix}", soft_wrap=True, markup=False, style="cyan")
    if as_json:
        print_json([asdict(finding) for finding in found])
    if any(finding.level == WRONG for finding in found):
        sys.exit(1)


def findings(machine: Machine) -> Iterator[Finding]:
    """Everything there is to say of `machine` and of what is installed here, as it is found out."""
    from medlite.engines import ENGINES

    yield from machine_findings(machine)
    yield from disk_findings()
    probes = {}
    for engine in ENGINES:
        probes[engine] = probe_engine(engine)
        yield engine_finding(engine, probes[engine])
    yield from gpu_findings(machine.gpus, probes["llamacpp"])
    yield kernels_finding()
    yield network_finding()
    yield Finding(NOTE, "versions", ", ".join(versions()))


# --- the machine -----------------------------------------------------------------------------------------------------


def this_machine() -> Machine:
    """The machine under the command."""
    from medlite.devices import available_memory, cpu_features, cpu_name, find_gpus, physical_cores, total_memory

    return Machine(
        architecture=platform.machine(),
        cpu_name=cpu_name(),
        features=cpu_features(),
        n_physical_cores=physical_cores(),
        n_logical_cores=os.cpu_count() or 1,
        n_bytes_free=available_memory(),
        n_bytes_total=total_memory(),
        gpus=find_gpus(),
    )


def machine_findings(machine: Machine) -> Iterator[Finding]:
    """System, processor and memory."""
    from medlite.files import format_bytes

    system = f"{platform.system()} {platform.release()}, {machine.architecture}"
    yield Finding(GOOD, "system", f"{system}, Python {platform.python_version()}")
    features = machine.features
    shown = ", ".join(text for name, text in SHOWN_FEATURES.items() if name in features) or "features unknown"
    slow = machine.architecture in ("x86_64", "AMD64") and bool(features) and "avx2" not in features
    remark = "; without AVX2 decoding is slow" if slow else ""
    yield Finding(NOTE if slow else GOOD, "processor", f"{machine.cpu_name}: {shown}{remark}")
    yield Finding(GOOD, "cores", f"{machine.n_physical_cores} physical, {machine.n_logical_cores} logical")
    free, total = format_bytes(machine.n_bytes_free), format_bytes(machine.n_bytes_total)
    yield Finding(GOOD, "memory", f"{free} available of {total}")


def disk_findings() -> Iterator[Finding]:
    """Room for what medlite and the hub keep."""
    from huggingface_hub import constants

    from medlite.files import cache_folder, format_bytes

    for name, folder in (("disk", cache_folder()), ("hub cache", Path(constants.HF_HUB_CACHE))):
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        yield Finding(GOOD, name, f"{format_bytes(shutil.disk_usage(nearest).free)} free in {folder}")


def versions() -> list[str]:
    """The installed packages whose versions decide what is computed."""
    from medlite.version import __version__

    rows = [f"medlite {__version__}"]
    for name in SHOWN_PACKAGES:
        try:
            rows.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return rows


# --- engines ---------------------------------------------------------------------------------------------------------


def probe_engine(engine: str) -> Probe:
    """What happens when an engine is imported in a process of its own."""
    from medlite.engines import ENGINES

    return run_probe(f"import json; from {ENGINES[engine].module} import probe; print(json.dumps(probe()))")


def run_probe(code: str) -> Probe:
    """Run `code` in a child that prints a JSON object, and read its end: an answer, an error, or a signal."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-c", code],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PROBE_SECONDS,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return Probe(failure=f"it does not load within {PROBE_SECONDS} s")
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        illegal = " (illegal instruction: built for another processor)" if name == "SIGILL" else ""
        return Probe(failure=f"it ends the process with {name}{illegal}")
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines() or ["it ends without a word"]
        return Probe(missing="ModuleNotFoundError" in lines[-1] or "is not installed" in lines[-1], failure=lines[-1])
    return decode_json(child.stdout.splitlines()[-1], Probe, EngineError, where="the probe's answer")


def engine_finding(engine: str, probe: Probe) -> Finding:
    """Whether an engine loads; for one that is missing, what brings it."""
    from medlite.engines import ENGINES
    from medlite.native import requirement

    extra = ENGINES[engine].extra
    install = f"pip install 'medlite[{extra}]'" if extra else f"pip install {requirement()}"
    if probe.version:
        return Finding(GOOD, engine, f"{probe.version} loads{', with GPU support' if probe.gpu else ''}")
    if probe.missing:
        return Finding(NOTE if extra else WRONG, engine, "not installed", install)
    if engine == "llamacpp" and "SIGILL" in probe.failure:
        install = f"pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python {requirement()}"
    return Finding(WRONG, engine, probe.failure, install)


def gpu_findings(gpus: "tuple[Gpu, ...]", llamacpp: Probe) -> Iterator[Finding]:
    """The GPUs, and loudly whether the engine cannot use them."""
    from medlite.devices import cuda_install_command
    from medlite.files import format_bytes

    if not gpus:
        yield Finding(NOTE, "GPU", "no NVIDIA GPU (its driver lists none); models run on the processor")
    for gpu in gpus:
        cuda = f", CUDA {gpu.cuda_version[0]}.{gpu.cuda_version[1]}" if gpu.cuda_version else ""
        memory = f"{format_bytes(gpu.n_bytes_free)} free of {format_bytes(gpu.n_bytes_total)}"
        yield Finding(GOOD, "GPU", f"{gpu.name}: {memory}, driver {gpu.driver_version}{cuda}")
    if gpus and llamacpp.version and not llamacpp.gpu:
        text = "llama-cpp-python was built for the CPU only: this machine's GPU stands idle"
        yield Finding(WRONG, "GPU unused", text, cuda_install_command(gpus[0].cuda_version))


def kernels_finding() -> Finding:
    """Whether the quantization kernels were built, and what they use."""
    from quantize.kernels import load, missing_reason

    kernels = load()
    if kernels is not None:
        return Finding(GOOD, "kernels", f"quantize.kernels runs with {kernels.isa}")
    text = f"quantize uses ggml's functions, the same bytes more slowly: {missing_reason()}"
    fix = "install a C++ compiler, then: pip install --force-reinstall --no-deps medlite"
    return Finding(NOTE, "kernels", text, fix)


def network_finding() -> Finding:
    """What medlite does with the network."""
    from medlite.models.hub import is_offline

    state = "only pull, quantize and bench download, and only what a command names"
    if is_offline():
        state = "HF_HUB_OFFLINE is set, so pull opens no socket"
    return Finding(GOOD, "network", f"{state}; dependencies' telemetry is off; medlite doctor --offline-proof shows it")


# --- the proof -------------------------------------------------------------------------------------------------------


def show_proof(*, as_json: bool) -> None:
    """Run the proof, print each step, and end with code 1 if one failed."""
    from medlite.cli.display import stdout
    from medlite.cli.offline_proof import Outcome, prove

    def on_step(outcome: Outcome) -> None:
        mark = MARKS[GOOD if outcome.ok else WRONG]
        failure = "tried to reach the internet" if outcome.attempted else "failed"
        text = "no attempt" if outcome.ok else failure
        stdout.print(f"{mark}[bold]{outcome.step.name:<15}[/bold] {text}", soft_wrap=True)
        if outcome.said:
            stdout.print(outcome.said, markup=False, style="dim", soft_wrap=True)

    outcomes = prove((lambda _: None) if as_json else on_step)
    proven = all(outcome.ok for outcome in outcomes)
    system = all("system" in outcome.guards for outcome in outcomes)
    if as_json:
        print_json(
            {
                "proven": proven,
                "kernel_guard": system,
                "steps": [
                    {
                        "name": o.step.name,
                        "arguments": list(o.step.arguments),
                        "ok": o.ok,
                        "attempted": o.attempted,
                        "guards": list(o.guards),
                        "said": o.said,
                    }
                    for o in outcomes
                ],
            }
        )
    elif proven:
        how = "Python code was watched; native code could not be on this system."
        if system:
            how = "The kernel would have ended any process that asked for an internet socket."
        said = f"Nothing tried to leave this machine in {len(outcomes)} steps. {how}"
        stdout.print(said, style="bold", soft_wrap=True)
    if not proven:
        sys.exit(1)
