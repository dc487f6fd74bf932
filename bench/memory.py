"""How much memory this process has used, and for what. Linux's /proc; elsewhere only the peak is known."""

import sys
from pathlib import Path

from medlite.gguf_format import Header

STATUS = Path("/proc/self/status")
SMAPS = Path("/proc/self/smaps")
F16_BYTES = 2


def peak_rss_bytes() -> int:
    """The most memory that this process ever had resident, file-mapped weights included."""
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kB


def resident_bytes_of_file(path: Path) -> int:
    """Bytes of `path` that are mapped into this process and resident now; 0 where /proc does not tell."""
    if not SMAPS.exists():
        return 0
    name, total, inside = str(path.resolve()), 0, False
    for line in SMAPS.read_text(errors="replace").splitlines():
        if "-" in line.split(" ", 1)[0]:  # a mapping's head: "7f..-7f.. r--s offset device inode path"
            inside = line.endswith(name)
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def kv_cache_bytes(header: Header, n_context: int) -> int:
    """Bytes of keys and values at float16 for n_context tokens; 0 if the header does not say the shape.

    2 (keys, values) * n_layers * n_context * n_head_kv * head_dim * 2 bytes; layers with a sliding window keep less.
    """
    arch = header.get("general.architecture")

    def number(key: str) -> int:
        value = header.get(f"{arch}.{key}", 0)
        return value if isinstance(value, int) else 0

    n_head = number("attention.head_count")
    n_head_kv = number("attention.head_count_kv") or n_head
    default = number("embedding_length") // n_head if n_head else 0
    key_dim = number("attention.key_length") or default
    value_dim = number("attention.value_length") or default
    return number("block_count") * n_context * n_head_kv * (key_dim + value_dim) * F16_BYTES
