"""Checkpoints from the Hugging Face hub, through huggingface_hub's cache and token. The only file that downloads.

Nothing here runs unless the user named a repository. With HF_HUB_OFFLINE set, only the cache is looked at.
"""

import os
import re
from pathlib import Path

from medlite.errors import CheckpointError

REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
CHECKPOINT_FILES = ["config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "chat_template*",
                    "*.safetensors", "*.safetensors.index.json", "README.md", "LICENSE*"]


def find_checkpoint(source: str, *, offline: bool = False) -> Path:
    """The folder that `source` names: a folder on disk, or REPO[@REVISION] on the hub, downloaded if need be.

    offline: open no socket. Raises CheckpointError saying how to get what is missing.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    match = REPOSITORY.fullmatch(source)
    if match is None or source.startswith((".", "/", "~")) or folder.suffix == ".gguf":
        raise CheckpointError(f"{source}: no such folder, and no hub repository's name",
                              hint="SOURCE is a checkpoint folder or a name as in meta-llama/Llama-3.2-1B-Instruct")
    return download_checkpoint(match["repository"], match["revision"], offline=offline)


def download_checkpoint(repository: str, revision: str | None, *, offline: bool) -> Path:
    """The local snapshot of a hub repository; huggingface_hub resumes, verifies and shows progress."""
    from huggingface_hub import errors, snapshot_download

    offline = offline or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=CHECKPOINT_FILES,
                                      local_files_only=offline))
    except errors.GatedRepoError as error:
        raise CheckpointError(f"{repository}: its licence must be accepted first",
                              hint=f"accept it at https://huggingface.co/{repository}, then: hf auth login") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(f"{repository}: not on the hub, or private",
                              hint="check the spelling; for a private repository: hf auth login") from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{repository}: no revision {revision}") from error
    except errors.LocalEntryNotFoundError as error:
        what = "offline, and not in the local cache" if offline else "the hub cannot be reached"
        raise CheckpointError(f"{repository}: {what}", hint="give a folder, or connect and run again") from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{repository}: {str(error).splitlines()[0]}", hint="run again: it resumes") from error
