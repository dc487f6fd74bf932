"""Write planned GGUF files in one streaming pass over the checkpoint.

Every offset is known from the plan, so worker threads take slabs in order, and each reads, encodes and writes its
slab with pread and pwrite. Memory is threads x one slab, whatever the model's size. Each slab is journalled; a run
that was killed continues. A file gets its final name when every slab was read back and compared.
"""

import hashlib
import itertools
import os
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from medlite.errors import ArtifactError, MedliteError, OutputError
from medlite.files import check_free_space, check_writable, file_sha256, part_path, publish, write_json_whole
from medlite.formats.receipt import receipt_path
from quantize.gguf.plan import QuantizationPlan
from quantize.gguf.receipt import SourceHasher, WrittenFacts, make_receipt
from quantize.source.checkpoint import RowReader
from quantize.source.parity import ParityReport
from quantize.stream.journal import Journal, fingerprint, journal_path, open_journal
from quantize.stream.slabs import EncodedSlab, Slab, SlabEncoder, slabs_of
from quantize.stream.workers import run_slabs

FREE_SPACE_MARGIN_BYTES = 1 << 20

OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class Output:
    """One plan and the file it becomes (the first of several under --max-shard-size takes its split name)."""

    plan: QuantizationPlan
    path: Path

    @property
    def paths(self) -> list[Path]:
        return self.plan.paths(self.path)


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
    """One finished artifact. n_resumed_bytes: how much of it an earlier run had done."""

    output: Output
    paths: tuple[Path, ...]
    receipt: Path
    n_resumed_bytes: int


