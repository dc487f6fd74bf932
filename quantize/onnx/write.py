"""Write a planned ONNX folder in one streaming pass over the checkpoint.

As quantize.stream.writer: every offset is known from the plan, worker threads take slabs, each slab is journalled, and
a run that was killed continues. The folder grows under a .part name and gets its own when every byte was read back.
"""

import hashlib
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from medlite.errors import ArtifactError, MedliteError, OutputError
from medlite.files import check_free_space, part_path, write_json_whole
from medlite.formats.onnx_folder import DATA_NAME, MODEL_NAME, is_onnx_folder
from medlite.formats.receipt import ONNX_RECEIPT_NAME
from medlite.version import __version__
from quantize.gguf.receipt import SourceHasher
from quantize.onnx.blocks import STRETCHES
from quantize.onnx.plan import FolderPlan, OnnxSlab, slabs_of
from quantize.onnx.receipt import make_onnx_receipt
from quantize.onnx.slabs import EncodedPieces, OnnxSlabEncoder
from quantize.source.checkpoint import RowReader
from quantize.stream.journal import journal_path, open_journal
from quantize.stream.slabs import SLAB_WEIGHTS
from quantize.stream.workers import run_slabs
from quantize.stream.writer import FREE_SPACE_MARGIN_BYTES, WriteSettings, write_at


@dataclass(frozen=True)
class OnnxWritten:
    """One finished folder. n_resumed_bytes: how much of it an earlier run had done."""

    plan: FolderPlan
    path: Path
    n_resumed_bytes: int


def write_onnx(plan: FolderPlan, path: Path, settings: WriteSettings | None = None) -> OnnxWritten:
    """Write the folder `path`, verified and with its receipt, or nothing under that name.

    Raises OutputError before the first byte if the folder exists (unless force) or the disk is short,
    CheckpointError if a weight is not finite or a shard ends early. What was done stays under the .part name on
    Ctrl-C or a full disk, and is removed on any other error.
    """
    settings = settings or WriteSettings()
    _check_output(plan, path, force=settings.force)
    graph, companions = plan.graph, plan.companions()  # before a byte is written: both may refuse
    writer: FolderWriter | None = None
    try:
        writer = FolderWriter(plan, path, settings)
        with SourceHasher(plan.checkpoint, enabled=settings.hash_source) as hasher:
            _write_slabs(writer, settings)
            shard_hashes = hasher.result()
        writer.add_files(graph, companions)
        writer.finish(shard_hashes)
    except OSError as error:
        raise OutputError(
            f"{path.parent}: {error.strerror or error}",
            hint="free some space and run the same command again: it continues",
        ) from error
    except MedliteError:
        if writer is not None:
            writer.discard()
        raise
    finally:
        if writer is not None:
            writer.close()
    return OnnxWritten(plan, path, writer.n_resumed_bytes)


def _check_output(plan: FolderPlan, path: Path, *, force: bool) -> None:
    """Raise OutputError if the folder may not be written, or the disk cannot hold what is missing."""
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already", hint="--force replaces it, --out names another folder")
    if path.exists() and not is_onnx_folder(path):
        raise OutputError(f"{path}: is no ONNX folder of medlite, so it is not replaced", hint="--out names another")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: no such folder", hint=f"mkdir -p {path.parent}")
    data = part_path(path) / DATA_NAME
    held = data.stat().st_blocks * 512 if data.exists() else 0
    check_free_space(path.parent, max(plan.n_data_bytes - held, 0) + FREE_SPACE_MARGIN_BYTES)


