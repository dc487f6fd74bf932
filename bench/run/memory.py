"""What the memory of a measuring process is for: mapped weights, key-value cache, the rest."""

import re
from pathlib import Path

from medlite.engines.engine import EngineInfo

SMAPS = Path("/proc/self/smaps")
SHARD = re.compile(r"(.*)-\d{5}-of-\d{5}\.gguf")


def mapped_bytes_of(path: Path, smaps: Path = SMAPS) -> int:
    """Bytes of the artifact `path` (file, all its shards, or folder) that are mapped here and resident now.

    0 where /proc does not tell, and for a runtime that reads its weights instead of mapping them. Source: proc(5).
    """
    if not smaps.exists():
        return 0
    name = str(path.resolve())
    shard = SHARD.fullmatch(name)
    ours = re.compile(rf"{re.escape(shard[1])}-\d{{5}}-of-\d{{5}}\.gguf" if shard else rf"{re.escape(name)}(?:/.*)?")
    total, inside = 0, False
    for line in smaps.read_text(errors="replace").splitlines():
        if "-" in line.split(" ", 1)[0]:  # a mapping's head: "7f..-7f.. r--s offset device inode path"
            fields = line.split(maxsplit=5)
            inside = len(fields) == 6 and ours.fullmatch(fields[5]) is not None
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def allocated_kv_bytes(info: EngineInfo) -> int:
    """Bytes of keys and values that the runtime says it allocated, over all devices; 0 where it does not say."""
    return sum(n_bytes for name, n_bytes in info.buffer_bytes.items() if name.split()[-1] == "KV")
