"""Models from the Hugging Face hub, through huggingface_hub's cache and token. No other file downloads one.

Nothing here runs unless the user named a model. Sizes are known and the disk is checked before the first byte, a
revision is pinned to its commit, a broken connection is taken up where it broke, and what arrived is compared with the
hub's checksums. After an interrupted run, whole files are kept; huggingface_hub begins an unfinished one again.
Offline means that no socket is opened: only the cache is looked at.
"""

import fnmatch
import importlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medlite.errors import CheckpointError, OutputError
from medlite.files import cache_folder, file_sha256, format_bytes
from medlite.models.catalog import CatalogModel, find_model, near_names

REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
# fmt: off
CHECKPOINT_FILES = ["config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "chat_template*",
                    "*.safetensors", "*.safetensors.index.json", "README.md", "LICENSE*"]
# fmt: on
# Of repositories without safetensors. quantize reads them through torch, weights only: no code of theirs runs.
PICKLED_FILES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
DEFAULT_REVISION = "main"
SPARE_BYTES = 1 << 28  # left on the disk after a download


@dataclass(frozen=True)
class RemoteFile:
    """One file of a hub repository. sha256: as the hub states it for large files, empty for small ones."""

    name: str
    n_bytes: int
    sha256: str = ""


@dataclass(frozen=True)
class RemoteRepository:
    """A hub repository at one commit, and the files of it that are wanted. revision: the name that meant the commit."""

    name: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def missing(self) -> tuple[RemoteFile, ...]:
        """The files that are not whole in the local cache."""
        return tuple(file for file in self.files if not _is_cached(self, file))


def is_offline() -> bool:
    """Whether the user's environment forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() not in ("", "0", "false", "no")


# --- names -----------------------------------------------------------------------------------------------------------


def find_checkpoint(source: str, *, offline: bool = False) -> Path:
    """The folder that `source` names: a folder on disk, a catalogue name, or REPO[@REVISION], downloaded if need be.

    offline: open no socket. Raises CheckpointError saying how to get what is missing.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    known = find_model(source)
    if known is not None and not known.repository:
        return hand_fetched(known)
    repository, revision = parse_repository(source)
    return download_checkpoint(repository, revision, offline=offline)


def parse_repository(text: str) -> tuple[str, str | None]:
    """Repository and revision of a catalogue name or REPO[@REVISION]. Raises CheckpointError for anything else."""
    name, _, revision = text.partition("@")
    known = find_model(name)
    if known is not None and known.repository:
        return known.repository, revision or known.revision or None
    match = REPOSITORY.fullmatch(text)
    if match is None or text.startswith((".", "/", "~")) or text.endswith(".gguf"):
        near = near_names(name)
        raise CheckpointError(
            f"{text}: no such folder, no model of the catalogue and no hub repository's name",
            hint=f"did you mean {' or '.join(near)}?"
            if near
            else "a folder, a name that medlite models lists, or as meta-llama/Llama-3.2-1B-Instruct",
        )
    return match["repository"], match["revision"]


def hand_folder(model: CatalogModel) -> Path:
    """Where medlite looks for a model that no program may download."""
    return cache_folder() / "checkpoints" / model.name


def hand_fetched(model: CatalogModel) -> Path:
    """The folder of a credentialed model. Raises CheckpointError saying where to get it and where to put it."""
    folder = hand_folder(model)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{model.name}: credentialed access, it must be fetched by hand ({model.licence})",
            hint=f"sign the agreement at {model.where}, download the files, and put them into {folder}, "
            "or give the folder where they are",
        )
    return folder


# --- downloads -------------------------------------------------------------------------------------------------------


def list_repository(repository: str, revision: str | None, patterns: Sequence[str]) -> RemoteRepository:
    """The files that match `patterns`, with sizes, at the commit that `revision` (default: the newest) is now."""
    from huggingface_hub import HfApi

    with _hub_errors(repository, revision):
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    files = [RemoteFile(row.rfilename, row.size or 0, row.lfs.sha256 if row.lfs else "") for row in info.siblings or ()]
    files.sort(key=lambda file: (file.n_bytes, file.name))
    return RemoteRepository(repository, revision or DEFAULT_REVISION, str(info.sha), _matching(files, patterns))


def checkpoint_of(remote: RemoteRepository) -> RemoteRepository:
    """The checkpoint's files among those of `remote`: safetensors, or pickled weights where there are none."""
    safe = _matching(remote.files, CHECKPOINT_FILES)
    has_weights = any(file.name.endswith(".safetensors") for file in safe)
    files = safe if has_weights else _matching(remote.files, [*CHECKPOINT_FILES, *PICKLED_FILES])
    return replace(remote, files=files)


def _matching(files: Sequence[RemoteFile], patterns: Sequence[str]) -> tuple[RemoteFile, ...]:
    return tuple(file for file in files if any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns))


def check_space(remote: RemoteRepository) -> int:
    """Bytes still to download. Raises OutputError if the cache's disk has not that much, before the first byte."""
    from huggingface_hub import constants

    needed = sum(file.n_bytes for file in remote.missing)
    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed and needed + SPARE_BYTES > free:
        raise OutputError(
            f"{folder}: {format_bytes(free)} free, {format_bytes(needed)} are to be downloaded",
            hint="free some space, or set HF_HOME to a folder on another disk",
        )
    return needed


