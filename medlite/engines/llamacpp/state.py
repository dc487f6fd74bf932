"""The cache of a conversation on disk, so that a saved chat continues without reading itself again.

File: what llama_state_seq_save_file writes, then facts as JSON, their length (8 bytes, little-endian), a keyed SHA-256
of all before it, and a magic. llama.cpp trusts parts of a state file, so one that this user's medlite did not write,
or that changed since, never reaches it: the key is 32 random bytes in the cache folder, readable by its owner only.
"""

import hmac
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from medlite.engines.engine import EngineInfo, RestoredState
from medlite.engines.llamacpp.sequence import ResidentSequence
from medlite.errors import EngineError
from medlite.files import cache_folder, check_free_space, whole_file
from medlite.formats.json import decode_json

MAGIC = b"medlite state 1\n"
DIGEST_BYTES = KEY_BYTES = 32
FACTS_MOST_BYTES = 1 << 16
BLOCK_BYTES = 1 << 22


Identity = Mapping[str, str | int]  # what must be equal for a state to fit


def identify(path: Path, info: EngineInfo) -> Identity:
    """The model file at `path`, its runtime, its cache's layout. A file that was touched counts as another."""
    status = path.stat()
    return {
        "model": info.model_name,
        "file_bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "engine_version": info.engine_version,
        "device": info.device,
        "n_vocab": info.n_vocab,
        "kv_type": info.settings["kv_type"],
    }


def save_state(path: Path, resident: ResidentSequence, identity: Identity) -> int:
    """Write what `resident` holds to `path`, readable by its owner only; how many tokens. An older file is replaced.

    Raises EngineError if there is nothing to save, OutputError if the disk refuses.
    """
    tokens = resident.tokens
    if not tokens:
        raise EngineError("no conversation to save: nothing was read yet")
    if path.parent.is_dir():
        check_free_space(path.parent, resident.context.state_bytes(0) + 4 * len(tokens) + FACTS_MOST_BYTES)
    with whole_file(path, force=True) as part:
        part.unlink(missing_ok=True)
        part.touch(0o600, exist_ok=False)
        n_bytes = resident.context.save_sequence(part, 0, tokens)
        facts = json.dumps({**identity, "n_tokens": len(tokens), "n_bytes": n_bytes}).encode()
        with part.open("r+b") as handle:
            handle.seek(0, os.SEEK_END)
            handle.write(facts + len(facts).to_bytes(8, "little"))
            handle.flush()
            digest = _digest(handle, handle.tell(), _key())
            handle.write(digest + MAGIC)
    return len(tokens)


def restore_state(path: Path, resident: ResidentSequence, identity: Identity, n_context: int) -> RestoredState:
    """Put the state at `path` into `resident`. A file that does not fit leaves it empty and says why."""
    resident.forget()
    try:
        with path.open("rb") as handle:
            found = _verified_facts(handle)
    except OSError as error:
        return RestoredState(0, f"{path}: {error.strerror or error}")
    if isinstance(found, str):
        return RestoredState(0, f"{path}: {found}")
    for name, value in identity.items():
        if found.get(name) != value:
            return RestoredState(0, f"{path}: its {name.replace('_', ' ')} is {found.get(name)!r}, here {value!r}")
    if found["n_tokens"] > n_context:
        return RestoredState(0, f"{path}: it holds {found['n_tokens']} tokens, the context {n_context}")
    try:
        tokens = resident.context.load_sequence(path, 0, n_context)
    except EngineError as error:
        resident.forget()
        return RestoredState(0, str(error))
    if len(tokens) != resident.context.length(0):
        resident.forget()
        return RestoredState(0, f"{path}: {len(tokens)} tokens, but the cache holds another number")
    resident.tokens = tokens
    return RestoredState(len(tokens), "")


def _verified_facts(handle: BinaryIO) -> Mapping[str, Any] | str:
    """The facts of a file that this medlite wrote and nobody changed; else what is wrong with it."""
    n_bytes = handle.seek(0, os.SEEK_END)
    n_trailer = 8 + DIGEST_BYTES + len(MAGIC)
    if n_bytes < n_trailer:
        return "not a saved state"
    handle.seek(n_bytes - n_trailer)
    trailer = handle.read(n_trailer)
    if not trailer.endswith(MAGIC):
        return "not a saved state, or cut short"
    n_signed = n_bytes - DIGEST_BYTES - len(MAGIC)
    if not hmac.compare_digest(_digest(handle, n_signed, _key()), trailer[8 : 8 + DIGEST_BYTES]):
        return "damaged, or written by another user or machine"
    n_facts = int.from_bytes(trailer[:8], "little")
    handle.seek(n_signed - 8 - n_facts)
    try:
        return decode_json(handle.read(n_facts), dict[str, Any], EngineError, where="its facts")
    except EngineError as error:
        return str(error)


def _digest(handle: BinaryIO, n_bytes: int, key: bytes) -> bytes:
    """The keyed SHA-256 of the file's first `n_bytes`; leaves the position behind them."""
    digest = hmac.new(key, digestmod="sha256")
    handle.seek(0)
    while n_bytes and (block := handle.read(min(BLOCK_BYTES, n_bytes))):
        digest.update(block)
        n_bytes -= len(block)
    return digest.digest()


def _key() -> bytes:
    """This user's key, made at its first use. Raises EngineError where it cannot be kept."""
    path = cache_folder() / "state.key"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            new = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(new, "wb") as handle:
                handle.write(secrets.token_bytes(KEY_BYTES))
        key = path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path}: {error.strerror or error}", hint="MEDLITE_CACHE names another folder") from error
    if len(key) != KEY_BYTES:
        raise EngineError(f"{path}: {len(key)} bytes, {KEY_BYTES} were needed", hint="remove it; a new one is made")
    return key
