"""A conversation on disk: written only when the user asks, readable only by its owner."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from medlite.errors import RecordError
from medlite.files import whole_file
from medlite.formats.json import read_json


@dataclass(frozen=True)
class Turn:
    """A user's text and the reply to it. finish: why the reply ended, None while it runs or if it was interrupted."""

    user: str
    reply: str
    finish: str | None = None


@dataclass(frozen=True)
class SavedSession:
    """The file of a saved conversation. model: its name."""

    format: Literal["medlite chat 1"]
    model: str
    system: str
    temperature: Annotated[float, msgspec.Meta(ge=0, le=10)]
    turns: tuple[Turn, ...]


def state_path(path: Path) -> Path:
    """Where the engine's state of the conversation saved at `path` lies."""
    return path.with_name(path.name + ".state")


def write_session(path: Path, session: SavedSession, *, force: bool = False) -> None:
    """Write `session` to `path`. Raises OutputError if it exists, unless force, or cannot be written."""
    write_private(path, json.dumps(asdict(session), indent=1, ensure_ascii=False) + "\n", force=force)


def read_session(path: Path) -> SavedSession:
    """The conversation saved at `path`. Raises RecordError naming what is wrong with the file."""
    return read_json(path, SavedSession, RecordError, hint="/save FILE writes a conversation that can be loaded")


def write_private(path: Path, text: str, *, force: bool = False) -> None:
    """Write `text` so that only the owner can read it, whole or not at all."""
    with whole_file(path, force=force) as part:
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as handle:
            handle.write(text)