def pull(remote: RemoteRepository, on_bytes: Callable[[int], None] | None = None) -> Path:
    """The local folder with every file of `remote`, downloaded where missing and compared with the hub's checksums.

    Small files come first, so a refusal costs nothing. The first is asked for by the revision's name, even if it is
    here: so the cache learns which commit the name means, and offline the name is enough. on_bytes hears what arrived
    since its last call, and what an earlier run had left; without it huggingface_hub draws its own bars.

    Raises CheckpointError if there is nothing to bring, and if the hub refuses, breaks off, or sends other bytes.
    """
    if not remote.files:
        raise CheckpointError(f"{remote.name}: holds no file of a checkpoint")
    check_space(remote)
    first, *rest = remote.files
    known = _is_cached(remote, first)
    path = _ask(remote, first, remote.revision) if known else _download(remote, first, remote.revision, on_bytes)
    folder = path.parents[first.name.count("/")]
    if folder.name != remote.commit:
        raise CheckpointError(f"{remote.name}: {remote.revision} moved while it was looked at", hint="run again")
    for file in rest:
        if not _is_cached(remote, file):
            _download(remote, file, remote.commit, on_bytes)
    return folder


def _ask(remote: RemoteRepository, file: RemoteFile, revision: str, ticker: Any = None) -> Path:
    from huggingface_hub import hf_hub_download

    with _hub_errors(remote.name, revision):
        return Path(hf_hub_download(remote.name, file.name, revision=revision, tqdm_class=ticker))


def _download(
    remote: RemoteRepository, file: RemoteFile, revision: str, on_bytes: Callable[[int], None] | None
) -> Path:
    """One file, resumed where a run left it, then its size and checksum compared."""
    ticker: Any = _ticker(on_bytes) if on_bytes else None
    path = _ask(remote, file, revision, ticker)
    if on_bytes:
        on_bytes(max(0, file.n_bytes - ticker.n_heard))
    _check_arrived(remote, file, path)
    return path


def _check_arrived(remote: RemoteRepository, file: RemoteFile, path: Path) -> None:
    """Compare size and checksum. Raises CheckpointError for other bytes than the hub's, and removes them."""
    found = path.stat().st_size
    wrong = (
        f"{found} bytes, the hub announced {file.n_bytes}"
        if found != file.n_bytes
        else "its checksum is not the hub's"
        if file.sha256 and file_sha256(path) != file.sha256
        else ""
    )
    if wrong:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise CheckpointError(
            f"{remote.name}: {file.name} arrived damaged: {wrong}", hint="it was removed; run again to download it anew"
        )


def _ticker(on_bytes: Callable[[int], None]) -> Any:
    """A class that huggingface_hub takes for its progress bar, and that draws nothing."""
    bar: Any = importlib.import_module("huggingface_hub.utils.tqdm").tqdm

    class Ticker(bar):  # type: ignore[misc]
        n_heard = 0

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            self.update(options.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            if n and n > 0:
                Ticker.n_heard += int(n)
                on_bytes(int(n))

    return Ticker


def _is_cached(remote: RemoteRepository, file: RemoteFile) -> bool:
    path = cached_file(remote.name, file.name, remote.commit)
    return path is not None and path.is_file() and path.stat().st_size == file.n_bytes


def download_checkpoint(repository: str, revision: str | None, *, offline: bool) -> Path:
    """The local snapshot of a checkpoint, downloaded if need be; huggingface_hub shows progress."""
    from huggingface_hub import snapshot_download

    patterns = [*CHECKPOINT_FILES, *PICKLED_FILES]
    if not (offline or is_offline()):
        return pull(checkpoint_of(list_repository(repository, revision, patterns)))
    with _hub_errors(repository, revision, offline=True):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, local_files_only=True))


# --- the cache -------------------------------------------------------------------------------------------------------


def cached_file(repository: str, name: str, revision: str | None = None) -> Path | None:
    """A file in the hub's local cache, None if it is not there. Opens no socket."""
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repository, name, revision=revision)
    except errors.HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def cached_bytes() -> dict[str, int]:
    """Repository -> bytes in the hub's local cache. Opens no socket."""
    from huggingface_hub import errors, scan_cache_dir

    try:
        return {repo.repo_id: repo.size_on_disk for repo in scan_cache_dir().repos if repo.repo_type == "model"}
    except errors.CacheNotFound:
        return {}


@contextmanager
def _hub_errors(repository: str, revision: str | None, *, offline: bool = False) -> Iterator[None]:
    """huggingface_hub's errors as CheckpointErrors that say what to do."""
    from huggingface_hub import errors

    http_error: type[Exception] = vars(errors)["HTTPError"]  # of the HTTP library that this version uses
    known = find_model(repository)
    page = known.where if known else f"https://huggingface.co/{repository}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{repository}: its licence must be accepted first", hint=f"accept it at {page}, then: hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        if known is not None and known.access == "gated":
            raise CheckpointError(
                f"{repository}: gated, and this machine is not logged in to the hub",
                hint=f"accept its licence at {page}, then: hf auth login",
            ) from error
        raise CheckpointError(
            f"{repository}: not on the hub, or private",
            hint="check the spelling; for a private repository: hf auth login",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repository}: no revision {revision}",
            hint=f"medlite pull {repository}@{DEFAULT_REVISION} takes the newest",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        what = "offline, and not in the local cache" if offline or is_offline() else "the hub cannot be reached"
        raise CheckpointError(f"{repository}: {what}", hint="give a folder, or connect and run again") from error
    except errors.HFValidationError as error:
        raise CheckpointError(f"{repository}: no hub repository's name: {error}") from error
    except (errors.HfHubHTTPError, http_error, OSError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{repository}: {said}", hint="run again: files that are whole are kept") from error
