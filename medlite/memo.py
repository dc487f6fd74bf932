"""What medlite remembers between runs: one JSON object a name in the cache folder, shared safely by processes.

A memo is a cache. It is bounded, the latest entries stay; whatever stands in its file instead of entries counts as
nothing remembered; deleting it costs time and no data. A writer holds a lock while it reads, changes and replaces the
file, so two at once lose no entry; a reader needs none, since the file is replaced whole.

Not diskcache, which llama-cpp-python brings along: it pickles what is not text or a number, and to unpickle a file is
to run it. JSON can also be read, and mended, by its owner.
"""

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from medlite.errors import OutputError, RecordError
from medlite.files import cache_folder, whole_file
from medlite.formats.json import decode_json, read_json

T = TypeVar("T")

MOST_BYTES = 16 << 20


class Memo(Generic[T]):
    """Values of type `value` by text, kept in the file `name`.json of the cache folder, at most `most` of them."""

    def __init__(self, name: str, value: type[T], *, most: int = 1024) -> None:
        self.name, self._value, self._most = name, value, most

    @property
    def path(self) -> Path:
        return cache_folder() / f"{self.name}.json"

    def read(self) -> dict[str, T]:
        """All that is remembered, the latest last. An entry of another type, of an older medlite, is left out."""
        try:
            stated = read_json(self.path, dict[str, msgspec.Raw], RecordError, most_bytes=MOST_BYTES)
        except RecordError:
            return {}
        found = {}
        for key, raw in stated.items():
            try:
                found[key] = decode_json(raw, self._value, RecordError, where=key)
            except RecordError:
                continue
        return found

    def put(self, entries: Mapping[str, T]) -> None:
        """Remember `entries` as the latest, in this order, and forget the oldest beyond the bound.

        Raises OutputError where the cache folder cannot be written, or a text is not Unicode.
        """
        with self._locked():
            kept = {key: value for key, value in self.read().items() if key not in entries}
            latest = dict(list({**kept, **entries}.items())[-self._most :])
            try:
                raw = msgspec.json.format(msgspec.json.encode(latest), indent=1)
            except UnicodeEncodeError as error:  # a path that is not UTF-8
                raise OutputError(f"{self.path}: {error}") from error
            with whole_file(self.path, force=True) as part:
                part.write_bytes(raw + b"\n")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of this memo, whose file is not the memo itself: that one is replaced."""
        lock = self.path.with_name(self.path.name + ".lock")
        with ExitStack() as stack:
            try:
                lock.parent.mkdir(parents=True, exist_ok=True)
                fcntl.flock(stack.enter_context(lock.open("ab")), fcntl.LOCK_EX)
            except OSError as error:
                hint = "MEDLITE_CACHE names another folder"
                raise OutputError(f"{lock}: {error.strerror or error}", hint) from error
            yield