def fingerprint(plan: FolderPlan) -> str:
    """SHA-256 over what decides the data file's bytes: the graph, source files (name, size, time), version."""
    digest = hashlib.sha256(f"{__version__} {SLAB_WEIGHTS} {STRETCHES}".encode() + plan.graph)
    for shard in sorted({tensor.path for tensor in plan.checkpoint.tensors.values()}):
        status = shard.stat()
        digest.update(f"{shard.name} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


class FolderWriter:
    """The .part folder, its data file and its journal. `write` may be called from several threads."""

    def __init__(self, plan: FolderPlan, path: Path, settings: WriteSettings) -> None:
        self.plan, self.path, self.settings = plan, path, settings
        self.slabs = list(slabs_of(plan))
        self.part = part_path(path)
        self._lock = threading.Lock()
        self.part.mkdir(exist_ok=True)
        self.journal = open_journal(journal_path(path), fingerprint(plan), restart=settings.restart)
        self._descriptor = os.open(self.part / DATA_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        self._closed = False
        os.ftruncate(self._descriptor, plan.n_data_bytes)
        self._drop_lost_slabs()
        self.n_resumed_bytes = sum(
            length for number in self.journal.done for _, length in self._places(self.slabs[number])
        )
        settings.on_bytes(self.n_resumed_bytes)

    def _places(self, slab: OnnxSlab) -> list[tuple[int, int]]:
        """Position and length of a slab's bytes, one pair a piece."""
        return [
            (piece.offset + slab.first_row * piece.row_bytes, slab.n_rows * piece.row_bytes)
            for piece in self.plan.tensors[slab.tensor].pieces
        ]

    def _crc(self, slab: OnnxSlab) -> int:
        crc = 0
        for position, length in self._places(slab):
            crc = zlib.crc32(os.pread(self._descriptor, length, position), crc)
        return crc

    def _drop_lost_slabs(self) -> None:
        """Forget journalled slabs whose bytes are not in the data file (a power cut, a touched file)."""
        lost = [
            number
            for number, (crc, _) in self.journal.done.items()
            if not 0 <= number < len(self.slabs) or self._crc(self.slabs[number]) != crc
        ]
        for number in lost:
            del self.journal.done[number]

    def lacks(self, slab: OnnxSlab) -> bool:
        return slab.number not in self.journal.done

    def write(self, slab: OnnxSlab, encoded: EncodedPieces) -> None:
        """Put one slab's bytes where they belong and journal them."""
        crc = 0
        for (position, length), data in zip(self._places(slab), encoded.pieces, strict=True):
            assert data.nbytes == length
            write_at(self._descriptor, data.data, position)
            crc = zlib.crc32(data.data, crc)
        with self._lock:
            self.journal.add(slab.number, crc, encoded.errors)
            self.settings.on_bytes(sum(data.nbytes for data in encoded.pieces))

    def add_files(self, graph: bytes, companions: Mapping[str, object]) -> None:
        """The graph, the configurations and the tokenizer beside the data."""
        (self.part / MODEL_NAME).write_bytes(graph)
        for name, content in companions.items():
            if isinstance(content, Path):
                shutil.copyfile(content, self.part / name)
            else:
                write_json_whole(self.part / name, content)

    def finish(self, shard_hashes: Mapping[Path, str]) -> None:
        """Read everything back, compare, write the receipt, publish. Raises ArtifactError if a byte differs."""
        for slab in self.slabs:
            if self._crc(slab) != self.journal.done[slab.number][0]:
                raise ArtifactError(
                    f"{self.path}: {self.plan.tensors[slab.tensor].name} reads back differently from what was written",
                    hint="the disk or the memory is faulty; run the command again",
                )
        errors = {number: errors for number, (_, errors) in self.journal.done.items()}
        receipt = make_onnx_receipt(
            self.plan,
            self.part,
            self.slabs,
            errors if self.settings.measure else None,
            shard_hashes,
            self.settings.on_verify,
        )
        write_json_whole(self.part / ONNX_RECEIPT_NAME, receipt)
        publish_folder(self.part, self.path)
        self.journal.path.unlink()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._descriptor)
            self.journal.close()

    def discard(self) -> None:
        """Remove the .part folder and the journal."""
        shutil.rmtree(self.part, ignore_errors=True)
        self.journal.path.unlink(missing_ok=True)


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


def _write_slabs(writer: FolderWriter, settings: WriteSettings) -> None:
    """Encode and write what the folder lacks."""
    with RowReader() as reader:
        reader.open(writer.plan.checkpoint.tensors)

        def worker() -> Callable[[OnnxSlab], None]:
            encoder = OnnxSlabEncoder(writer.plan, reader, measure=settings.measure)

            def work(slab: OnnxSlab) -> None:
                if writer.lacks(slab):
                    writer.write(slab, encoder.encode(slab))

            return work

        run_slabs(writer.slabs, [worker() for _ in range(settings.n_threads or os.cpu_count() or 1)])
