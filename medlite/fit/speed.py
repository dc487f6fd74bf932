"""How fast this machine reads weights of each type: ggml's own matrix times vector, timed for a moment and remembered.

Decoding one token multiplies every weight matrix with one vector, so its speed is that of reading the weights. Two
limits: the memory's, measured once on more bytes than caches hold, and the kernel's, measured for each type on few
bytes. A processor reads ahead while it computes, so the lower one rules; near each other they hinder each other.
"""

import ctypes
import re
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cache
from itertools import takewhile
from types import SimpleNamespace
from typing import Any

from medlite.devices import cpu_name
from medlite.engines.llamacpp.memory import is_repacked
from medlite.errors import EngineError
from medlite.formats.gguf import GGML_TYPES, GgmlType, TensorInfo
from medlite.memo import Memo
from medlite.native import kernel_features, library, load_ggml, runtime_version

N_COLUMNS = 4096
KERNEL_BYTES, KERNEL_ROUNDS = 8 << 20, 15  # fits a last-level cache
MEMORY_BYTES, MEMORY_ROUNDS = 256 << 20, 9  # fits none but the largest servers'
MEMORY_TYPE = "F16"  # its kernel does the least per byte
MEMORY_KEY = "memory"
# Two limits a and b together give (a^-n + b^-n)^(-1/n). 4 was closest to matrices of 1 GiB in Q8_0 and Q4_K, one and
# two threads on an EPYC: within 9 %, where the lower limit alone was up to 24 % too high.
SHARPNESS = 4
SPEEDS = Memo("speed", float, most=4096)  # processor, threads, runtime and name -> bytes per second
BUDGET_SECONDS = 0.6  # of one call; what it leaves unmeasured, the next call measures
GGML_TYPE_F32 = 0
STATUS_OK = 0  # ggml.h, enum ggml_status
OVERHEAD_BYTES = 1 << 20  # of a ggml context that holds no data
REPACKING_BUFFER = b"CPU_REPACK"  # ggml-cpu/repack.cpp, ggml_backend_cpu_repack_buffer_type_get_name

# The attention that is timed: an 8B Llama's heads over a thousand tokens.
ATTENTION_HEADS, ATTENTION_HEADS_KV, ATTENTION_TOKENS = 32, 8, 1024
ATTENTION_KEY = re.compile(r"attention over (?P<type>\w+) in heads of (?P<size>\d+)")


