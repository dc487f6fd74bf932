"""Writing so that a name on disk always means a whole file, and a few questions to the file system."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from medlite.errors import OutputError

PART_SUFFIX = ".part"
HASH_BLOCK_BYTES = 1 << 22

OnBytes = Callable[[int], None]  # hears how many bytes were done since its last call


def part_path(path: Path) -> Path:
    """The name under which `path` is written until it is whole."""
    return path.with_name(path.name + PART_SUFFIX)


def check_writable(path: Path, *, force: bool) -> None:
    """Raise OutputError if `path` exists and may not be replaced, or its folder is missing."""
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, a file name was needed", hint=f"--out {path / 'model.gguf'}")
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already", hint="--force replaces it, --out names another file")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: no such folder", hint=f"mkdir -p {path.parent}")


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it, if they are missing. Raises OutputError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be made a folder: {error.strerror or error}", hint="--out names another place"
        ) from error


def check_free_space(folder: Path, n_bytes: int) -> None:
    """Raise OutputError if the disk that holds `folder` has less than `n_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise OutputError(
            f"{folder}: {format_bytes(free)} free, {format_bytes(n_bytes)} needed",
            hint="free some space or choose another disk with --out",
        )


def publish(part: Path, path: Path) -> None:
    """Give the finished file its final name: fsync, rename, fsync of the folder."""
    _sync(part)
    os.replace(part, path)
    _sync(path.parent)


def publish_folder(part: Path, path: Path) -> None:
    """Give the finished folder its final name: fsync of each file, rename, fsync of the folder above."""
    for one in [*part.iterdir(), part]:
        _sync(one)
    old = path.with_name(path.name + ".old")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
    os.replace(part, path)
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a `.part` path; rename it to `path` if the block succeeds, remove it if the block raises."""
    check_writable(path, force=force)
    part = part_path(path)
    try:
        yield part
        publish(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"{path}: {error.strerror or error}", hint="is the disk full or read-only?") from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text_whole(path: Path, text: str, *, force: bool = True) -> None:
    """Write UTF-8 `text` so that a reader sees the old file or the new one, never a piece."""
    with whole_file(path, force=force) as part:
        part.write_text(text, encoding="utf-8")


def write_json_whole(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, whole or not at all."""
    write_text_whole(path, json_text(value))


def json_text(value: Any) -> str:
    """`value` as indented JSON with sorted keys, as every JSON file of ours is written."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def file_sha256(path: Path, on_bytes: OnBytes | None = None) -> str:
    """SHA-256 of the file as hex. `on_bytes` hears how many bytes were read since its last call."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as handle:
        while block := handle.read(HASH_BLOCK_BYTES):
            digest.update(block)
            if on_bytes:
                on_bytes(len(block))
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where medlite keeps what it can make again: $MEDLITE_CACHE, else in the user's cache folder."""
    explicit = os.environ.get("MEDLITE_CACHE")
    return Path(explicit) if explicit else platformdirs.user_cache_path("medlite")


def state_folder() -> Path:
    """Where medlite keeps what belongs to the user and cannot be made again, as the history of typed lines."""
    return platformdirs.user_state_path("medlite")


def format_bytes(n_bytes: float) -> str:
    """Decimal units, three significant digits: 812 B, 4.92 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n_bytes) < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"
