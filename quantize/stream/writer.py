"""Write planned artifacts, GGUF files or ONNX folders, in one streaming pass over the checkpoint.

Every offset is known from the plan, so worker threads take slabs in order, and each reads, encodes and writes its
slab with pread and pwrite. Memory is threads x one slab, whatever the model's size. Each slab is journalled; a run
that was killed continues. An artifact gets its final name when every slab was read back and compared.
"""

import hashlib
import itertools
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medlite.errors import ArtifactError, MedliteError, OutputError
from medlite.files import (
    OnBytes,
    check_free_space,
    check_writable,
    file_sha256,
    part_path,
    publish,
    publish_folder,
    write_json_whole,
)
from medlite.formats.onnx_folder import is_onnx_folder
from medlite.formats.receipt import ONNX_RECEIPT_NAME, receipt_path
from quantize.source.checkpoint import RowReader
from quantize.source.parity import ParityReport
from quantize.stream.encode import RowErrors
from quantize.stream.journal import Journal, fingerprint, journal_path, open_journal
from quantize.stream.plan import Output, Plan
from quantize.stream.receipt import SourceHasher, make_receipt
from quantize.stream.slabs import EncodedSlab, Place, Slab, SlabEncoder, places_of, slabs_of
from quantize.stream.workers import run_slabs

FREE_SPACE_MARGIN_BYTES = 1 << 20
FAULTY_HINT = "the disk or the memory is faulty; run the command again"


@dataclass(frozen=True)
class WriteSettings:
    """n_threads: 0 for all cores. measure: put each tensor's error against the source into the receipt.

    hash_source: put the shards' SHA-256 there too (the source is read once more, side by side).
    check: compares the tokenizers, in a thread beside the conversion; its report goes into the receipt, and what it
    raises ends the conversion.
    force: replace files that exist. restart: do not continue an earlier run.
    on_bytes hears output bytes as they are written, resumed ones included; on_verify as they are read back.
    """

    n_threads: int = 0
    measure: bool = True
    hash_source: bool = True
    check: Callable[[], ParityReport] | None = None
    force: bool = False
    restart: bool = False
    on_bytes: OnBytes = lambda n: None
    on_verify: OnBytes = lambda n: None


@dataclass(frozen=True)
class Written:
    """One finished artifact and what its receipt says. n_resumed_bytes: how much of it an earlier run had done."""

    output: Output
    receipt: Mapping[str, Any]
    n_resumed_bytes: int

    @property
    def path(self) -> Path:
        """The folder, or the first of the files."""
        return self.output.path if self.output.plan.is_folder else self.output.paths[0]


def write(outputs: Sequence[Output], settings: WriteSettings | None = None) -> list[Written]:
    """Write every output, verified and with its receipt, or none under its final name.

    outputs: of the same checkpoint in the same format. Raises OutputError before the first byte if a name is taken
    (unless force) or the disk is short, CheckpointError if a weight is not finite or a shard ends early, and whatever
    settings.check raises. What was done stays under the .part names on Ctrl-C or a full disk, and is removed on any
    other error.
    """
    settings = settings or WriteSettings()
    _check_outputs(outputs, force=settings.force)
    writers: list[OutputWriter] = []
    try:
        with ExitStack() as stack:
            for output in outputs:
                writers.append(OutputWriter(output, settings))
                stack.callback(writers[-1].close)
            hasher = stack.enter_context(SourceHasher(outputs[0].plan.checkpoint, enabled=settings.hash_source))
            parity = _write_slabs(writers, settings)
            return [writer.finish(hasher, parity) for writer in writers]
    except OSError as error:
        raise OutputError(
            f"{outputs[0].path.parent}: {error.strerror or error}",
            hint="free some space and run the same command again: it continues",
        ) from error
    except MedliteError:
        for writer in writers:
            writer.discard()
        raise


def _check_outputs(outputs: Sequence[Output], *, force: bool) -> None:
    """Raise OutputError if the outputs share no read, a name may not be written or the disk cannot hold them."""
    if any(_rows_read(output.plan) != _rows_read(outputs[0].plan) for output in outputs):
        raise OutputError("outputs of different checkpoints or formats cannot be written together")
    needed: dict[Path, int] = {}
    for output in outputs:
        if output.plan.is_folder:
            _check_folder(output.path, force=force)
        for path, part, file in zip(output.paths, output.part_paths, output.plan.files, strict=True):
            if not output.plan.is_folder:
                check_writable(path, force=force)
            held = part.stat().st_blocks * 512 if part.exists() else 0
            disk = output.path.parent
            needed[disk] = needed.get(disk, FREE_SPACE_MARGIN_BYTES) + max(file.n_bytes - held, 0)
    for folder, n_bytes in needed.items():
        check_free_space(folder, n_bytes)