class _InitParams(ctypes.Structure):
    """ggml.h, struct ggml_init_params."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
# library -> function -> (result, arguments). Source: ggml.h, ggml-alloc.h, ggml-backend.h, ggml-cpu.h.
# fmt: off
_FUNCTIONS: dict[str, dict[str, tuple[Any, list[Any]]]] = {
    "ggml-base": {
        "ggml_init": (_POINTER, [_InitParams]),
        "ggml_free": (None, [_POINTER]),
        "ggml_new_tensor_2d": (_POINTER, [_POINTER, _INT, ctypes.c_int64, ctypes.c_int64]),
        "ggml_new_tensor_3d": (_POINTER, [_POINTER, _INT, *[ctypes.c_int64] * 3]),
        "ggml_mul_mat": (_POINTER, [_POINTER, _POINTER, _POINTER]),
        "ggml_flash_attn_ext": (_POINTER, [*[_POINTER] * 5, *[ctypes.c_float] * 3]),
        "ggml_new_graph": (_POINTER, [_POINTER]),
        "ggml_build_forward_expand": (None, [_POINTER, _POINTER]),
        "ggml_nbytes": (_SIZE, [_POINTER]),
        "ggml_backend_alloc_ctx_tensors_from_buft": (_POINTER, [_POINTER, _POINTER]),
        "ggml_backend_buffer_clear": (None, [_POINTER, ctypes.c_uint8]),
        "ggml_backend_buffer_free": (None, [_POINTER]),
        "ggml_backend_buft_name": (ctypes.c_char_p, [_POINTER]),
        "ggml_backend_cpu_buffer_type": (_POINTER, []),
        "ggml_backend_graph_compute": (_INT, [_POINTER, _POINTER]),
        "ggml_backend_free": (None, [_POINTER]),
        "ggml_backend_reg_dev_get": (_POINTER, [_POINTER, _SIZE]),
        "ggml_backend_reg_get_proc_address": (_POINTER, [_POINTER, ctypes.c_char_p]),
        "ggml_backend_tensor_set": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
    },
    "ggml-cpu": {
        "ggml_backend_cpu_init": (_POINTER, []),
        "ggml_backend_cpu_reg": (_POINTER, []),
        "ggml_backend_cpu_set_n_threads": (None, [_POINTER, _INT]),
    },
}
# fmt: on


@cache
def _ggml() -> SimpleNamespace:
    """The functions that are used here, by name. Raises EngineError where llama-cpp-python does not bring them."""
    library()  # as an engine loads it: with its log kept, and with threads that spin as short
    return declared(load_ggml)


def declared(load: Callable[[str], Any]) -> SimpleNamespace:
    """The functions of `_FUNCTIONS`, with their types, in the libraries that `load` returns by name."""
    found = {}
    for part, functions in _FUNCTIONS.items():
        loaded = load(part)
        for name, (result, arguments) in functions.items():
            function = getattr(loaded, name, None)
            if function is None:
                raise EngineError(f"lib{part} has no {name}", hint="decode speed cannot be predicted here")
            function.restype, function.argtypes = result, arguments
            found[name] = function
    return SimpleNamespace(**found)


def measure_bytes_per_second(
    ggml_type: GgmlType, n_threads: int, n_bytes: int = KERNEL_BYTES, n_rounds: int = KERNEL_ROUNDS
) -> float:
    """Bytes of `ggml_type` weights that a matrix of `n_bytes` times a vector reads in a second.

    Of the median round: what a user gets from a machine as it is.
    """
    ggml = _ggml()
    n_rows = n_bytes // ggml_type.row_bytes(N_COLUMNS) // 64 * 64
    repacked = is_repacked(TensorInfo("blk.0.ffn_up.weight", ggml_type, (n_rows, N_COLUMNS), 0), kernel_features())
    kind = repacking_buffer_type() if repacked else None
    with ExitStack() as stack:
        weights = _context(stack)
        matrix = ggml.ggml_new_tensor_2d(weights, ggml_type.id, N_COLUMNS, n_rows)
        buffer = _allocate(stack, weights, kind)
        if kind:
            zeros = bytes(ggml.ggml_nbytes(matrix))
            ggml.ggml_backend_tensor_set(matrix, zeros, 0, len(zeros))
        else:
            ggml.ggml_backend_buffer_clear(buffer, 0)
        scratch = _context(stack)
        vector = ggml.ggml_new_tensor_2d(scratch, GGML_TYPE_F32, N_COLUMNS, 1)
        product = ggml.ggml_mul_mat(scratch, matrix, vector)
        graph = ggml.ggml_new_graph(scratch)
        ggml.ggml_build_forward_expand(graph, product)
        ggml.ggml_backend_buffer_clear(_allocate(stack, scratch), 0)
        return n_rows * ggml_type.row_bytes(N_COLUMNS) / _median_round(graph, n_threads, n_rounds)


def measure_attention(ggml_type: GgmlType, head_dim: int, n_threads: int, n_rounds: int = KERNEL_ROUNDS) -> float:
    """Bytes of keys and values that attention reads in a second for one new token, counted once for every query head.

    Several heads share keys and values, and each reads them again, from the processor's caches. Of the median round.
    """
    ggml = _ggml()
    with ExitStack() as stack:
        context = _context(stack)
        query = ggml.ggml_new_tensor_3d(context, GGML_TYPE_F32, head_dim, 1, ATTENTION_HEADS)
        keys, values = (
            ggml.ggml_new_tensor_3d(context, ggml_type.id, head_dim, ATTENTION_TOKENS, ATTENTION_HEADS_KV)
            for _ in range(2)
        )
        attended = ggml.ggml_flash_attn_ext(context, query, keys, values, None, head_dim**-0.5, 0.0, 0.0)
        graph = ggml.ggml_new_graph(context)
        ggml.ggml_build_forward_expand(graph, attended)
        ggml.ggml_backend_buffer_clear(_allocate(stack, context), 0)
        n_bytes = 2 * ATTENTION_HEADS * ATTENTION_TOKENS * ggml_type.row_bytes(head_dim)
        return n_bytes / _median_round(graph, n_threads, n_rounds)


def clock_for(n_threads: int) -> Callable[[], float]:
    """The clock to time `n_threads` with: of one thread its processor time, which other programs do not use up."""
    return time.thread_time if n_threads == 1 else time.perf_counter


def _median_round(graph: Any, n_threads: int, n_rounds: int) -> float:
    """Seconds that one computation of `graph` takes."""
    ggml = _ggml()
    backend = ggml.ggml_backend_cpu_init()
    ggml.ggml_backend_cpu_set_n_threads(backend, n_threads)
    clock, seconds = clock_for(n_threads), []
    try:
        for _ in range(n_rounds + 1):
            begin = clock()
            if ggml.ggml_backend_graph_compute(backend, graph) != STATUS_OK:
                raise EngineError("ggml cannot multiply a matrix on this processor")
            seconds.append(clock() - begin)
    finally:
        ggml.ggml_backend_free(backend)
    return statistics.median(seconds[1:])


def _context(stack: ExitStack) -> Any:
    """A ggml context without data, freed with `stack`."""
    ggml = _ggml()
    return _freed_with(stack, ggml.ggml_free, ggml.ggml_init(_InitParams(OVERHEAD_BYTES, None, True)))


def _allocate(stack: ExitStack, context: Any, kind: Any = None) -> Any:
    """The buffer of a context's tensors, of a buffer type, freed with `stack`; None: the CPU's plain one."""
    ggml = _ggml()
    buffer = ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, kind or ggml.ggml_backend_cpu_buffer_type())
    return _freed_with(stack, ggml.ggml_backend_buffer_free, buffer)


def _freed_with(stack: ExitStack, free: Any, pointer: Any) -> Any:
    if not pointer:
        raise EngineError("ggml could not allocate memory for a moment's measurement")
    stack.callback(free, pointer)
    return pointer


def repacking_buffer_type(name: bytes = REPACKING_BUFFER) -> Any:
    """The CPU's buffer type `name`, which repacks what is put into it; None where this build has none.

    Weights are then timed in their plain layout. Source: llama.cpp src/llama-model.cpp, make_cpu_buft_list.
    """
    ggml = _ggml()
    registry = ggml.ggml_backend_cpu_reg()
    address = ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return None
    extra_types = ctypes.CFUNCTYPE(ctypes.POINTER(_POINTER), _POINTER)(address)
    found = extra_types(ggml.ggml_backend_reg_dev_get(registry, 0))  # ends with a null pointer
    return next((one for one in takewhile(bool, found) if ggml.ggml_backend_buft_name(one) == name), None)


# --- remembered ------------------------------------------------------------------------------------------------------


def attention_key(type_name: str, head_dim: int) -> str:
    """The name under which `bytes_per_second` knows attention over a KV cache of a ggml type."""
    return f"attention over {type_name} in heads of {head_dim}"


def bytes_per_second(
    names: Iterable[str], n_threads: int, *, fresh: bool = False, budget_seconds: float = BUDGET_SECONDS
) -> dict[str, float]:
    """Bytes per second of `names`, types or `attention_key`s; what was measured before on this processor is remembered.

    Those that the budget leaves no time for are missing from the answer; another call measures them. fresh: measure
    all of them again, whatever the budget.
    """
    here = f"{cpu_name()}; {n_threads} threads; {runtime_version()}; {MEMORY_TYPE} median"
    known = {
        key.removeprefix(f"{here}; "): speed for key, speed in SPEEDS.read().items() if key.startswith(f"{here}; ")
    }
    wanted = list(dict.fromkeys([MEMORY_KEY, *names]))
    missing = wanted if fresh else [name for name in wanted if name not in known]
    begin = time.perf_counter()
    for name in missing:
        if not fresh and time.perf_counter() - begin > budget_seconds:
            break
        known[name] = _measure(name, n_threads)
    if missing:
        SPEEDS.put({f"{here}; {name}": known[name] for name in missing if name in known})
    return {
        name: known[name]
        if name == MEMORY_KEY or ATTENTION_KEY.fullmatch(name)
        else together(known[name], known[MEMORY_KEY])
        for name in wanted
        if name in known
    }


def _measure(name: str, n_threads: int) -> float:
    if name == MEMORY_KEY:
        return measure_bytes_per_second(GGML_TYPES[MEMORY_TYPE], n_threads, MEMORY_BYTES, MEMORY_ROUNDS)
    if attention := ATTENTION_KEY.fullmatch(name):
        return measure_attention(GGML_TYPES[attention["type"]], int(attention["size"]), n_threads)
    return measure_bytes_per_second(GGML_TYPES[name], n_threads)


def together(one: float, other: float) -> float:
    """The speed under two limits at once."""
    return float((one**-SHARPNESS + other**-SHARPNESS) ** (-1 / SHARPNESS))
