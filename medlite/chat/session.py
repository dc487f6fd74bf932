"""A conversation on disk: written only when the user asks, readable only by its owner."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from medlite.errors import RecordError
from medlite.files import whole_file

SESSION_FORMAT = "medlite chat 1"


@dataclass(frozen=True)
class Turn:
    """A user's text and the reply to it. finish: why the reply ended, None while it runs or if it was interrupted."""

    user: str
    reply: str
    finish: str | None = None


@dataclass(frozen=True)
class SavedSession:
    """What a saved conversation holds, apart from the model."""

    model: str
    system: str
    temperature: float
    turns: tuple[Turn, ...]


def state_path(path: Path) -> Path:
    """Where the engine's state of the conversation saved at `path` lies."""
    return path.with_name(path.name + ".state")


def write_session(path: Path, session: SavedSession, *, force: bool = False) -> None:
    """Write `session` to `path`. Raises OutputError if it exists, unless force, or cannot be written."""
    value = {"format": SESSION_FORMAT, **asdict(session)}
    write_private(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n", force=force)


def read_session(path: Path) -> SavedSession:
    """The conversation saved at `path`. Raises RecordError naming what is wrong with the file."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not a saved conversation ({error})", hint="/save FILE writes one") from error
    if not isinstance(raw, dict) or raw.get("format") != SESSION_FORMAT:
        raise RecordError(f"{path}: not a saved conversation", hint=f'its "format" must be "{SESSION_FORMAT}"')
    model, system, temperature, turns = (raw.get(key) for key in ("model", "system", "temperature", "turns"))
    if not isinstance(model, str) or not isinstance(system, str) or not isinstance(turns, list):
        raise RecordError(f"{path}: model, system and turns must be text, text and a list")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 <= temperature <= 10:
        raise RecordError(f"{path}: temperature is {temperature!r}, a number from 0 to 10 was needed")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("user", "reply")):
            raise RecordError(f"{path}: turn {number} needs a user text and a reply text")
    return SavedSession(
        model,
        system,
        float(temperature),
        tuple(Turn(turn["user"], turn["reply"], turn.get("finish")) for turn in turns),
    )


def write_private(path: Path, text: str, *, force: bool = False) -> None:
    """Write `text` so that only the owner can read it, whole or not at all."""
    with whole_file(path, force=force) as part:
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as handle:
            handle.write(text)