def _rows_read(plan: Plan) -> list[tuple[object, ...]]:
    """What its slabs read, which outputs that are written together have in common."""
    return [(tensor.source, tensor.shape, tensor.transform, tensor.row_group) for tensor in plan.tensors]


def _check_folder(path: Path, *, force: bool) -> None:
    """Raise OutputError if `path` exists and may not be replaced, or the folder above is missing."""
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already", hint="--force replaces it, --out names another folder")
    if path.exists() and not is_onnx_folder(path):
        raise OutputError(f"{path}: is no ONNX folder of medlite, so it is not replaced", hint="--out names another")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: no such folder", hint=f"mkdir -p {path.parent}")


class OutputWriter:
    """The .part files (or folder) and the journal of one output. `write` may be called from several threads."""

    def __init__(self, output: Output, settings: WriteSettings) -> None:
        self.output, self.plan, self.settings = output, output.plan, settings
        self.slabs = list(slabs_of(self.plan.tensors))
        self._descriptors: list[int] = []
        self._lock = threading.Lock()
        if self.plan.is_folder:
            part_path(output.path).mkdir(exist_ok=True)
        key = fingerprint(self.plan)
        self.journal: Journal = open_journal(journal_path(output.path), key, restart=settings.restart)
        for part, file in zip(output.part_paths, self.plan.files, strict=True):
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
            self._descriptors.append(descriptor)
            os.ftruncate(descriptor, file.n_bytes)
            write_at(descriptor, file.header, 0)
        self._drop_lost_slabs()
        self.n_resumed_bytes = sum(
            place.n_bytes for number in self.journal.done for place in self._places(self.slabs[number])
        )
        settings.on_bytes(self.n_resumed_bytes)

    def _places(self, slab: Slab) -> list[Place]:
        return places_of(slab, self.plan.tensors[slab.tensor])

    def _read(self, slab: Slab) -> list[bytes]:
        """The slab's bytes on disk, those of each part."""
        return [os.pread(self._descriptors[place.file], place.n_bytes, place.position) for place in self._places(slab)]

    def _drop_lost_slabs(self) -> None:
        """Forget journalled slabs whose bytes are not in the .part file (a power cut, a touched file)."""
        lost = [
            number
            for number, (crc, _) in self.journal.done.items()
            if not 0 <= number < len(self.slabs) or crc_of(self._read(self.slabs[number])) != crc
        ]
        for number in lost:
            del self.journal.done[number]

    def lacks(self, slab: Slab) -> bool:
        return slab.number not in self.journal.done

    def write(self, slab: Slab, encoded: EncodedSlab) -> None:
        """Put one slab's bytes where they belong and journal them."""
        for place, data in zip(self._places(slab), encoded.parts, strict=True):
            if data.nbytes != place.n_bytes:
                raise OutputError(f"{self.output.path}: {data.nbytes} bytes encoded, {place.n_bytes} were planned")
            write_at(self._descriptors[place.file], data.data, place.position)
        crc = crc_of(data.data for data in encoded.parts)
        with self._lock:
            self.journal.add(slab.number, crc, encoded.errors)
            self.settings.on_bytes(sum(data.nbytes for data in encoded.parts))

    def finish(self, hasher: SourceHasher, parity: ParityReport | None) -> Written:
        """Read everything back, compare, write the receipt, publish. Raises ArtifactError if a byte differs."""
        files = {path.name: part for path, part in zip(self.output.paths, self.output.part_paths, strict=True)}
        if self.plan.companions is not None:
            files |= self._add_companions(self.plan.companions)
        with ThreadPoolExecutor(self.settings.n_threads or os.cpu_count() or 1) as pool:
            digests = {name: pool.submit(file_sha256, file) for name, file in files.items()}
            by_tensor = itertools.groupby(self.slabs, key=lambda slab: slab.tensor)
            tensors = [pool.submit(self._read_back, list(slabs)) for _, slabs in by_tensor]
            part_hashes = [digest.result() for digest in tensors]
            found = {name: (file.stat().st_size, digests[name].result()) for name, file in files.items()}
        self._check_headers()
        errors: dict[int, list[RowErrors]] = {}
        for slab in self.slabs if self.settings.measure else ():
            errors.setdefault(slab.tensor, []).append(self.journal.done[slab.number][1])
        return self._publish(make_receipt(self.plan, found, part_hashes, errors, hasher.result(), parity))

    def _add_companions(self, companions: Mapping[str, bytes | Path]) -> dict[str, Path]:
        """Write the small files of a folder; what else an earlier run left there goes. Returns name -> file."""
        folder = part_path(self.output.path)
        for stray in folder.iterdir():
            if stray not in self.output.part_paths:
                stray.unlink()
        for name, content in companions.items():
            if isinstance(content, Path):
                shutil.copyfile(content, folder / name)
            else:
                (folder / name).write_bytes(content)
        return {name: folder / name for name in companions}

    def _read_back(self, slabs: Sequence[Slab]) -> list[str]:
        """SHA-256 of each part of one tensor on disk. Raises ArtifactError where a slab is not what was written."""
        tensor = self.plan.tensors[slabs[0].tensor]
        digests = [hashlib.sha256() for _ in tensor.parts]
        for slab in slabs:
            parts = self._read(slab)
            if crc_of(parts) != self.journal.done[slab.number][0]:
                raise ArtifactError(
                    f"{self.output.path}: {tensor.name} reads back differently from what was written", hint=FAULTY_HINT
                )
            for digest, data in zip(digests, parts, strict=True):
                digest.update(data)
            with self._lock:
                self.settings.on_verify(sum(map(len, parts)))
        return [digest.hexdigest() for digest in digests]

    def _check_headers(self) -> None:
        for descriptor, part, file in zip(self._descriptors, self.output.part_paths, self.plan.files, strict=True):
            if os.pread(descriptor, len(file.header), 0) != file.header or part.stat().st_size != file.n_bytes:
                raise ArtifactError(
                    f"{part}: its header reads back differently from what was written", hint=FAULTY_HINT
                )

    def _publish(self, receipt: Mapping[str, Any]) -> Written:
        """Write the receipt and give the artifact its final name."""
        output = self.output
        if self.plan.is_folder:
            write_json_whole(part_path(output.path) / ONNX_RECEIPT_NAME, receipt)
            publish_folder(part_path(output.path), output.path)
        else:
            write_json_whole(receipt_path(output.path), receipt)
            for part, path in zip(output.part_paths, output.paths, strict=True):
                publish(part, path)
        self.journal.path.unlink()
        return Written(output, receipt, self.n_resumed_bytes)

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self.journal.close()

    def discard(self) -> None:
        """Remove the .part files and the journal."""
        for part in self.output.part_paths:
            part.unlink(missing_ok=True)
        if self.plan.is_folder:
            shutil.rmtree(part_path(self.output.path), ignore_errors=True)
        self.journal.path.unlink(missing_ok=True)