def write_gguf(outputs: Sequence[Output], settings: WriteSettings | None = None) -> list[Written]:
    """Write every output, verified and with its receipt, or none under its final name.

    outputs: plans of the same checkpoint. Raises OutputError before the first byte if a file exists (unless force)
    or the disk is short, CheckpointError if a weight is not finite or a shard ends early, and whatever settings.check
    raises. What was done stays in the .part file on Ctrl-C or a full disk, and is removed on any other error.
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
    """Raise OutputError if a file may not be written or the disk cannot hold what is missing."""
    needed: dict[Path, int] = {}
    for output in outputs:
        for path, file in zip(output.paths, output.plan.files, strict=True):
            check_writable(path, force=force)
            part = part_path(path)
            held = part.stat().st_blocks * 512 if part.exists() else 0
            needed[path.parent] = needed.get(path.parent, FREE_SPACE_MARGIN_BYTES) + max(file.n_bytes - held, 0)
    for folder, n_bytes in needed.items():
        check_free_space(folder, n_bytes)


class OutputWriter:
    """The .part files and the journal of one output. `write` may be called from several threads."""

    def __init__(self, output: Output, settings: WriteSettings) -> None:
        self.output, self.settings = output, settings
        self.slabs = list(slabs_of(output.plan))
        self._descriptors: list[int] = []
        self._lock = threading.Lock()
        key = fingerprint(output.plan)
        self.journal: Journal = open_journal(journal_path(output.path), key, restart=settings.restart)
        for path, file in zip(output.paths, output.plan.files, strict=True):
            descriptor = os.open(part_path(path), os.O_RDWR | os.O_CREAT, 0o644)
            self._descriptors.append(descriptor)
            os.ftruncate(descriptor, file.n_bytes)
            write_at(descriptor, file.header, 0)
        self._drop_lost_slabs()
        self.n_resumed_bytes = sum(self._n_bytes(self.slabs[number]) for number in self.journal.done)
        settings.on_bytes(self.n_resumed_bytes)

    def _place(self, slab: Slab) -> tuple[int, int, int]:
        """File index, position and length of a slab's bytes."""
        plan = self.output.plan
        tensor = plan.tensors[slab.tensor]
        row_bytes = tensor.info.type.row_bytes(tensor.info.shape[-1])
        position = len(plan.files[tensor.file].header) + tensor.info.offset + slab.first_row * row_bytes
        return tensor.file, position, slab.n_rows * row_bytes

    def _n_bytes(self, slab: Slab) -> int:
        return self._place(slab)[2]

    def _crc(self, slab: Slab) -> int:
        file, position, length = self._place(slab)
        return zlib.crc32(os.pread(self._descriptors[file], length, position))

    def _drop_lost_slabs(self) -> None:
        """Forget journalled slabs whose bytes are not in the .part file (a power cut, a touched file)."""
        n_slabs = len(self.slabs)
        lost = [
            number
            for number, (crc, _) in self.journal.done.items()
            if not 0 <= number < n_slabs or self._crc(self.slabs[number]) != crc
        ]
        for number in lost:
            del self.journal.done[number]

    def lacks(self, slab: Slab) -> bool:
        return slab.number not in self.journal.done

    def write(self, slab: Slab, encoded: EncodedSlab) -> None:
        """Put one slab's bytes where they belong and journal them."""
        write_at(self._descriptors[encoded.file], encoded.data.data, encoded.position)
        crc = zlib.crc32(encoded.data.data)
        with self._lock:
            self.journal.add(slab.number, crc, encoded.errors)
            self.settings.on_bytes(encoded.data.nbytes)

    def finish(self, hasher: SourceHasher, parity: ParityReport | None) -> Written:
        """Read everything back, compare, write the receipt, publish. Raises ArtifactError if a byte differs."""
        parts = [part_path(path) for path in self.output.paths]
        with ThreadPoolExecutor(self.settings.n_threads or os.cpu_count() or 1) as pool:
            files = [pool.submit(file_sha256, part) for part in parts]
            by_tensor = itertools.groupby(self.slabs, key=lambda slab: slab.tensor)
            tensors = [pool.submit(self._read_back, list(slabs)) for _, slabs in by_tensor]
            tensor_hashes = [digest.result() for digest in tensors]
            file_hashes = [digest.result() for digest in files]
        for descriptor, part, file in zip(self._descriptors, parts, self.output.plan.files, strict=True):
            if os.pread(descriptor, len(file.header), 0) != file.header or part.stat().st_size != file.n_bytes:
                raise ArtifactError(
                    f"{part}: its header reads back differently from what was written",
                    hint="the disk or the memory is faulty; run the command again",
                )
        errors = {number: errors for number, (_, errors) in self.journal.done.items()}
        facts = WrittenFacts(
            self.slabs, errors if self.settings.measure else None, hasher.result(), file_hashes, tensor_hashes, parity
        )
        write_json_whole(receipt_path(self.output.path), make_receipt(self.output.plan, self.output.paths, facts))
        for part, path in zip(parts, self.output.paths, strict=True):
            publish(part, path)
        self.journal.path.unlink()
        return Written(self.output, tuple(self.output.paths), receipt_path(self.output.path), self.n_resumed_bytes)

    def _read_back(self, slabs: list[Slab]) -> str:
        """SHA-256 of one tensor's bytes on disk. Raises ArtifactError where a slab is not what was written."""
        digest = hashlib.sha256()
        for slab in slabs:
            file, position, length = self._place(slab)
            data = os.pread(self._descriptors[file], length, position)
            if zlib.crc32(data) != self.journal.done[slab.number][0]:
                name = self.output.plan.tensors[slab.tensor].info.name
                raise ArtifactError(
                    f"{self.output.path}: {name} reads back differently from what was written",
                    hint="the disk or the memory is faulty; run the command again",
                )
            digest.update(data)
            with self._lock:
                self.settings.on_verify(length)
        return digest.hexdigest()

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self.journal.close()

    def discard(self) -> None:
        """Remove the .part files and the journal."""
        for path in self.output.paths:
            part_path(path).unlink(missing_ok=True)
        self.journal.path.unlink(missing_ok=True)


def write_at(descriptor: int, data: bytes | memoryview, position: int) -> None:
    """Write all of `data` at byte `position` of an open file; safe from several threads."""
    view = memoryview(data)
    while view:
        n = os.pwrite(descriptor, view, position)
        view, position = view[n:], position + n


def _write_slabs(writers: Sequence[OutputWriter], settings: WriteSettings) -> ParityReport | None:
    """Encode and write what the outputs lack, with the check beside it; returns what that found."""
    with RowReader() as reader:
        reader.open(writers[0].output.plan.checkpoint.tensors)

        def worker() -> Callable[[Slab], None]:
            encoder = SlabEncoder(reader, measure=settings.measure)

            def work(slab: Slab) -> None:
                lacking = [writer for writer in writers if writer.lacks(slab)]
                if lacking:
                    encoded = encoder.encode(slab, [writer.output.plan for writer in lacking])
                    for writer, one in zip(lacking, encoded, strict=True):
                        writer.write(slab, one)

            return work

        n_threads = settings.n_threads or os.cpu_count() or 1
        return run_slabs(writers[0].slabs, [worker() for _ in range(n_threads)], settings.check)