def crc_of(parts: Iterable[bytes | memoryview]) -> int:
    """CRC-32 over all parts, one after another."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def write_at(descriptor: int, data: bytes | memoryview, position: int) -> None:
    """Write all of `data` at byte `position` of an open file; safe from several threads."""
    view = memoryview(data)
    while view:
        n = os.pwrite(descriptor, view, position)
        view, position = view[n:], position + n


def _write_slabs(writers: Sequence[OutputWriter], settings: WriteSettings) -> ParityReport | None:
    """Encode and write what the outputs lack, with the check beside it; returns what that found."""
    with RowReader() as reader:
        reader.open(writers[0].plan.checkpoint.tensors)

        def worker() -> Callable[[Slab], None]:
            encoder = SlabEncoder(reader, measure=settings.measure)

            def work(slab: Slab) -> None:
                lacking = [writer for writer in writers if writer.lacks(slab)]
                if lacking:
                    encoded = encoder.encode(slab, [writer.plan.tensors[slab.tensor] for writer in lacking])
                    for writer, one in zip(lacking, encoded, strict=True):
                        writer.write(slab, one)

            return work

        n_threads = settings.n_threads or os.cpu_count() or 1
        return run_slabs(writers[0].slabs, [worker() for _ in range(n_threads)], settings.check)
